// One GATv2 convolution of a stack on the items of a block (stack.cuh): its weights in shared memory, the
// projections of both ends of an edge, and the attention over the entries of a node.
#pragma once

#include "gatv2_conv.cuh"
#include "stack.cuh"

namespace hiermt::cuda {

// Weights of one convolution, input channel by input channel.
template <int kHidden>
struct ConvMemory {
  float *source, *target, *vectors;  // [F, H], [F, H], [5, H]: biases of both, att, edge, bias

  __device__ ConvMemory(SharedMemory& memory, int inputs)
      : source(memory.take<float>(inputs * kHidden)),
        target(memory.take<float>(inputs * kHidden)),
        vectors(memory.take<float>(5 * kHidden)) {}

  static size_t bytes(int64_t inputs) {
    return 2 * padded_bytes<float>(inputs * kHidden) + padded_bytes<float>(5 * kHidden);
  }

  template <class S>
  __device__ void fill(const GatV2Weights<S>& weights, int inputs) const {
    for (int i = static_cast<int>(threadIdx.x); i < inputs * kHidden; i += static_cast<int>(blockDim.x)) {
      const int from = i % kHidden * inputs + i / kHidden;
      source[i] = load(weights.lin_l_weight + from);
      target[i] = load(weights.lin_r_weight + from);
    }
    for (int c = static_cast<int>(threadIdx.x); c < kHidden; c += static_cast<int>(blockDim.x)) {
      vectors[c] = load(weights.lin_l_bias + c);
      vectors[kHidden + c] = load(weights.lin_r_bias + c);
      vectors[2 * kHidden + c] = load(weights.att + c);
      vectors[3 * kHidden + c] =
          weights.lin_edge_weight != nullptr ? load(weights.lin_edge_weight + c) : 0.0f;
      vectors[4 * kHidden + c] = load(weights.bias + c);
    }
  }
  __device__ const float* att() const { return vectors + 2 * kHidden; }
  __device__ const float* edge() const { return vectors + 3 * kHidden; }
  __device__ const float* bias() const { return vectors + 4 * kHidden; }
};

// Both projections of each item, of x or of what a convolution left; `targets` may be the tile that is read.
template <int kHidden, class ForEachInput>
__device__ __forceinline__ void project_item(const ConvMemory<kHidden>& conv, int node, int step,
                                             const Tile<kHidden>& sources, const Tile<kHidden>& targets,
                                             ForEachInput&& for_each_input) {
  float source[kHidden], target[kHidden];
  copy_channels<kHidden>(conv.vectors, source);
  copy_channels<kHidden>(conv.vectors + kHidden, target);
  for_each_input([&](int k, float value) {
    add_scaled<kHidden>(conv.source + k * kHidden, value, source);
    add_scaled<kHidden>(conv.target + k * kHidden, value, target);
  });
  sources.write(node, step, source);
  targets.write(node, step, target);
}

template <class S, int kHidden>
__device__ __forceinline__ void project_input(const StackItems& items, const ConvMemory<kHidden>& conv,
                                              const StackInput<S>& x, const Tile<kHidden>& sources,
                                              const Tile<kHidden>& targets) {
  items.for_each([&](int node, int step) {
    project_item(conv, node, step, sources, targets, [&](auto&& add) {
      const S* row = x.row(node, step);
#pragma unroll 4
      for (int k = 0; k < x.channels; ++k) add(k, load(row + k * x.stride_channel));
    });
  });
}

template <int kHidden>
__device__ __forceinline__ void project_tile(const StackItems& items, const ConvMemory<kHidden>& conv,
                                             const Tile<kHidden>& inputs, const Tile<kHidden>& sources,
                                             const Tile<kHidden>& targets) {
  items.for_each([&](int node, int step) {
    project_item(conv, node, step, sources, targets, [&](auto&& add) {
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

// att . leaky(z) with z = source + (target + edge_weight * edge), in four chains that do not wait for each
// other.
template <int kHidden>
__device__ __forceinline__ float attention_score(const float (&source)[kHidden],
                                                 const float (&target)[kHidden], const float (&att)[kHidden],
                                                 const float (&edge)[kHidden], float edge_weight) {
  float scores[4] = {};
#pragma unroll
  for (int c = 0; c < kHidden; ++c) {
    const float z = source[c] + (target[c] + edge_weight * edge[c]);
    scores[c % 4] += att[c] * attention_leaky(z);
  }
  return (scores[0] + scores[1]) + (scores[2] + scores[3]);
}

// y = activation(sum_j alpha_ij x_l[j] + bias), which replaces x_r[i] in `own`.
template <class S, int kHidden>
__device__ __forceinline__ void attend(const StackItems& items, const CsrGraph& graph, const S* edge_weights,
                                       const ConvMemory<kHidden>& conv, Activation activation,
                                       const Tile<kHidden>& sources, const Tile<kHidden>& own) {
  float att[kHidden], edge[kHidden];
  copy_channels<kHidden>(conv.att(), att);
  copy_channels<kHidden>(conv.edge(), edge);
  items.for_each([&](int node, int step) {
    float target[kHidden], sum[kHidden] = {};
    own.read(node, step, target);
    OnlineSoftmax<float> softmax;
    const int begin = graph.rowptr[node], end = graph.rowptr[node + 1];
    const auto visit = [&](int entry, float (&source)[kHidden]) {
      sources.read(graph.col[entry], step, source);
      return attention_score<kHidden>(source, target, att, edge,
                                      edge_weights != nullptr ? load(edge_weights + entry) : 0.0f);
    };
    int entry = begin;
    for (; entry + 1 < end; entry += 2) {
      float first[kHidden], second[kHidden];
      const float first_score = visit(entry, first), second_score = visit(entry + 1, second);
      softmax.see(first_score, second_score);
#pragma unroll
      for (int c = 0; c < kHidden; ++c) {
        sum[c] = sum[c] * softmax.keep + softmax.weight * first[c] + softmax.second_weight * second[c];
      }
    }
    if (entry < end) {
      float source[kHidden];
      softmax.see(visit(entry, source));
#pragma unroll
      for (int c = 0; c < kHidden; ++c) sum[c] = sum[c] * softmax.keep + softmax.weight * source[c];
    }
    const float scale = end > begin ? softmax.scale() : 0.0f;
#pragma unroll
    for (int c = 0; c < kHidden; ++c) sum[c] = activate(activation, sum[c] * scale + conv.bias()[c]);
    own.write(node, step, sum);
  });
}

// Activation of convolution k.
__host__ __device__ constexpr Activation stack_activation(int k, int conv_layers, Activation last) {
  return k + 1 == conv_layers ? last : Activation::kLeakyRelu;
}

}  // namespace hiermt::cuda
