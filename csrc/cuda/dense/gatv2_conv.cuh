// Parts of the GATv2 convolution for forward and backward (PyG's GATv2Conv): with entry e = (j -> i),
//
//   x_l = W_l x + b_l     x_r = W_r x + b_r     z = x_l[j] + x_r[i] + W_e w_e
//   score = att . leaky_0.2(z)     alpha = softmax of score over the entries of i
//   out_i = activation(sum_j alpha x_l[j] + bias)
//
// Each lane of a group holds 8 channels: x_j is its part of x_l[j], x_i that of x_r[i].
//
// With kMasked an entry whose source is not there does not count. The weight of a row's loop, its last entry, is
// then the mean of the entries that do; a row that is not there has none.
#pragma once

#include "cuda/dense/conv_rows.cuh"
#include "cuda/dense/linear.cuh"

namespace hiermt::cuda {

// lin_l and lin_r as two groups of H channels.
template <class S>
struct PairWeights {
  GatV2Weights<S> weights;
  int inputs;

  __device__ Compute<S> weight(int k, int group, int c) const {
    return load((group == 0 ? weights.lin_l_weight : weights.lin_r_weight) + c * inputs + k);
  }
  __device__ Compute<S> bias(int group, int c) const {
    return load((group == 0 ? weights.lin_l_bias : weights.lin_r_bias) + c);
  }
};

// Writes x_l and x_r, [N * T, H].
template <class S>
void project_pair(const GatV2Forward<S>& p, Compute<S>* x_l, Compute<S>* x_r, Stream& on) {
  const int hidden = static_cast<int>(p.hidden), channels = static_cast<int>(p.x.channels);
  linear<Compute<S>, 2>(SequenceRows<S>::of(p), PairWeights<S>{p.weights, channels},
                        DenseOut<Compute<S>>{x_l, hidden, p.hidden, x_r - x_l}, p.rows(), p.hidden,
                        rounds_operands<S>(p.tf32), on);
}

// leaky_relu as a maximum, which needs no comparison. leaky_relu(NaN) is NaN, since both operands are.
__device__ __forceinline__ float attention_leaky(float z) {
  return fmaxf(z, static_cast<float>(kAttentionSlope) * z);
}
__device__ __forceinline__ double attention_leaky(double z) {
  return fmax(z, kAttentionSlope * z);
}

// The channels of att and W_e that a lane holds.
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
  // Channel v of z.
  __device__ __forceinline__ C argument(C x_j, C x_i, C edge_weight, int v) const {
    return x_j + (x_i + edge_weight * edge[v]);
  }
  __device__ __forceinline__ C partial_score(const C (&x_j)[kChannels], const C (&x_i)[kChannels],
                                             C edge_weight) const {
    C score = C(0);
#pragma unroll
    for (int v = 0; v < kChannels; ++v) {
      const C z = argument(x_j[v], x_i[v], edge_weight, v);
      score += att[v] * attention_leaky(z);
    }
    return score;
  }
};

// An entry of a row.
template <class C>
struct GatV2Entry {
  bool active;  // whether it counts
  int64_t row;  // of its source
  C edge_weight;
};

// The entries of a row (node, step), walked by a group of lanes together with the other groups of the warp.
template <class S, bool kMasked>
struct GatV2Entries {
  using C = Compute<S>;
  int steps;
  RowIndex at;
  int64_t step_row;  // of node 0 at the same step
  int begin, degree;
  bool there = true;
  C share = C(1);  // with kMasked: of each entry that counts beside the loop, in the weight of the loop
  C loop_weight = C(0);

