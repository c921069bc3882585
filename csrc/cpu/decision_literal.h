// The output linear and the heads of the decision one after the other, forward and backward. The folded map
// of decision.h propagates an infinity or an overflow differently, so results that are not finite are
// recomputed here. This path is rare and not optimised.
#pragma once

#include "cpu/decision.h"

namespace hiermt::cpu::HIERMT_ISA {

template <class C>
HIERMT_INLINE bool is_finite(C value) {
  return value - value == C(0);
}

template <class S>
HIERMT_INLINE bool is_used(const DecisionBackward<S, Compute<S>>& p, int j) {
  return (j < 2 ? p.d_signal_logits : p.d_direction_logits) != nullptr;
}

// Cotangent of logit j of a row, zero for a head that was not used.
template <class S, class C = Compute<S>>
HIERMT_INLINE C logit_cotangent(const DecisionBackward<S, C>& p, int64_t row, int j) {
  const S* d_logits = j < 2 ? p.d_signal_logits : p.d_direction_logits;
  return d_logits == nullptr ? C(0) : to_compute(d_logits[2 * row + j % 2]);
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

// Cotangent of channel k of the output linear for one row.
template <class S, class C = Compute<S>>
C feature_cotangent(const DecisionBackward<S, C>& p, int64_t row, int64_t k) {
  C sum = C(0);
  for (int j = 0; j < kLogits; ++j) {
    if (!is_used<S>(p, j)) continue;
    sum += logit_cotangent<S>(p, row, j) * to_compute(head_row(p.weights, p.features, j)[k]);
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

// Gradient of row k of the output linear: column c < H of its weight, or its bias for c = H.
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
  C sum = C(0);
  for (int64_t row = 0; row < p.rows; ++row) {
    const C feature = literal_feature(p.weights, p.h + row * p.stride_row, p.hidden, k);
    sum += logit_cotangent<S>(p, row, j) * feature;
  }
  return sum;
}

}  // namespace hiermt::cpu::HIERMT_ISA
