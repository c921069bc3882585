// One GATv2 convolution of a stack on the items of a block (stack.cuh): its weights in shared memory, the
// projections of both ends of an edge, and the attention over the entries of a node.
#pragma once

#include "cuda/dense/gatv2_conv.cuh"
#include "cuda/fused/stack.cuh"

namespace hiermt::cuda {

// What of a convolution has one value a channel: biases of both projections, att, edge, bias, [5, H].
template <int kHidden>
struct ConvVectors {
  float* data;

  static constexpr int kValues = 5 * kHidden;

  explicit __device__ ConvVectors(float* data_) : data(data_) {}
  explicit __device__ ConvVectors(SharedMemory& memory) : data(memory.take<float>(kValues)) {}
  static size_t bytes() { return padded_bytes<float>(kValues); }

  template <class S>
  __device__ void fill(const GatV2Weights<S>& weights) const {
    for (int c = static_cast<int>(threadIdx.x); c < kHidden; c += static_cast<int>(blockDim.x)) {
      data[c] = load(weights.lin_l_bias + c);
      data[kHidden + c] = load(weights.lin_r_bias + c);
      data[2 * kHidden + c] = load(weights.att + c);
      data[3 * kHidden + c] = weights.lin_edge_weight != nullptr ? load(weights.lin_edge_weight + c) : 0.0f;
      data[4 * kHidden + c] = load(weights.bias + c);
    }
  }
  __device__ const float* source_bias() const { return data; }
  __device__ const float* target_bias() const { return data + kHidden; }
  __device__ const float* att() const { return data + 2 * kHidden; }
  __device__ const float* edge() const { return data + 3 * kHidden; }
  __device__ const float* bias() const { return data + 4 * kHidden; }
};

// Weights of one convolution, input channel by input channel.
template <int kHidden>
struct ConvMemory {
  float *source, *target;  // [F, H] each
  ConvVectors<kHidden> vectors;

  __device__ ConvMemory(SharedMemory& memory, int inputs)
      : source(memory.take<float>(inputs * kHidden)),
        target(memory.take<float>(inputs * kHidden)),
        vectors(memory) {}
  // In a piece of values(inputs) that somebody else has taken.
  __device__ ConvMemory(float* data, int inputs)
      : source(data), target(data + inputs * kHidden), vectors(data + 2 * inputs * kHidden) {}

  __host__ __device__ static constexpr int64_t values(int64_t inputs) {
    return 2 * inputs * kHidden + ConvVectors<kHidden>::kValues;
  }
  static size_t bytes(int64_t inputs) {
    return 2 * padded_bytes<float>(inputs * kHidden) + ConvVectors<kHidden>::bytes();
  }

