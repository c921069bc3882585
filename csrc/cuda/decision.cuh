// Device functions of the decision: folding the heads, and softmax and decision of a row of logits.
#pragma once

#include "cuda/support/device.cuh"

namespace hiermt::cuda {

constexpr int kLogits = 4;  // noise, signal, down, up

// Lanes that share the channels of a row, four at a time. They decide on the order of its sums.
constexpr int kDecisionChannels = 4;   // of a load: 16 bytes of float32
constexpr int kMostDecisionLanes = 8;  // 8 rows a lane: more partial sums would spill
__host__ __device__ constexpr int decision_lanes(int64_t hidden) {
  int lanes = 1;
  while (lanes < kMostDecisionLanes && lanes * kDecisionChannels < hidden) lanes *= 2;
  return lanes;
}

template <class S>
__device__ __forceinline__ const S* head_row(const DecisionWeights<S>& weights, int64_t features, int j) {
  return (j < 2 ? weights.signal_weight : weights.direction_weight) + (j % 2) * features;
}

// Folds the output linear into the heads: heads W_out [4, H] and its bias [4]. There is no nonlinearity
// between them. All threads of a block call it; ends with a barrier.
template <class S, class C>
__device__ void fold_heads(const DecisionWeights<S>& weights, int64_t features, int64_t hidden, C* folded,
                           C* bias) {
  // Both fit shared memory.
  const int width = static_cast<int>(hidden);
  for (int i = static_cast<int>(threadIdx.x); i < kLogits * width; i += static_cast<int>(blockDim.x)) {
    const int j = i / width, c = i % width;
    const S* head = head_row(weights, features, j);
    double sum = 0;
    for (int64_t k = 0; k < features; ++k)
      sum += double(load(head + k)) * load(weights.out_weight + k * hidden + c);
    folded[i] = C(sum);
  }
  if (bias != nullptr && threadIdx.x < kLogits) {
    const int j = static_cast<int>(threadIdx.x);
    const S* head = head_row(weights, features, j);
    double sum = load((j < 2 ? weights.signal_bias : weights.direction_bias) + j % 2);
    for (int64_t k = 0; k < features; ++k) sum += double(load(head + k)) * load(weights.out_bias + k);
    bias[j] = C(sum);
  }
  __syncthreads();
}

// Whether a number is neither infinite nor NaN.
template <class C>
__device__ __forceinline__ bool is_finite(C value) {
  return value - value == C(0);
}

// Channel k of the output linear for one row of h, of any type.
template <class Row, class S, class C = Compute<S>>
__device__ __forceinline__ C literal_feature(const Row* h, const S* out_weight, const S* out_bias,
                                             int64_t hidden, int64_t k) {
  C feature = load(out_bias + k);
#pragma unroll 1
  for (int64_t c = 0; c < hidden; ++c)
    feature = fma(C(load(out_weight + k * hidden + c)), C(load(h + c)), feature);
  return feature;
}

// One logit without folding. Infinite weights or states and overflowing features propagate differently
// through the folded weights, so rows with a logit that is not finite are recomputed with it.
template <class Row, class S, class C = Compute<S>>
__device__ __forceinline__ C literal_logit(const Row* h, const S* out_weight, const S* out_bias,
                                           const S* head, const S* head_bias, int64_t hidden,
                                           int64_t features) {
  C logit = load(head_bias);
#pragma unroll 1
  for (int64_t k = 0; k < features; ++k) {
    logit = fma(C(load(head + k)), literal_feature(h, out_weight, out_bias, hidden, k), logit);
  }
  return logit;
}

template <class S>
__device__ __forceinline__ Compute<S> rounded(Compute<S> value) {
  S stored;
  store(&stored, value);
  return load(&stored);
}

// Softmax of two logits, rounded to the storage type. A maximum of +inf gives NaN as torch.softmax does.
template <class S, class C = Compute<S>>
__device__ __forceinline__ void softmax(C a, C b, C& p_a, C& p_b) {
  const bool b_larger = b > a;
  const C max = b_larger ? b : a;
  const C e = exp(b_larger ? a - b : b - a) + (max - max);
  const C larger = rounded<S>(C(1) / (C(1) + e)), smaller = rounded<S>(e / (C(1) + e));
  p_a = b_larger ? smaller : larger;
  p_b = b_larger ? larger : smaller;
}

// Decides on the rounded probabilities that are returned, so that both agree. The threshold is rounded, too, as torch
// does when it compares a tensor with a scalar.
template <class S, class C>
__device__ __forceinline__ void decide(const C (&logits)[kLogits], double threshold,
                                       const DecisionOutputs<S>& outputs, int64_t row) {
  C noise, signal, down, up;
  softmax<S>(logits[0], logits[1], noise, signal);
  softmax<S>(logits[2], logits[3], down, up);
  const bool is_signal = signal > rounded<S>(C(threshold)), is_up = up > down;
  if (outputs.probabilities != nullptr) {
    Pack<S, 4> pack;
    store(&pack.values[0], noise), store(&pack.values[1], signal);
    store(&pack.values[2], down), store(&pack.values[3], up);
    reinterpret_cast<Pack<S, 4>*>(outputs.probabilities)[row] = pack;
  }
  if (outputs.predictions != nullptr) outputs.predictions[row] = is_signal ? (is_up ? 2 : 0) : 1;
  if (outputs.confidences != nullptr) {
    store(outputs.confidences + row, is_signal ? (is_up ? up : down) : (signal > noise ? signal : noise));
  }
}

// Everything after the product of a row of h and the folded heads.
template <class S, class Row, class C = Compute<S>>
__device__ __forceinline__ void decide_row(const DecisionForward<S>& p, const C (&products)[kLogits],
                                           const C* bias, const Row* h, int64_t row) {
  C logits[kLogits];
  Pack<S, 2> signal, direction;
#pragma unroll
  for (int j = 0; j < kLogits; ++j) logits[j] = products[j] + bias[j];
  if (!is_finite((logits[0] + logits[1]) + (logits[2] + logits[3]))) {
    const DecisionWeights<S>& w = p.weights;
    // Unrolled, it takes registers that the other rows lack.
#pragma unroll 1
    for (int j = 0; j < kLogits; ++j) {
      const C literal =
          literal_logit(h, w.out_weight, w.out_bias, head_row(w, p.features, j),
                        (j < 2 ? w.signal_bias : w.direction_bias) + j % 2, p.hidden, p.features);
#pragma unroll
      for (int i = 0; i < kLogits; ++i) logits[i] = i == j ? literal : logits[i];
    }
  }
#pragma unroll
  for (int j = 0; j < kLogits; ++j) {
    S* at = (j < 2 ? signal : direction).values + j % 2;
    store(at, logits[j]);
    logits[j] = load(at);
  }
  if (p.signal_logits != nullptr) reinterpret_cast<Pack<S, 2>*>(p.signal_logits)[row] = signal;
  if (p.direction_logits != nullptr) reinterpret_cast<Pack<S, 2>*>(p.direction_logits)[row] = direction;
  decide<S>(logits, p.threshold, p.outputs, row);
}

}  // namespace hiermt::cuda
