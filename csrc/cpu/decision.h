// The linear map from the hidden state to the logits, shared by the forward and the backward of the decision.
#pragma once

#include "cpu/simd/memory.h"
#include "cpu/simd/simd.h"
#include "cpu/support/scratch.h"
#include "params.h"

namespace hiermt::cpu::HIERMT_ISA {

constexpr int kLogits = 4;  // noise, signal, down, up

// Row j of the two stacked heads.
template <class S>
HIERMT_INLINE const S* head_row(const DecisionWeights<S>& weights, int64_t features, int j) {
  return (j < 2 ? weights.signal_weight : weights.direction_weight) + (j % 2) * features;
}

// The output linear and the heads, without a nonlinearity between them, folded into one linear map from H
// channels to four logits: 4 H multiplications a row instead of (H + 4) * features.
template <class C>
struct FoldedHeads {
  C* weight;  // [4, H]
  C* bias;    // [4]
};

template <class S, class C = Compute<S>>
FoldedHeads<C> fold_heads(ScratchFrame& frame, const DecisionWeights<S>& weights, int64_t features,
                          int64_t hidden) {
  FoldedHeads<C> folded{frame.take<C>(kLogits * hidden), frame.take<C>(kLogits)};
  double* weight = frame.take<double>(hidden);
  for (int j = 0; j < kLogits; ++j) {
    for (int64_t c = 0; c < hidden; ++c) weight[c] = 0;
    const S* bias = j < 2 ? weights.signal_bias : weights.direction_bias;
    double sum = bias == nullptr ? 0 : to_compute(bias[j % 2]);
    const S* head = head_row(weights, features, j);
    for (int64_t k = 0; k < features; ++k) {
      const double factor = to_compute(head[k]);
      sum += factor * to_compute(weights.out_bias[k]);
      for (int64_t c = 0; c < hidden; ++c)
        weight[c] += factor * to_compute(weights.out_weight[k * hidden + c]);
    }
    // One rounding from float64, so that folding costs no accuracy.
    for (int64_t c = 0; c < hidden; ++c) folded.weight[j * hidden + c] = static_cast<C>(weight[c]);
    folded.bias[j] = static_cast<C>(sum);
  }
  return folded;
}

}  // namespace hiermt::cpu::HIERMT_ISA
