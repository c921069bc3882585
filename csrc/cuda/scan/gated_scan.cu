// The gated scan, forward (arXiv 1811.05320, eqs. 3 to 6). With z = W [x, g] + b the input projection:
//
//   u = sigmoid(z_u + W_u h_{t-1})     r = sigmoid(z_r + W_r h_{t-1})
//   c = tanh(z_c + W_c (r * h_{t-1}))  h_t = u * h_{t-1} + (1 - u) * c
//
// With kMasked a node that is not there at a step holds its state: h_t = h_{t-1}.
//
// With windows the input projection is computed once a day, and the recurrence of each window reads it in place.
//
// A block that has the last states of its nodes can decide on them, so that no launch reads them again.
#include "cuda/operators.h"
#include "cuda/scan/decision_of_states.cuh"
#include "cuda/scan/team.cuh"

namespace hiermt::cuda {
namespace {

template <class S, class Team, bool kMasked>
__global__ void __launch_bounds__(Team::kThreads, Team::kMinBlocks)
    gated_scan_fwd_kernel(GatedScanForward<S> p, const Compute<S>* input_projection, WindowDays days,
                          typename Team::Weights weights, const typename Team::Pair* packed, int nodes,
                          DecisionForward<S> decision) {
  using C = Compute<S>;
  SharedMemory memory;
  const Team team(weights, packed, memory);
  typename Team::Exchange state(team, memory), reset(team, memory);
  const int hidden = team.hidden(), steps = static_cast<int>(p.steps);
  const bool packed_inputs = packs<4>(input_projection, hidden);
  const bool packed_h0 = packs<4>(p.h0, hidden), packed_h = packs<4>(p.h, hidden),
             packed_last = packs<4>(p.h_last, hidden);

  C h[2][4], next[3][2][4] = {};
  const C* inputs[2];
  S* outputs[2];
  const bool* present[2] = {};
  bool inside[2];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    // Lanes past the last node repeat it and write nothing.
    inside[i] = team.node(i) < nodes;
    const int64_t node = inside[i] ? team.node(i) : nodes - 1;
    const int64_t first_input = days.first_row(static_cast<int>(node));
    inputs[i] = input_projection + first_input * (3 * hidden);
    outputs[i] = p.h + node * steps * hidden;
    if constexpr (kMasked) present[i] = p.present + first_input;
    team.read(p.h0 == nullptr ? nullptr : p.h0 + node * hidden, packed_h0, h[i]);
  }
  const auto read_inputs = [&] {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
#pragma unroll
      for (int gate = 0; gate < 3; ++gate) {
        team.read(inputs[i] + gate * hidden, packed_inputs, next[gate][i]);
      }
      inputs[i] += 3 * hidden;
    }
  };
  if (Team::kPrefetch && steps > 0) read_inputs();
  for (int t = 0; t < steps; ++t) {
    if (!Team::kPrefetch) read_inputs();
    typename Team::template Sums<2> gates;
    typename Team::template Sums<1> candidate;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      gates.set(i, next[0][i]);
      gates.set(2 + i, next[1][i]);
      candidate.set(i, next[2][i]);
    }
    if (Team::kPrefetch && t + 1 < steps) read_inputs();
    state.put(h);
    team.sync();
    team.multiply(gates, 0, state);
    C reset_state[2][4];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
#pragma unroll
      for (int k = 0; k < 4; ++k) reset_state[i][k] = sigmoid(gates.value(2 + i, k)) * h[i][k];
    }
    reset.put(reset_state);
    team.sync();
    team.multiply(candidate, 2, reset);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const bool there = !kMasked || present[i][t];
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        const C u = sigmoid(gates.value(i, k));
        const C updated = u * h[i][k] + (C(1) - u) * tanh(candidate.value(i, k));
        h[i][k] = there ? updated : h[i][k];
      }
      if (p.h != nullptr && inside[i]) team.write(outputs[i], packed_h, h[i]);
      outputs[i] += hidden;
    }
  }
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    if (p.h_last == nullptr || !inside[i]) continue;
    team.write(p.h_last + static_cast<int64_t>(team.node(i)) * hidden, packed_last, h[i]);
  }
  if (decision.rows == 0) return;
  team.sync();
  using Decision = DecisionOfStates<S, ScanTraits::kNodes>;
  const auto states = [&] {
    if constexpr (Team::kAlone) return Decision(hidden, memory);
    // From its own number of channels, so that no register holds an address through all steps.
    const int width = static_cast<int>(decision.hidden);
    return Decision(width, Team::exchanged(width, 0), Team::Exchange::stride(width),
                    Team::exchanged(width, 1));
  }();
  const int first_node = static_cast<int>(blockIdx.x) * ScanTraits::kNodes;
#pragma unroll
  for (int i = 0; i < 2; ++i) states.put(team.node(i) - first_node, team.channel(), hidden, h[i]);
  states.decide(decision, first_node);
}

}  // namespace

template <class S>
void gated_scan_forward(const GatedScanForward<S>& p, Stream& on, const DecisionForward<S>* decision) {
  using C = Compute<S>;
  const int hidden = static_cast<int>(p.hidden), inputs = static_cast<int>(p.x.channels + p.g_channels);
  const int64_t rows = p.copies * p.num_nodes * p.steps;
  C* const input_projection = on.take<C>(rows * 3 * p.hidden);
  linear<C, 3>(GateRows<S>(p, true, false), GateColumns<S>{p.weights, inputs + hidden},
               DenseOut<C>{input_projection, hidden, 3 * p.hidden, p.hidden}, rows, p.hidden,
               rounds_operands<S>(p.tf32), on);
  gated_scan_recurrence(p, input_projection, on, decision);
}

template <class S>
void gated_scan_recurrence(const GatedScanForward<S>& given, const Compute<S>* input_projection, Stream& on,
                           const DecisionForward<S>* decision) {
  const WindowDays days(given);
  const GatedScanForward<S> p = over_windows(given);
  dispatch_team<S, false>(p, 2, on, [&](const auto& scan) {
    using Team = typename std::decay_t<decltype(scan)>::Team;
    // What several warps exchange takes more.
    const size_t deciding = decision == nullptr || !Team::kAlone
                                ? 0
                                : DecisionOfStates<S, ScanTraits::kNodes>::shared_bytes(p.hidden);
    dispatch_masked(p.present, [&](auto masked) {
      launch(gated_scan_fwd_kernel<S, Team, masked>, scan.blocks, scan.threads, scan.shared_bytes + deciding,
             on, p, input_projection, days, scan.weights, scan.packed, p.copies * p.num_nodes,
             decision == nullptr ? DecisionForward<S>{} : *decision);
    });
  });
}

#define HIERMT_INSTANTIATE(S)                                                                          \
  template void gated_scan_forward<S>(const GatedScanForward<S>&, Stream&, const DecisionForward<S>*); \
  template void gated_scan_recurrence<S>(const GatedScanForward<S>&, const Compute<S>*, Stream&,       \
                                         const DecisionForward<S>*);
HIERMT_FOR_EACH_STORAGE(HIERMT_INSTANTIATE)
#undef HIERMT_INSTANTIATE

}  // namespace hiermt::cuda