  template <class S>
  __device__ void fill(const GatV2Weights<S>& weights, int inputs) const {
    vectors.fill(weights);
    if constexpr (kHidden > 32) {
      transpose_weights<kHidden>(weights.lin_l_weight, inputs, inputs, source, kHidden);
      transpose_weights<kHidden>(weights.lin_r_weight, inputs, inputs, target, kHidden);
      return;
    }
    for (int i = static_cast<int>(threadIdx.x); i < inputs * kHidden; i += static_cast<int>(blockDim.x)) {
      const int from = i % kHidden * inputs + i / kHidden;
      source[i] = load(weights.lin_l_weight + from);
      target[i] = load(weights.lin_r_weight + from);
    }
  }
};

// Both projections of each item, of x or of what a convolution left; `targets` may be the tile that is read.
template <int kHidden, int kLanes, class ForEachInput>
__device__ __forceinline__ void project_item(const ConvMemory<kHidden>& conv, int node, int step,
                                             unsigned mask, const Tile<kHidden, kLanes>& sources,
                                             const Tile<kHidden, kLanes>& targets,
                                             ForEachInput&& for_each_input) {
  float source[kHidden / kLanes], target[kHidden / kLanes];
  copy_channels<kHidden, kLanes>(conv.vectors.source_bias(), source);
  copy_channels<kHidden, kLanes>(conv.vectors.target_bias(), target);
  for_each_input([&](int k, float value) {
    add_scaled<kHidden, kLanes>(conv.source + k * kHidden, value, source);
    add_scaled<kHidden, kLanes>(conv.target + k * kHidden, value, target);
  });
  // Every lane of the item has read all of its row.
  if constexpr (kLanes > 1) __syncwarp(mask);
  sources.write(node, step, source);
  targets.write(node, step, target);
}

// The same for the items of one thread, all at once.
template <int kHidden, int kItems, class ForEachInput>
__device__ __forceinline__ void project_group(const ConvMemory<kHidden>& conv, const ItemGroup<kItems>& group,
                                              const Tile<kHidden>& sources, const Tile<kHidden>& targets,
                                              ForEachInput&& for_each_input) {
  float source[kItems][kHidden], target[kItems][kHidden];
#pragma unroll
  for (int i = 0; i < kItems; ++i) {
    copy_channels<kHidden>(conv.vectors.source_bias(), source[i]);
    copy_channels<kHidden>(conv.vectors.target_bias(), target[i]);
  }
  for_each_input([&](int k, const float (&values)[kItems]) {
    add_scaled<kHidden, kItems>(conv.source + k * kHidden, values, source);
    add_scaled<kHidden, kItems>(conv.target + k * kHidden, values, target);
  });
#pragma unroll
  for (int i = 0; i < kItems; ++i) {
    sources.write(group.node[i], group.step[i], source[i]);
    targets.write(group.node[i], group.step[i], target[i]);
  }
}

// kPairs: two items of a thread at once, for a kernel that has registers left.
template <bool kPairs, class S, int kHidden, int kLanes>
__device__ __forceinline__ void project_input(const StackItems& items, const ConvMemory<kHidden>& conv,
                                              const StackInput<S>& x, const Tile<kHidden, kLanes>& sources,
                                              const Tile<kHidden, kLanes>& targets) {
  if constexpr (kPairs) {
    items.for_each_pair([&](const auto& group) {
      project_group(conv, group, sources, targets, [&](auto&& add) { for_each_channel(x, group, add); });
    });
  } else {
    items.for_each_shared<kLanes>([&](int node, int step, unsigned mask) {
      project_item(conv, node, step, mask, sources, targets, [&](auto&& add) {
        const S* row = x.row(node, step);
#pragma unroll 4
        for (int k = 0; k < x.channels; ++k) add(k, load(row + k * x.stride_channel));
      });
    });
  }
}

template <bool kPairs, int kHidden, int kLanes>
__device__ __forceinline__ void project_tile(const StackItems& items, const ConvMemory<kHidden>& conv,
                                             const Tile<kHidden, kLanes>& inputs,
                                             const Tile<kHidden, kLanes>& sources,
                                             const Tile<kHidden, kLanes>& targets) {
  if constexpr (kPairs) {
    items.for_each_pair([&](const auto& group) {
      project_group(conv, group, sources, targets, [&](auto&& add) { for_each_channel(inputs, group, add); });
    });
  } else {
    items.for_each_shared<kLanes>([&](int node, int step, unsigned mask) {
      project_item(conv, node, step, mask, sources, targets, [&](auto&& add) {
        const float4* row = inputs.at(node, step);
#pragma unroll 2
        for (int q = 0; q < kHidden / 4; ++q) {
          const float4 quad = row[q * inputs.chunk];
          add(4 * q + 0, quad.x);
          add(4 * q + 1, quad.y);
          add(4 * q + 2, quad.z);
          add(4 * q + 3, quad.w);
        }
      });
    });
  }
}

template <int kChannels>
__device__ __forceinline__ float inner_product(const float (&a)[kChannels], const float (&b)[kChannels]) {
  float sums[4] = {};
#pragma unroll
  for (int c = 0; c < kChannels; ++c) sums[c % 4] += a[c] * b[c];
  return (sums[0] + sums[1]) + (sums[2] + sums[3]);
}

// att . leaky(z) with z = source + (target + edge_weight * edge), in four chains that do not wait for each
// other.
template <int kChannels>
__device__ __forceinline__ float attention_score(const float (&source)[kChannels],
                                                 const float (&target)[kChannels],
                                                 const float (&att)[kChannels],
                                                 const float (&edge)[kChannels], float edge_weight) {
  float scores[4] = {};
#pragma unroll
  for (int c = 0; c < kChannels; ++c) {
    const float z = source[c] + (target[c] + edge_weight * edge[c]);
    scores[c % 4] += att[c] * attention_leaky(z);
  }
  return (scores[0] + scores[1]) + (scores[2] + scores[3]);
}

// att . leaky(z) is 0.6 att . z + 0.4 att . |z|, whose first part is one number a source and one an entry;
// the target's is the same for all entries of a node and cancels in the softmax. Where z is -inf the two
// parts are inf - inf: a row whose softmax comes out as NaN is computed again by the letter.
constexpr float kLinearPart = static_cast<float>(0.5 * (1 + kAttentionSlope));
constexpr float kAbsolutePart = static_cast<float>(0.5 * (1 - kAttentionSlope));

// 0.6 att . x_l of each item.
template <int kHidden>
__device__ __forceinline__ void score_sources(const StackItems& items, const ConvVectors<kHidden>& vectors,
                                              const Tile<kHidden>& sources, float* linear) {
  float att[kHidden];
  copy_channels<kHidden>(vectors.att(), att);
  items.for_each([&](int node, int step) {
    float source[kHidden];
    sources.read(node, step, source);
    linear[node * items.chunk + step] = kLinearPart * inner_product(att, source);
  });
}

// 0.4 att . |z|, where `att` is scaled already.
template <int kChannels>
__device__ __forceinline__ float absolute_score(const float (&source)[kChannels],
                                                const float (&target)[kChannels],
                                                const float (&att)[kChannels], const float (&edge)[kChannels],
                                                float edge_weight) {
  float scores[4] = {};
#pragma unroll
  for (int c = 0; c < kChannels; ++c) {
    scores[c % 4] += att[c] * fabsf(source[c] + (target[c] + edge_weight * edge[c]));
  }
  return (scores[0] + scores[1]) + (scores[2] + scores[3]);
}

// What a row sums over its entries, alpha_ij x_l[j] before the softmax's denominator.
template <int kChannels>
struct AttendedRow {
  float sum[kChannels] = {};
  OnlineSoftmax<float> softmax;

