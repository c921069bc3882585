// The gated scan, forward (arXiv 1811.05320, eqs. 3 to 6). With z = W [x, g] + b the input projection:
//
//   u = sigmoid(z_u + W_u h_{t-1})     r = sigmoid(z_r + W_r h_{t-1})
//   c = tanh(z_c + W_c (r * h_{t-1}))  h_t = u * h_{t-1} + (1 - u) * c
//
// With kMasked a node that is not there at a step holds its state: h_t = h_{t-1}.
//
// With windows the input projection is computed once a day, and the recurrence of each window reads it in place.
#include "cuda/operators.h"
#include "cuda/scan/lanes.cuh"

namespace hiermt::cuda {
namespace {

template <class S, class Lane, bool kMasked>
__global__ void __launch_bounds__(Lane::kThreads, Lane::kMinBlocks)
    gated_scan_fwd_kernel(GatedScanForward<S> p, const Compute<S>* input_projection, WindowDays days,
                          const Compute<S>* packed, int nodes) {
  constexpr int kNodes = Lane::kNodes;
  using C = Compute<S>;
  SharedMemory memory;
  const Lane lane(p, packed, memory);
  const int c = lane.channel, hidden = lane.hidden(), steps = static_cast<int>(p.steps);
  C* state = lane.exchange(memory);
  C* reset = lane.exchange(memory);

  C h[kNodes], next[3][kNodes] = {};
  int64_t rows[kNodes];
  const C* inputs[kNodes];
  const bool* present[kNodes] = {};
#pragma unroll
  for (int q = 0; q < kNodes; ++q) {
    // Threads past the last node repeat it and write nothing.
    const int node = lane.first_node + q < nodes ? lane.first_node + q : nodes - 1;
    const int64_t first_input = days.first_row(node);
    rows[q] = static_cast<int64_t>(node) * steps;
    inputs[q] = input_projection + first_input * (3 * hidden) + c;
    if constexpr (kMasked) present[q] = p.present + first_input;
    h[q] = p.h0 != nullptr ? load(p.h0 + static_cast<int64_t>(node) * hidden + c) : C(0);
    state[q * hidden + c] = h[q];
  }
  const auto read_inputs = [&] {
#pragma unroll
    for (int q = 0; q < kNodes; ++q) {
#pragma unroll
      for (int gate = 0; gate < 3; ++gate) next[gate][q] = inputs[q][gate * hidden];
      inputs[q] += 3 * hidden;
    }
  };
  if (Lane::kPrefetch && steps > 0) read_inputs();
  lane.sync();
  for (int t = 0; t < steps; ++t) {
    if (!Lane::kPrefetch) read_inputs();
    C u[kNodes], r[kNodes], candidate[kNodes];
#pragma unroll
    for (int q = 0; q < kNodes; ++q) u[q] = next[0][q], r[q] = next[1][q], candidate[q] = next[2][q];
    if (Lane::kPrefetch && t + 1 < steps) read_inputs();
    lane.multiply(1, state, r, 0, state, u);
#pragma unroll
    for (int q = 0; q < kNodes; ++q) {
      reset[q * hidden + c] = sigmoid(r[q]) * h[q];
      u[q] = sigmoid(u[q]);
    }
    lane.sync();
    lane.multiply(2, reset, candidate);
#pragma unroll
    for (int q = 0; q < kNodes; ++q) {
      const C updated = u[q] * h[q] + (C(1) - u[q]) * tanh(candidate[q]);
      h[q] = kMasked && !present[q][t] ? h[q] : updated;
      state[q * hidden + c] = h[q];
      if (lane.first_node + q < nodes && p.h != nullptr) store(p.h + (rows[q] + t) * hidden + c, h[q]);
    }
    lane.sync();
  }
#pragma unroll
  for (int q = 0; q < kNodes; ++q) {
    if (lane.first_node + q < nodes && p.h_last != nullptr) {
      store(p.h_last + static_cast<int64_t>(lane.first_node + q) * hidden + c, h[q]);
    }
  }
}

}  // namespace

template <class S>
void gated_scan_forward(const GatedScanForward<S>& p, Stream& on) {
  using C = Compute<S>;
  const int hidden = static_cast<int>(p.hidden), inputs = static_cast<int>(p.x.channels + p.g_channels);
  const int64_t rows = p.copies * p.num_nodes * p.steps;
  C* const input_projection = on.take<C>(rows * 3 * p.hidden);
  linear<C, 3>(GateRows<S>(p, true, false), GateColumns<S>{p.weights, inputs + hidden},
               DenseOut<C>{input_projection, hidden, 3 * p.hidden, p.hidden}, rows, p.hidden,
               rounds_operands<S>(p.tf32), on);
  gated_scan_recurrence(p, input_projection, on);
}

template <class S>
void gated_scan_recurrence(const GatedScanForward<S>& given, const Compute<S>* input_projection, Stream& on) {
  const WindowDays days(given);
  const GatedScanForward<S> p = over_windows(given);
  dispatch_lane<S, false>(p, 2, on, [&](const auto& scan) {
    using Lane = typename std::decay_t<decltype(scan)>::Lane;
    dispatch_masked(p.present, [&](auto masked) {
      launch(gated_scan_fwd_kernel<S, Lane, masked>, scan.blocks, scan.threads, scan.shared_bytes, on, p,
             input_projection, days, scan.packed, p.copies * p.num_nodes);
    });
  });
}

#define HIERMT_INSTANTIATE(S)                                               \
  template void gated_scan_forward<S>(const GatedScanForward<S>&, Stream&); \
  template void gated_scan_recurrence<S>(const GatedScanForward<S>&, const Compute<S>*, Stream&);
HIERMT_FOR_EACH_STORAGE(HIERMT_INSTANTIATE)
#undef HIERMT_INSTANTIATE

}  // namespace hiermt::cuda
