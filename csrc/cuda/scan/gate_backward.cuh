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
// With kMasked u is 1, and r and c are 0, where the node is not there: then every cotangent of the step is zero but
// that of the state, which passes.
template <class S, bool kMasked>
struct GateOut {
  S* gates;  // [N * T, 3H]
  ResetGate<S> reset;
  int hidden;
  bool candidate;
  const typename GateRows<S>::Row* rows;  // of the block, from first_row on
  int first_row;

  template <class C>
  __device__ __forceinline__ void write(int row, int group, int channel, const C (&values)[4]) const {
    S* to = gates + static_cast<int64_t>(row) * (3 * hidden) + (candidate ? 2 * hidden : 0);
    if (group == 1) to = reset.data + static_cast<int64_t>(row) * reset.stride;
    const bool absent = kMasked && !GateRows<S>::has_input(rows[row - first_row]);
    C gate[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      gate[i] = candidate ? tanh(values[i]) : sigmoid(values[i]);
      if (kMasked && absent) gate[i] = C(group == 0 && !candidate);
    }
    store_part(to, channel, hidden, gate);
  }
};

// The gates of a scan and their cotangents, [N * T, 3H] each.
template <class S>
struct GateWorkspace {
  using C = Compute<S>;
  C* d_gates;
  S* values;  // saved by the forward, in place of the cotangents, or in a workspace
  ResetGate<S> reset;

  GateWorkspace(Workspace& memory, C* d_gates, S* saved, int64_t rows, int64_t hidden) : d_gates(d_gates) {
    values = saved;
    bool in_place = false;
    if constexpr (std::is_same_v<S, C>) {
      in_place = saved == nullptr;
      if (in_place) values = d_gates;
    }
    if (saved == nullptr && !in_place) values = memory.template take<S>(rows * 3 * hidden);
    const int width = static_cast<int>(hidden);
    reset = in_place ? ResetGate<S>{memory.template take<S>(rows * hidden), width}
                     : ResetGate<S>{values + hidden, 3 * width};
  }
};

// Recomputes the gates, [N * T, 3H], of a block's rows: u and r, then c, which reads r * h_{t-1}: the r that its own
// warp wrote.
template <class S, bool kRounded, bool kMasked>
__global__ void __launch_bounds__(LinearTraits::kThreads, LinearTraits::kMinBlocks)
    gates_kernel(GateRows<S> in, S* gates, int rows) {
  const LinearTile<Compute<S>, kRounded, 2, GateRows<S>> tile(in, rows);
  const int hidden = static_cast<int>(in.p.hidden), columns = in.widths[0] + in.widths[1] + hidden;
  const GateColumns<S> of_state{in.p.weights, columns}, of_candidate{in.p.weights, columns, 2};
  const GateOut<S, kMasked> out{gates, in.reset, hidden, false, tile.row_of, tile.first_row};
  const GateOut<S, kMasked> out_candidate{gates, in.reset, hidden, true, tile.row_of, tile.first_row};
  for (int c = 0; c < hidden; c += LinearTraits::kChannels) {
    linear_tile<2, false>(tile, in, of_state, out, c, hidden);
  }
  __syncwarp();
  for (int c = 0; c < hidden; c += LinearTraits::kChannels) {
    linear_tile<1, true>(tile, in, of_candidate, out_candidate, c, hidden);
  }
}

template <class S>
cudaError_t compute_gates(const GateRows<S>& in, S* gates, int64_t rows, cudaStream_t stream) {
  return dispatch_rounded(rounds_operands<S>(in.p.tf32), [&](auto constant) {
    return dispatch_masked(in.p.present, [&](auto masked) {
      constexpr bool kRounded = decltype(constant)::value;
      using Tile = LinearTile<Compute<S>, kRounded, 2, GateRows<S>>;
      return launch(gates_kernel<S, kRounded, decltype(masked)::value>, Tile::grid(rows, 1),
                    dim3(LinearTraits::kThreads), Tile::bytes(), stream, in, gates, static_cast<int>(rows));
    });
  });
}

// d_x [rows, F] and d_g [rows, H] from the cotangents of the gates, each if it is given.
template <class S>
cudaError_t input_gradients(const GatedScanForward<S>& f, const Compute<S>* d_gates, S* d_x, S* d_g,
                            int64_t rows, cudaStream_t stream) {
  using C = Compute<S>;
  const int hidden = static_cast<int>(f.hidden), channels = static_cast<int>(f.x.channels);
  const int columns = channels + static_cast<int>(f.g_channels) + hidden;
  const auto rounded = rounds_operands<S>(f.tf32);
  // The columns of the gates from column `first` on, transposed.
  const auto weights = [&](int first) {
    return Transposed<GateColumns<S>>{{f.weights, columns, 0, first}, hidden};
  };
  const DenseRows<C, 3> d_rows = gate_cotangents(d_gates, f.hidden);
  if (d_x != nullptr) {
    HIERMT_CUDA_RETURN_IF_ERROR(linear<C, 1>(d_rows, weights(0), DenseOut<S>{d_x, channels, channels, 0},
                                             rows, channels, stream, rounded));
  }
  if (d_g == nullptr) return cudaSuccess;
  return linear<C, 1>(d_rows, weights(channels), DenseOut<S>{d_g, hidden, hidden, 0}, rows, hidden, stream,
                      rounded);
}

// Backward of the recurrence alone, from the gates and h. Writes the cotangents of the gates before their
// nonlinearity. `packed` is a workspace of 3 H * H values.
template <class S>
cudaError_t scan_backward(const GatedScanBackward<S, Compute<S>>& p, const GateWorkspace<S>& gates,
                          Compute<S>* packed, cudaStream_t stream);

}  // namespace hiermt::cuda