  __device__ __forceinline__ void see(float score, const float (&source)[kChannels]) {
    softmax.see(score);
#pragma unroll
    for (int c = 0; c < kChannels; ++c) sum[c] = sum[c] * softmax.keep + softmax.weight * source[c];
  }
  __device__ __forceinline__ void see(float first_score, const float (&first)[kChannels], float second_score,
                                      const float (&second)[kChannels]) {
    softmax.see(first_score, second_score);
#pragma unroll
    for (int c = 0; c < kChannels; ++c) {
      sum[c] = sum[c] * softmax.keep + softmax.weight * first[c] + softmax.second_weight * second[c];
    }
  }
  // Walks the entries in pairs; score(entry, source) reads the source and scores it. Lanes that share items
  // score together as often as the longest row of a warp wants it.
  template <int kLanes, class Score>
  __device__ __forceinline__ void walk(int begin, int end, unsigned mask, Score&& score) {
    const int last = begin + most_entries<kLanes>(end - begin, mask);
    int entry = begin;
    for (; entry + 1 < last; entry += 2) {
      float first[kChannels], second[kChannels];
      const float first_score = score(entry, first), second_score = score(entry + 1, second);
      if (kLanes == 1 || entry + 1 < end) {
        see(first_score, first, second_score, second);
      } else if (entry < end) {
        see(first_score, first);
      }
    }
    if (entry < last) {
      float source[kChannels];
      const float only = score(entry, source);
      if (kLanes == 1 || entry < end) see(only, source);
    }
  }
  __device__ __forceinline__ float scale(int entries) const { return entries > 0 ? softmax.scale() : 0.0f; }
};

// y = activation(sum_j alpha_ij x_l[j] + bias), which replaces x_r[i] in `own`. `linear` is what
// score_sources left, or nothing for scores by the letter.
template <class S, int kHidden, int kLanes, class Linear = std::nullptr_t>
__device__ __forceinline__ void attend(const StackItems& items, const CsrGraph& graph, const S* edge_weights,
                                       const ConvVectors<kHidden>& vectors, Activation activation,
                                       const Tile<kHidden, kLanes>& sources, const Tile<kHidden, kLanes>& own,
                                       Linear linear = nullptr) {
  constexpr bool kSplit = !std::is_same_v<Linear, std::nullptr_t>;
  static_assert(!kSplit || kLanes == 1);
  constexpr int kChannels = kHidden / kLanes;
  float att[kChannels], edge[kChannels];
  copy_channels<kHidden, kLanes>(vectors.att(), att);
  copy_channels<kHidden, kLanes>(vectors.edge(), edge);
  const float edge_linear = kSplit ? kLinearPart * inner_product(att, edge) : 0.0f;
  if constexpr (kSplit) {
#pragma unroll
    for (int c = 0; c < kChannels; ++c) att[c] *= kAbsolutePart;
  }
  items.for_each_shared<kLanes>([&](int node, int step, unsigned mask) {
    float target[kChannels];
    own.read(node, step, target);
    const int begin = graph.rowptr[node], end = graph.rowptr[node + 1];
    const auto weight_of = [&](int entry) {
      return edge_weights != nullptr ? load(edge_weights + entry) : 0.0f;
    };
    const auto by_letter = [&](int entry, float (&source)[kChannels]) {
      // An item that has no such entry looks at itself.
      const bool inside = kLanes == 1 || entry < end;
      sources.read(inside ? graph.col[entry] : node, step, source);
      // Read again: lanes that share items run in twos of a block, with half of the registers.
      if constexpr (kLanes > 1) copy_channels<kHidden, kLanes>(vectors.edge(), edge);
      const float weight = inside ? weight_of(entry) : 0.0f;
      if constexpr (kSplit) {
        // att is scaled here; what stands unscaled in shared memory is read as it is needed.
        float score = 0.0f;
#pragma unroll
        for (int c = 0; c < kHidden; ++c) {
          score += vectors.att()[c] * attention_leaky(source[c] + (target[c] + weight * edge[c]));
        }
        return score;
      } else {
        return item_sum<kLanes>(attention_score<kChannels>(source, target, att, edge, weight), mask);
      }
    };
    AttendedRow<kChannels> row;
    float scale;
    if constexpr (kSplit) {
      row.template walk<kLanes>(begin, end, mask, [&](int entry, float (&source)[kChannels]) {
        const int from = graph.col[entry];
        sources.read(from, step, source);
        const float weight = weight_of(entry);
        return linear[from * items.chunk + step] + edge_linear * weight +
               absolute_score<kChannels>(source, target, att, edge, weight);
      });
      scale = row.scale(end - begin);
      if (scale != scale) {
        row = {};
        row.template walk<kLanes>(begin, end, mask, by_letter);
        scale = row.scale(end - begin);
      }
    } else {
      row.template walk<kLanes>(begin, end, mask, by_letter);
      scale = row.scale(end - begin);
    }
    float bias[kChannels];
    copy_channels<kHidden, kLanes>(vectors.bias(), bias);
#pragma unroll
    for (int c = 0; c < kChannels; ++c) row.sum[c] = activate<S>(activation, row.sum[c] * scale + bias[c]);
    own.write(node, step, row.sum);
  });
}

}  // namespace hiermt::cuda
