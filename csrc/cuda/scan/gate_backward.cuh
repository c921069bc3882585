// Dense layers of the backward of the gated scan, over the nodes of a batch or the windows of a series.
#pragma once

#include "cuda/dense/weight_grad.cuh"
#include "cuda/scan/gate_grads.cuh"
#include "cuda/scan/gated_scan.cuh"

namespace hiermt::cuda {

// The cotangents of the gates as groups of H channels.
template <class C>
DenseRows<C, 3> gate_cotangents(const C* d_gates, int64_t hidden) {
  return {d_gates, static_cast<int>(hidden), 3 * hidden, hidden};
}

// Applies the nonlinearity and stores the gates: u and r, or c if `candidate`; r goes where `reset` points.
template <class S>
struct GateOut {
  S* gates;  // [N * T, 3H]
  ResetGate<S> reset;
  int hidden;
  bool candidate, packed;

  template <class C>
  __device__ __forceinline__ void write(int row, int group, int channel, const C (&values)[4]) const {
    S* to = gates + static_cast<int64_t>(row) * (3 * hidden) + (candidate ? 2 * hidden : 0);
    if (group == 1) to = reset.data + static_cast<int64_t>(row) * reset.stride;
    C gate[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) gate[i] = candidate ? tanh(values[i]) : sigmoid(values[i]);
    store_part(to, channel, hidden, packed, gate);
  }
};

// The gates of a scan and their cotangents, [N * T, 3H] each. If S is the compute type, the gates are stored in place
// of their cotangents, except r, which the gradient of W_c reads again: it lies in d_x, which is written later, if d_x
// has room.
template <class S>
struct GateWorkspace {
  using C = Compute<S>;
  C* d_gates;
  S* values;
  ResetGate<S> reset;

  // d_x has `channels` channels of each row; nullptr if there is none.
  GateWorkspace(C* d_gates_, int64_t rows, int64_t hidden, S* d_x, int64_t channels, Stream& on)
      : d_gates(d_gates_) {
    const int width = static_cast<int>(hidden);
    if constexpr (std::is_same_v<S, C>) {
      values = d_gates;
      if (d_x != nullptr && channels >= hidden) {
        reset = {d_x, static_cast<int>(channels)};
      } else {
        reset = {on.take<S>(rows * hidden), width};
      }
    } else {
      values = on.take<S>(rows * 3 * hidden);
      reset = {values + hidden, 3 * width};
    }
  }
};

// Recomputes the gates, [N * T, 3H], of a block's rows: u and r, then c, which reads r * h_{t-1}: the r that its own
// warp wrote.
template <class S, bool kRounded>
__global__ void __launch_bounds__(LinearTraits::kThreads, LinearTraits::kMinBlocks)
    gates_kernel(GateRows<S> in, S* gates, int rows) {
  const LinearTile<Compute<S>, kRounded, 2, GateRows<S>> tile(in, rows);
  const int hidden = static_cast<int>(in.p.hidden), columns = in.widths[0] + in.widths[1] + hidden;
  const GateColumns<S> of_state{in.p.weights, columns}, of_candidate{in.p.weights, columns, 2};
  const bool packed = packs<4>(gates, hidden) && packs<4>(in.reset.data, in.reset.stride);
  const GateOut<S> out{gates, in.reset, hidden, false, packed},
      out_candidate{gates, in.reset, hidden, true, packed};
  for (int c = 0; c < hidden; c += LinearTraits::kChannels) {
    linear_tile<2, false>(tile, in, of_state, out, c, hidden);
  }
  __syncwarp();
  for (int c = 0; c < hidden; c += LinearTraits::kChannels) {
    linear_tile<1, true>(tile, in, of_candidate, out_candidate, c, hidden);
  }
}

template <class S>
void compute_gates(const GateRows<S>& in, S* gates, int64_t rows, Stream& on) {
  dispatch_rounded(rounds_operands<S>(in.p.tf32), [&](auto rounded) {
    using Tile = LinearTile<Compute<S>, decltype(rounded)::value, 2, GateRows<S>>;
    launch(gates_kernel<S, decltype(rounded)::value>, Tile::blocks(rows), LinearTraits::kThreads,
           Tile::bytes(), on, in, gates, rows);
  });
}

// d_x [rows, F] and d_g [rows, H] from the cotangents of the gates, each if it is given. `used` as in GateRows.
template <class S>
void input_gradients(const GatedScanForward<S>& f, const Compute<S>* d_gates, const int* used, S* d_x, S* d_g,
                     int64_t rows, Stream& on) {
  const int hidden = static_cast<int>(f.hidden), channels = static_cast<int>(f.x.channels);
  const int columns = channels + static_cast<int>(f.g_channels) + hidden;
  // To `width` channels from the columns of the gates from column `first` on, transposed.
  const auto back = [&](S* to, int first, int width) {
    if (to == nullptr) return;
    linear<Compute<S>, 1>(
        gate_cotangents(d_gates, f.hidden),
        Transposed<GateColumns<S>>{{f.weights, columns, 0, first}, hidden},
        InputGradientOut<S>{{to, width, width, 0}, f.present, used, static_cast<int>(f.steps)}, rows, width,
        rounds_operands<S>(f.tf32), on);
  };
  back(d_x, 0, channels);
  back(d_g, channels, hidden);
}

}  // namespace hiermt::cuda
