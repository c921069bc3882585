// The two linears of the decision one after the other, forward and backward. The kernels fold them into one
// map and sum over the rows first, through which what is not finite (an infinite weight, a feature that
// overflows) spreads otherwise: such results are computed again here, without haste.
#pragma once

#include "cpu/decision.h"

namespace hiermt {
namespace cpu {
namespace HIERMT_ISA {

template <class C>
HIERMT_INLINE bool is_finite(C value) {
  return value - value == C(0);
}

template <class S>
HIERMT_INLINE bool is_used(const DecisionBackward<S, Compute<S>>& p, int j) {
  return (j < 2 ? p.d_signal_logits : p.d_direction_logits) != nullptr;
}

// Channel k of the output linear for one row of h.
template <class S, class C = Compute<S>>
C literal_feature(const DecisionWeights<S>& w, const S* h, int64_t hidden, int64_t k) {
  C feature = to_compute(w.out_bias[k]);
  for (int64_t c = 0; c < hidden; ++c) feature += to_compute(w.out_weight[k * hidden + c]) * to_compute(h[c]);
  return feature;
}

template <class S, class C = Compute<S>>
HIERMT_NOINLINE void literal_logits(const DecisionWeights<S>& w, const S* h, int64_t hidden, int64_t features,
                                    C (&logits)[kLogits]) {
  for (int j = 0; j < kLogits; ++j) logits[j] = to_compute((j < 2 ? w.signal_bias : w.direction_bias)[j % 2]);
  for (int64_t k = 0; k < features; ++k) {
    const C feature = literal_feature(w, h, hidden, k);
    for (int j = 0; j < kLogits; ++j) logits[j] += to_compute(head_row(w, features, j)[k]) * feature;
  }
}

// The cotangent of channel k of the output linear, for one row.
template <class S, class C = Compute<S>>
C feature_cotangent(const DecisionBackward<S, C>& p, int64_t row, int64_t k) {
  C sum = C(0);
  for (int j = 0; j < kLogits; ++j) {
    if (!is_used<S>(p, j)) continue;
    const S* grad = j < 2 ? p.d_signal_logits : p.d_direction_logits;
    sum += to_compute(grad[2 * row + j % 2]) * to_compute(head_row(p.weights, p.features, j)[k]);
  }
  return sum;
}

template <class S, class C = Compute<S>>
HIERMT_NOINLINE C literal_hidden_gradient(const DecisionBackward<S, C>& p, int64_t row, int64_t c) {
  C sum = C(0);
  for (int64_t k = 0; k < p.features; ++k) {
    sum += feature_cotangent<S>(p, row, k) * to_compute(p.weights.out_weight[k * p.hidden + c]);
  }
  return sum;
}

// Of the output linear, column c < H of its weight or its bias.
template <class S, class C = Compute<S>>
HIERMT_NOINLINE C literal_out_gradient(const DecisionBackward<S, C>& p, int64_t k, int64_t c) {
  C sum = C(0);
  for (int64_t row = 0; row < p.rows; ++row) {
    const C cotangent = feature_cotangent<S>(p, row, k);
    sum += c < p.hidden ? cotangent * to_compute(p.h[row * p.stride_row + c]) : cotangent;
  }
  return sum;
}

template <class S, class C = Compute<S>>
HIERMT_NOINLINE C literal_head_gradient(const DecisionBackward<S, C>& p, int j, int64_t k) {
  const S* grad = j < 2 ? p.d_signal_logits : p.d_direction_logits;
  C sum = C(0);
  for (int64_t row = 0; row < p.rows; ++row) {
    sum +=
        to_compute(grad[2 * row + j % 2]) * literal_feature(p.weights, p.h + row * p.stride_row, p.hidden, k);
  }
  return sum;
}

}  // namespace HIERMT_ISA
}  // namespace cpu
}  // namespace hiermt
