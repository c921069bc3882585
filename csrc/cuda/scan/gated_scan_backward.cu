// The gated scan, backward. d_u, d_r and d_c are the cotangents of the gates before their nonlinearity, s is
// the reset state r * h_{t-1}:
//
//   d_c = d_h (1 - u) (1 - c^2)     d_u = d_h (h_{t-1} - c) u (1 - u)     d_s = W_c^T d_c
//   d_r = d_s h_{t-1} r (1 - r)     d_h_{t-1} += d_h u + d_s r + W_u^T d_u + W_r^T d_r
//
// One launch computes all of it where fused/scan_backward.h fits. Elsewhere the gates are recomputed from the states for
// all steps, the scan writes d_u, d_r and d_c, and dense layers over all steps derive the gradients of inputs and weights.
//
// With windows the backward of the recurrence runs per window. The cotangents of the input projection are then summed
// over the windows that contain a day, and the gradients of x, g and the input columns are computed per day.
//
// With kMasked the cotangents of the gates of a node that is not there are zero, and d_h_{t-1} is d_h, whatever its
// state and the weights are: zero times what is not finite is not zero.
#include "cuda/fused/scan_backward.h"
#include "cuda/scan/gate_backward.cuh"
#include "cuda/scan/team.cuh"
#include "cuda/scan/window_sums.cuh"

namespace hiermt::cuda {
namespace {

// The saved values that a step reads, in the channels of a lane of one node.
template <class C>
struct SavedStep {
  C u[4], r[4], candidate[4], h_prev[4], d_h[4];
};

template <class S, class Team, bool kMasked>
__global__ void __launch_bounds__(Team::kThreads)
    gated_scan_bwd_kernel(GatedScanBackward<S, Compute<S>> p, WindowDays days, ResetGate<S> reset,
                          typename Team::Weights weights, const typename Team::Pair* packed,
                          Compute<S>* d_gates, int nodes) {
  using C = Compute<S>;
  const GatedScanForward<S>& f = p.forward;
  SharedMemory memory;
  const Team team(weights, packed, memory);
  typename Team::Exchange all_d_u(team, memory), all_d_r(team, memory), all_d_c(team, memory);
  const int hidden = team.hidden(), steps = static_cast<int>(f.steps);
  const bool packed_gates = packs<4>(f.gates, hidden), packed_reset = packs<4>(reset.data, reset.stride),
             packed_d_gates = packs<4>(d_gates, hidden),
             packed_states = packs<4>(f.h, hidden) && packs<4>(f.h0), packed_d_h = packs<4>(p.d_h, hidden),
             packed_last = packs<4>(p.d_h_last, hidden), packed_d_h0 = packs<4>(p.d_h0, hidden);

  int64_t node[2];
  bool inside[2];
  const bool* present[2] = {};
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    // Lanes past the last node repeat it and write nothing.
    inside[i] = team.node(i) < nodes;
    node[i] = inside[i] ? team.node(i) : nodes - 1;
    if constexpr (kMasked) present[i] = f.present + days.first_row(static_cast<int>(node[i]));
  }
  const auto read_step = [&](int i, int t, SavedStep<C>& step) {
    const int64_t row = node[i] * steps + t;
    const S* const gates = f.gates + 3 * row * hidden;
    team.read(gates, packed_gates, step.u);
    team.read(reset.data + row * reset.stride, packed_reset, step.r);
    team.read(gates + 2 * hidden, packed_gates, step.candidate);
    const S* const initial = f.h0 != nullptr ? f.h0 + node[i] * hidden : nullptr;
    team.read(t > 0 ? f.h + (row - 1) * hidden : initial, packed_states, step.h_prev);
    team.read(p.d_h != nullptr ? p.d_h + row * hidden : nullptr, packed_d_h, step.d_h);
  };

