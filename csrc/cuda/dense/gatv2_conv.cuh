// What the forward and the backward of the GATv2 convolution share: the projections of both ends of an edge,
// the score of an edge, and how rows are given to lanes.
//
// A group of lanes owns one row (node, step) and walks the entries of its node; each lane holds a few
// channels. Neighbouring groups are neighbouring steps of the same node, so they walk the same entries side
// by side: the trip counts of a warp agree almost always, and what a warp loads of a neighbour lies in one
// piece.
#pragma once

#include "cuda/dense/gatv2_conv.h"
#include "cuda/dense/linear.cuh"

namespace hiermt::cuda {

constexpr int kGatThreads = 128;

// lin_l and lin_r as one matrix with 2H columns.
template <class S>
struct PairWeights {
  GatV2Weights<S> weights;
  int inputs, hidden;

  __device__ Compute<S> weight(int k, int n) const {
    return n < hidden ? load(weights.lin_l_weight + n * inputs + k)
                      : load(weights.lin_r_weight + (n - hidden) * inputs + k);
  }
  __device__ Compute<S> bias(int n) const {
    return n < hidden ? load(weights.lin_l_bias + n) : load(weights.lin_r_bias + n - hidden);
  }
};

// x_l and x_r [N * T, H] of the rows, in the compute type.
template <class S>
cudaError_t project_pair(const GatV2ConvForward<S>& p, Compute<S>* x_l, Compute<S>* x_r,
                         cudaStream_t stream) {
  const int hidden = static_cast<int>(p.hidden), channels = static_cast<int>(p.x.channels);
  const int64_t rows = p.graph.copies * p.graph.num_nodes * p.steps;
  return linear<Compute<S>>(
      SequenceRows<S>{p.x, static_cast<int>(p.graph.num_nodes), static_cast<int>(p.steps)},
      PairWeights<S>{p.weights, channels, hidden}, PairOut<Compute<S>>{x_l, x_r, hidden}, rows, channels,
      2 * hidden, stream, use_tensor_cores<S>(p.tf32));
}

// leaky_relu of a score's argument: the larger of two lines, which costs no comparison and keeps NaN.
__device__ __forceinline__ float attention_leaky(float z) {
  return fmaxf(z, static_cast<float>(kAttentionSlope) * z);
}
__device__ __forceinline__ double attention_leaky(double z) {
  return fmax(z, kAttentionSlope * z);
}

// The channels of one lane: what is the same for every edge it scores.
template <class S, int kHidden>
struct GatV2Lane {
  using C = Compute<S>;
  static constexpr int kChannels = ChannelSplit<kHidden>::kChannels;

  C att[kChannels], edge[kChannels];

  __device__ GatV2Lane(const GatV2Weights<S>& weights, const ChannelSplit<kHidden>& split, int first) {
    split.load_any(weights.att, first, att);
    if (weights.lin_edge_weight != nullptr) {
      split.load_any(weights.lin_edge_weight, first, edge);
    } else {
#pragma unroll
      for (int v = 0; v < kChannels; ++v) edge[v] = C(0);
    }
  }
  // What enters the leaky_relu of a score.
  __device__ __forceinline__ C argument(C source, C target, C edge_weight, int v) const {
    return source + (target + edge_weight * edge[v]);
  }
  __device__ __forceinline__ C partial_score(const C (&source)[kChannels], const C (&target)[kChannels],
                                             C edge_weight) const {
    C score = C(0);
#pragma unroll
    for (int v = 0; v < kChannels; ++v) {
      const C z = argument(source[v], target[v], edge_weight, v);
      score += att[v] * attention_leaky(z);
    }
    return score;
  }
};

// Maximum, denominator and weighted sums of a softmax that sees its entries once, in one place or in pairs.
template <class C>
struct OnlineSoftmax {
  C top = C(-INFINITY), total = C(0);
  C keep, weight, second_weight;  // factor of what was summed before, and of the entries just seen

  __device__ __forceinline__ void see(C score) {
    const C distance = score - top;
    const bool higher = distance > C(0);
    const C smaller = exponential(higher ? -distance : distance);
    keep = higher ? smaller : C(1);
    // An entry at -inf has no part, even if nothing higher has been seen.
    weight = higher ? C(1) : score == C(-INFINITY) ? C(0) : smaller;
    top = higher ? score : top;
    total = total * keep + weight;
  }
  // Two entries with one change of scale; without the second its score is -inf.
  __device__ __forceinline__ void see(C first, C second) {
    const C higher = fmax(top, fmax(first, second));
    const C shift = higher == C(-INFINITY) ? C(0) : higher;
    keep = exponential(top - shift);
    weight = exponential(first - shift);
    second_weight = exponential(second - shift);
    top = higher;
    total = total * keep + (weight + second_weight);
  }
  // An infinite maximum is inf - inf in the definition, hence NaN.
  __device__ __forceinline__ C scale() const { return C(1) / (total + C(kSoftmaxEpsilon) + (top - top)); }
};

}  // namespace hiermt::cuda