  // `inside`: whether the group has a row, or repeats one of another group.
  __device__ GatV2Entries(const GatV2Forward<S>& p, int row, bool inside)
      : steps(static_cast<int>(p.steps)),
        at(row, static_cast<int>(p.graph.num_nodes), steps),
        step_row(static_cast<int64_t>(at.copy) * p.graph.num_nodes * steps + at.step),
        begin(p.graph.rowptr[at.node]),
        degree(inside ? p.graph.rowptr[at.node + 1] - begin : 0) {
    if constexpr (kMasked) there = p.present[row];
  }
  __device__ int64_t row_of(int node) const { return step_row + static_cast<int64_t>(node) * steps; }
  // Finds the weight of the loop. All lanes of the warp call it; `member` is the lane in its group.
  __device__ __forceinline__ void find_loop_weight(const GatV2Forward<S>& p, int member, int lanes) {
    if (p.edge_weight == nullptr) return;
    C sum = C(0);
    int others = 0;
    for (int k = member; k < degree - 1; k += lanes) {
      if (!p.present[row_of(p.graph.col[begin + k])]) continue;
      sum += load(p.edge_weight + begin + k);
      ++others;
    }
    others = group_sum(others, lanes);
    share = C(1) / static_cast<C>(others > 0 ? others : 1);
    loop_weight = group_sum(sum, lanes) * share;
  }
  __device__ __forceinline__ GatV2Entry<C> entry(const GatV2Forward<S>& p, int k) const {
    bool active = k < degree;
    const int source = active ? p.graph.col[begin + k] : at.node;
    C weight = active && p.edge_weight != nullptr ? load(p.edge_weight + begin + k) : C(0);
    const int64_t row = row_of(source);
    if constexpr (kMasked) {
      active = active && there && p.present[row];
      if (k == degree - 1) weight = loop_weight;
    }
    return {active, row, weight};
  }
};

// Online softmax (as in FlashAttention): maximum and denominator of the scores so far. A sum over the entries
// is updated by sum = sum * rescale + weight * value.
template <class C>
struct OnlineSoftmax {
  C max = C(-INFINITY), sum = C(0);
  C rescale, weight, second_weight;  // factors of the sums so far and of the entries of the last update

  __device__ __forceinline__ void update(C score) {
    const C distance = score - max;
    const bool higher = distance > C(0);
    const C smaller = softmax_weight(higher ? -distance : distance);
    rescale = higher ? smaller : C(1);
    // An entry at -inf has weight 0, even if the maximum is -inf too.
    weight = higher ? C(1) : score == C(-INFINITY) ? C(0) : smaller;
    max = higher ? score : max;
    sum = sum * rescale + weight;
  }
  // Two entries with one rescaling. -inf stands for a missing second entry.
  __device__ __forceinline__ void update(C first, C second) {
    const C higher = fmax(max, fmax(first, second));
    const C shift = higher == C(-INFINITY) ? C(0) : higher;
    rescale = softmax_weight(max - shift);
    weight = softmax_weight(first - shift);
    second_weight = softmax_weight(second - shift);
    max = higher;
    sum = sum * rescale + (weight + second_weight);
  }
  // Reciprocal of the denominator. An infinite maximum gives NaN, as inf - inf in the definition.
  __device__ __forceinline__ C scale() const { return C(1) / (sum + C(kSoftmaxEpsilon) + (max - max)); }
};

// sum_k alpha_k d_alpha_k of an online softmax, relative to d_alpha of the largest score: the rounding of a
// difference is multiplied with another coefficient, which is small where the softmax is saturated and d_score
// with it. The coefficients add up to 1 but for a rounding, too, which is then multiplied with no mean.
template <class C>
struct CotangentMean {
  C pivot = C(0), sum = C(0);

  // After softmax.update(score); `before` is its sum before that.
  __device__ __forceinline__ void update(const OnlineSoftmax<C>& softmax, C before, C d_alpha) {
    const C next = d_alpha - d_alpha == C(0) ? d_alpha : C(0);
    if (softmax.rescale != C(1)) {
      sum = sum * softmax.rescale + before * softmax.rescale * (pivot - next);
      pivot = next;
    }
    sum += softmax.weight * (d_alpha - pivot);
  }
  __device__ __forceinline__ C d_score(C alpha, C d_alpha, C scale) const {
    return alpha * (d_alpha - pivot - sum * scale);
  }
};

}  // namespace hiermt::cuda
