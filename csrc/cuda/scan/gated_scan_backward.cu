// The gated scan, backward. d_u, d_r and d_c are the cotangents of the gates before their nonlinearity, s is
// the reset state r * h_{t-1}:
//
//   d_c = d_h (1 - u) (1 - c^2)     d_u = d_h (h_{t-1} - c) u (1 - u)     d_s = W_c^T d_c
//   d_r = d_s h_{t-1} r (1 - r)     d_h_{t-1} += d_h u + d_s r + W_u^T d_u + W_r^T d_r
//
// The scan writes d_u, d_r and d_c; dense layers over all steps derive the gradients of inputs and weights.
// The gates are recomputed from the states for all steps.
//
// With windows the backward of the recurrence runs per window. The cotangents of the input projection are then summed
// over the windows that contain a day, and the gradients of x, g and the input columns are computed per day.
//
// With kMasked the cotangents of the gates of a node that is not there are zero, and d_h_{t-1} is d_h, whatever its
// state and the weights are: zero times what is not finite is not zero.
#include "cuda/scan/gate_backward.cuh"
#include "cuda/scan/lanes.cuh"
#include "cuda/scan/window_sums.cuh"

namespace hiermt::cuda {
namespace {

// The saved values that a step reads, in one channel of one node.
template <class C>
struct SavedStep {
  C u, r, candidate, h_prev, d_h;
};

template <class S>
__device__ __forceinline__ SavedStep<Compute<S>> read_step(const GatedScanBackward<S, Compute<S>>& p,
                                                           const ResetGate<S>& reset, int64_t node, int t,
                                                           int c) {
  using C = Compute<S>;
  const GatedScanForward<S>& f = p.forward;
  const int64_t row = node * f.steps + t, at = row * f.hidden + c;
  const S* gates = f.gates + 3 * row * f.hidden + c;
  SavedStep<C> step;
  step.u = load(gates);
  step.r = load(reset.data + row * reset.stride + c);
  step.candidate = load(gates + 2 * f.hidden);
  step.h_prev = t > 0 ? load(f.h + at - f.hidden) : f.h0 != nullptr ? load(f.h0 + node * f.hidden + c) : C(0);
  step.d_h = p.d_h != nullptr ? load(p.d_h + at) : C(0);
  return step;
}

template <class S, class Lane, bool kMasked>
__global__ void __launch_bounds__(Lane::kThreads, Lane::kMinBlocks)
    gated_scan_bwd_kernel(GatedScanBackward<S, Compute<S>> p, WindowDays days, ResetGate<S> reset,
                          const Compute<S>* packed, Compute<S>* d_gates, int nodes) {
  constexpr int kNodes = Lane::kNodes;
  using C = Compute<S>;
  SharedMemory memory;
  const Lane lane(p.forward, packed, memory);
  const int c = lane.channel, hidden = lane.hidden(), steps = static_cast<int>(p.forward.steps);
  C* all_d_u = lane.exchange(memory);
  C* all_d_r = lane.exchange(memory);
  C* all_d_c = lane.exchange(memory);

  C carry[kNodes];
  C* out[kNodes];  // of the step
  int64_t node[kNodes];
  const bool* present[kNodes] = {};
  SavedStep<C> next[kNodes] = {};
#pragma unroll
  for (int q = 0; q < kNodes; ++q) {
    // Threads past the last node repeat it and write nothing.
    node[q] = lane.first_node + q < nodes ? lane.first_node + q : nodes - 1;
    out[q] = d_gates + (node[q] * steps + steps - 1) * 3 * hidden + c;
    if constexpr (kMasked) present[q] = p.forward.present + days.first_row(static_cast<int>(node[q]));
    carry[q] = p.d_h_last != nullptr ? load(p.d_h_last + node[q] * hidden + c) : C(0);
    if (Lane::kPrefetch && steps > 0) next[q] = read_step(p, reset, node[q], steps - 1, c);
  }
  lane.sync();
  for (int t = steps - 1; t >= 0; --t) {
    SavedStep<C> step[kNodes];
    C d_s[kNodes] = {}, held[kNodes];
    bool there[kNodes];
#pragma unroll
    for (int q = 0; q < kNodes; ++q) {
      step[q] = Lane::kPrefetch ? next[q] : read_step(p, reset, node[q], t, c);
      if (Lane::kPrefetch && t > 0) next[q] = read_step(p, reset, node[q], t - 1, c);
      const SavedStep<C>& s = step[q];
      const C d_h = carry[q] + s.d_h;
      there[q] = !kMasked || present[q][t];
      held[q] = d_h;
      const C d_c = there[q] ? d_h * (C(1) - s.u) * (C(1) - s.candidate * s.candidate) : C(0);
      const C d_u = there[q] ? d_h * (s.h_prev - s.candidate) * s.u * (C(1) - s.u) : C(0);
      all_d_c[q * hidden + c] = d_c;
      all_d_u[q * hidden + c] = d_u;
      carry[q] = d_h * s.u;
      if (lane.first_node + q < nodes) out[q][0] = d_u, out[q][2 * hidden] = d_c;
    }
    lane.sync();
    lane.multiply(2, all_d_c, d_s, 0, all_d_u, carry);
#pragma unroll
    for (int q = 0; q < kNodes; ++q) {
      const C d_r = there[q] ? d_s[q] * step[q].h_prev * step[q].r * (C(1) - step[q].r) : C(0);
      all_d_r[q * hidden + c] = d_r;
      carry[q] += d_s[q] * step[q].r;
      if (lane.first_node + q < nodes) out[q][hidden] = d_r;
      out[q] -= 3 * hidden;
    }
    lane.sync();
    lane.multiply(1, all_d_r, carry);
#pragma unroll
    for (int q = 0; q < kNodes; ++q) carry[q] = there[q] ? carry[q] : held[q];
  }
#pragma unroll
  for (int q = 0; q < kNodes; ++q) {
    if (lane.first_node + q < nodes && p.d_h0 != nullptr) store(p.d_h0 + node[q] * hidden + c, carry[q]);
  }
}

}  // namespace

template <class S>
Compute<S>* gated_scan_backward(const GatedScanBackward<S, Compute<S>>& given, Stream& on,
                                GateGradChunks<Compute<S>>* chunks) {
  using C = Compute<S>;
  const GatedScanForward<S>& f = given.forward;
  GatedScanBackward<S, C> p = given;
  p.forward = over_windows(f);
  const WindowDays days(f);
  const bool windows = f.windows != nullptr;
  const int64_t day_rows = f.copies * f.num_nodes * f.steps;
  const int64_t rows = p.forward.copies * p.forward.num_nodes * p.forward.steps;
  const int hidden = static_cast<int>(f.hidden), inputs = static_cast<int>(f.x.channels + f.g_channels);

  // What is left behind comes first: the rest is free when the gradients of x and g have been computed.
  const GateGrads<C>& all = p.grads;
  C* const d_days = on.take<C>(day_rows * 3 * f.hidden);
  const bool one_sum = all.u_weight != nullptr && !windows;
  C* const partial = on.take<C>(one_sum ? weight_grad_values(rows, 3 * f.hidden, inputs + f.hidden) : 0);
  const Stream::Frame frame(on);
  const GateWorkspace<S> gates(windows ? on.take<C>(rows * 3 * f.hidden) : d_days, rows, f.hidden,
                               windows ? nullptr : p.d_x, f.x.channels, on);
  int* const used = windows ? on.take<int>(f.steps) : nullptr;  // [D] whether a window contains the day
  p.forward.gates = gates.values;
  GateRows<S> in(p.forward, true, true);
  in.reset = gates.reset;
  in.windows = days;
  compute_gates(in, gates.values, rows, on);
  dispatch_lane<S, true>(p.forward, 3, on, [&](const auto& scan) {
    using Lane = typename std::decay_t<decltype(scan)>::Lane;
    dispatch_masked(f.present, [&](auto masked) {
      launch(gated_scan_bwd_kernel<S, Lane, masked>, scan.blocks, scan.threads, scan.shared_bytes, on, p,
             days, gates.reset, scan.packed, gates.d_gates, p.forward.copies * p.forward.num_nodes);
    });
  });
  if (windows) {
    sum_windows(gates.d_gates, days, f.windows->count, day_rows, 3 * f.hidden, d_days, used, on);
  }

  // `width` columns from column `first` on, sums over `from`.
  const auto weight_grads = [&](const GateGrads<C>& grads, const C* d_gates, const GateRows<S>& from,
                                int64_t of, int first, int width) {
    weight_grad<C>(gate_cotangents(d_gates, f.hidden), from, of,
                   GateGradsOut<C>{grads, inputs + hidden, hidden, first, width}, rounds_operands<S>(f.tf32),
                   on);
  };
  if (all.u_weight != nullptr && windows) {
    // The gradients of the columns that read the state are sums over windows, all others sums over days.
    GateRows<S> states(p.forward, false, true), of_days(f, true, false);
    states.reset = gates.reset;
    if (f.present != nullptr) states.windows = days;  // the mask is of the days
    of_days.used = used;
    const GateGrads<C> weights{all.u_weight, nullptr, all.r_weight, nullptr, all.c_weight, nullptr};
    weight_grads(weights, gates.d_gates, states, rows, inputs, hidden);
    weight_grads(all, d_days, of_days, day_rows, 0, inputs);
  } else if (one_sum) {
    weight_grad_chunks(gate_cotangents<C>(gates.d_gates, f.hidden), in, rows, partial,
                       rounds_operands<S>(f.tf32), on);
    const GateGradChunks<C> found{partial, grad_chunks(rows).count, all, inputs + hidden, hidden};
    if (chunks != nullptr) {
      *chunks = found;
    } else {
      ordered_sum(on, sum_of_gates(found));
    }
  }
  if (chunks == nullptr) input_gradients(f, d_days, used, p.d_x, p.d_g, day_rows, on);
  return d_days;
}

#define HIERMT_INSTANTIATE(S)                                                                   \
  template Compute<S>* gated_scan_backward<S>(const GatedScanBackward<S, Compute<S>>&, Stream&, \
                                              GateGradChunks<Compute<S>>*);
HIERMT_FOR_EACH_STORAGE(HIERMT_INSTANTIATE)
#undef HIERMT_INSTANTIATE

}  // namespace hiermt::cuda