  C carry[2][4];
  SavedStep<C> next[2];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    team.read(p.d_h_last != nullptr ? p.d_h_last + node[i] * hidden : nullptr, packed_last, carry[i]);
    if (Team::kPrefetch && steps > 0) read_step(i, steps - 1, next[i]);
  }
  for (int t = steps - 1; t >= 0; --t) {
    SavedStep<C> saved[2];
    C d_h[2][4], d_u[2][4], d_r[2][4], d_c[2][4];
    bool there[2];
    typename Team::template Sums<1> d_s, sums;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      if (!Team::kPrefetch) read_step(i, t, next[i]);
      saved[i] = next[i];
      if (Team::kPrefetch && t > 0) read_step(i, t - 1, next[i]);
      const SavedStep<C>& s = saved[i];
      there[i] = !kMasked || present[i][t];
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        const C d = d_h[i][k] = carry[i][k] + s.d_h[k];
        const C u = s.u[k], c = s.candidate[k];
        d_c[i][k] = there[i] ? d * (C(1) - u) * (C(1) - c * c) : C(0);
        d_u[i][k] = there[i] ? d * (s.h_prev[k] - c) * u * (C(1) - u) : C(0);
        carry[i][k] = d * u;
      }
      sums.set(i, carry[i]);
    }
    all_d_c.put(d_c);
    all_d_u.put(d_u);
    team.sync();
    team.multiply(d_s, 2, all_d_c);
    team.multiply(sums, 0, all_d_u);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const SavedStep<C>& s = saved[i];
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        const C d = d_s.value(i, k), r = s.r[k];
        d_r[i][k] = there[i] ? d * s.h_prev[k] * r * (C(1) - r) : C(0);
        carry[i][k] = sums.value(i, k) + d * r;
      }
      sums.set(i, carry[i]);
      if (!inside[i]) continue;
      C* const out = d_gates + (node[i] * steps + t) * 3 * hidden;
      team.write(out, packed_d_gates, d_u[i]);
      team.write(out + hidden, packed_d_gates, d_r[i]);
      team.write(out + 2 * hidden, packed_d_gates, d_c[i]);
    }
    all_d_r.put(d_r);
    team.sync();
    team.multiply(sums, 1, all_d_r);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
#pragma unroll
      for (int k = 0; k < 4; ++k) carry[i][k] = there[i] ? sums.value(i, k) : d_h[i][k];
    }
  }
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    if (inside[i] && p.d_h0 != nullptr) team.write(p.d_h0 + node[i] * hidden, packed_d_h0, carry[i]);
  }
}

}  // namespace

template <class S>
void gated_scan_backward(const GatedScanBackward<S, Compute<S>>& given, Stream& on,
                         GateGradChunks<Compute<S>>* chunks) {
  using C = Compute<S>;
  const GatedScanForward<S>& f = given.forward;
  const int hidden = static_cast<int>(f.hidden), inputs = static_cast<int>(f.x.channels + f.g_channels);
  // The sum over chunks is the caller's with `chunks`.
  const auto leave = [&](const C* partial, int64_t count) {
    if (given.grads.u_weight == nullptr) return;
    const GateGradChunks<C> found{partial, count, given.grads, inputs + hidden, hidden};
    chunks != nullptr ? void(*chunks = found) : ordered_sum(on, sum_of_gates(found));
  };
  if (fused_scan_backward_fits(f)) {
    C* const partial = on.take<C>(fused_scan_backward_values(f));
    return leave(partial, fused_scan_backward(given, partial, on));
  }
  GatedScanBackward<S, C> p = given;
  p.forward = over_windows(f);
  const WindowDays days(f);
  const bool windows = f.windows != nullptr;
  const int64_t day_rows = f.copies * f.num_nodes * f.steps;
  const int64_t rows = p.forward.copies * p.forward.num_nodes * p.forward.steps;

  // What is left behind comes first.
  const GateGrads<C>& all = p.grads;
  const bool one_sum = all.u_weight != nullptr && !windows;
  C* const partial = on.take<C>(one_sum ? weight_grad_values(rows, 3 * f.hidden, inputs + f.hidden) : 0);
  const Stream::Frame frame(on);
  C* const d_days = on.take<C>(day_rows * 3 * f.hidden);
  const GateWorkspace<S> gates(windows ? on.take<C>(rows * 3 * f.hidden) : d_days, rows, f.hidden,
                               windows ? nullptr : p.d_x, f.x.channels, on);
  int* const used = windows ? on.take<int>(f.steps) : nullptr;  // [D] whether a window contains the day
  p.forward.gates = gates.values;
  GateRows<S> in(p.forward, true, true);
  in.reset = gates.reset;
  in.windows = days;
  compute_gates(in, gates.values, rows, on);
  dispatch_team<S, true>(p.forward, 3, on, [&](const auto& scan) {
    using Team = typename std::decay_t<decltype(scan)>::Team;
    dispatch_masked(f.present, [&](auto masked) {
      launch(gated_scan_bwd_kernel<S, Team, masked>, scan.blocks, scan.threads, scan.shared_bytes, on, p,
             days, gates.reset, scan.weights, scan.packed, gates.d_gates,
             p.forward.copies * p.forward.num_nodes);
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
    leave(partial, grad_chunks(rows).count);
  }
  input_gradients(f, d_days, used, p.d_x, p.d_g, day_rows, on);
}

#define HIERMT_INSTANTIATE(S)                                                            \
  template void gated_scan_backward<S>(const GatedScanBackward<S, Compute<S>>&, Stream&, \
                                       GateGradChunks<Compute<S>>*);
HIERMT_FOR_EACH_STORAGE(HIERMT_INSTANTIATE)
#undef HIERMT_INSTANTIATE

}  // namespace hiermt::cuda
