// The backward of one GATv2 convolution on the items of a block (stack.cuh). With z the argument of a score,
// y' the cotangent before the activation:
//
//   alpha' = y'_i . x_l[j]     s' = alpha (alpha' - sum alpha alpha')     z' = s' att leaky'(z)
//   x_r'[i] = sum over the entries of i of z'                          (target_sweep, forward CSR)
//   x_l'[j] = sum over the edges out of j of alpha y'_i + z'           (source_sweep, transposed CSR)
//   W' = sum over the items of x_l' and x_r' times the input          (weight_products)
//
// Of an edge nothing is kept: both sweeps compute its score again from the row's softmax, which three numbers
// hold.
#pragma once

#include "cuda/dense/gatv2_grads.cuh"
#include "cuda/fused/gatv2_stack.cuh"

namespace hiermt::cuda {

// The softmax of each row, three numbers side by side: maximum, reciprocal of the denominator, sum of alpha
// alpha'.
struct RowSoftmax {
  float* data;
  int chunk;

  __device__ __forceinline__ float* at(int node, int step) const { return data + 3 * (node * chunk + step); }
};

// alpha and s' of an entry from its score and its alpha'.
struct EdgeCotangent {
  float alpha, score;

  __device__ __forceinline__ EdgeCotangent(float score_, float d_alpha, float top, float scale,
                                           float expected)
      : alpha(exponential(score_ - top) * scale), score(alpha * (d_alpha - expected)) {}
};

// s' leaky'(z)
__device__ __forceinline__ float through_leaky(float d_score, float z) {
  return z > 0.0f ? d_score : static_cast<float>(kAttentionSlope) * d_score;
}

// One edge as both sweeps see it: the score and alpha' of its ends, which the lanes of an item add up.
template <int kHidden, int kLanes>
struct EdgeView {
  static constexpr int kChannels = kHidden / kLanes;
  float att[kChannels], edge[kChannels];

  __device__ __forceinline__ explicit EdgeView(const ConvVectors<kHidden>& vectors) {
    copy_channels<kHidden, kLanes>(vectors.att(), att);
    copy_channels<kHidden, kLanes>(vectors.edge(), edge);
  }
  __device__ __forceinline__ float score(const float (&source)[kChannels], const float (&target)[kChannels],
                                         float edge_weight, unsigned mask) const {
    return item_sum<kLanes>(attention_score<kChannels>(source, target, att, edge, edge_weight), mask);
  }
  __device__ __forceinline__ float d_alpha(const float (&grad)[kChannels], const float (&source)[kChannels],
                                           unsigned mask) const {
    return item_sum<kLanes>(inner_product(grad, source), mask);
  }
  __device__ __forceinline__ float argument(float source, float target, float edge_weight, int c) const {
    return source + (target + edge_weight * edge[c]);
  }
};

// What the edges of a task leave of the edge weights' gradient, [step][entry]: set by the convolution that
// goes back first, added to by the others. One thread owns an entry at a step.
struct EdgeSums {
  float* at;
  int entries;
  bool add;

  __device__ __forceinline__ void put(int entry, int step, float value) const {
    float* to = at + static_cast<int64_t>(step) * entries + entry;
    *to = add ? *to + value : value;
  }
  // Of entries past the last row there is nothing to add up.
  __device__ void clear_padding(int first, int steps) const {
    for (int i = first + static_cast<int>(threadIdx.x); i < entries; i += static_cast<int>(blockDim.x)) {
      for (int step = 0; step < steps; ++step) at[static_cast<int64_t>(step) * entries + i] = 0.0f;
    }
  }
};

// Leaves each row's softmax in `rows` and x_r' where target_row(node, step) points. Adds the items of this
// thread to what becomes the gradients of att and of lin_edge / att, and if kEdges, those of its edges to
// `edge_weight_sums`.
template <bool kEdges, class S, int kHidden, int kLanes, class TargetRow>
__device__ __forceinline__ void target_sweep(const StackItems& items, const CsrGraph& graph,
                                             const S* edge_weights, const ConvVectors<kHidden>& vectors,
                                             const Tile<kHidden, kLanes>& sources,
                                             const Tile<kHidden, kLanes>& targets,
                                             const Tile<kHidden, kLanes>& grads, const RowSoftmax& rows,
                                             TargetRow&& target_row, float (&att_sums)[kHidden / kLanes],
                                             float (&edge_sums)[kHidden / kLanes],
                                             const EdgeSums& edge_weight_sums) {
  constexpr int kChannels = kHidden / kLanes;
  const EdgeView<kHidden, kLanes> view(vectors);
  items.for_each_shared<kLanes>([&](int node, int step, unsigned mask) {
    float target[kChannels], grad[kChannels];
    targets.read(node, step, target);
    grads.read(node, step, grad);
    const int begin = graph.rowptr[node], end = graph.rowptr[node + 1];
    const int last = begin + most_entries<kLanes>(end - begin, mask);
    // Calls f(entry, weight, source, score, alpha') for each entry, the other lanes of the item too.
    const auto for_each_entry = [&](auto&& f) {
#pragma unroll 1
      for (int entry = begin; entry < last; ++entry) {
        // An item that has no such entry looks at itself.
        const bool inside = kLanes == 1 || entry < end;
        const float edge_weight = inside && edge_weights != nullptr ? load(edge_weights + entry) : 0.0f;
        float source[kChannels];
        sources.read(inside ? graph.col[entry] : node, step, source);
        const float score = view.score(source, target, edge_weight, mask);
        const float d_alpha = view.d_alpha(grad, source, mask);
        if (inside) f(entry, edge_weight, source, score, d_alpha);
      }
    };
    OnlineSoftmax<float> softmax;
    float expected = 0.0f;
    for_each_entry([&](int, float, const float (&)[kChannels], float score, float d_alpha) {
      softmax.see(score);
      expected = expected * softmax.keep + softmax.weight * d_alpha;
    });
    const float scale = end > begin ? softmax.scale() : 0.0f;
    expected *= scale;
    if (lane_of_item<kLanes>() == 0) {
      float* row = rows.at(node, step);
      row[0] = softmax.top, row[1] = scale, row[2] = expected;
    }

    float d_target[kChannels] = {};
    for_each_entry(
        [&](int entry, float edge_weight, const float (&source)[kChannels], float score, float d_alpha) {
          const EdgeCotangent cotangent(score, d_alpha, softmax.top, scale, expected);
          float d_weights[4] = {};
#pragma unroll
          for (int c = 0; c < kChannels; ++c) {
            const float z = view.argument(source[c], target[c], edge_weight, c);
            const float through = through_leaky(cotangent.score, z);
            d_target[c] += through;
            att_sums[c] += through * z;
            edge_sums[c] += through * edge_weight;
            if constexpr (kEdges) d_weights[c % 4] += through * (view.att[c] * view.edge[c]);
          }
          if constexpr (kEdges) {
            const float mine = (d_weights[0] + d_weights[1]) + (d_weights[2] + d_weights[3]);
            const float grad = item_sum<kLanes>(mine, item_mask<kLanes>());
            if (lane_of_item<kLanes>() == 0) edge_weight_sums.put(entry, step, grad);
          }
        });
#pragma unroll
    for (int c = 0; c < kChannels; ++c) d_target[c] = view.att[c] * d_target[c];
    write_channels<kHidden, kLanes>(d_target, target_row(node, step));
  });
}

// Replaces x_l by its gradient: a thread reads no other row of it.
template <class S, int kHidden, int kLanes>
__device__ __forceinline__ void source_sweep(const StackItems& items, const CsrGraph& graph,
                                             const S* edge_weights, const ConvVectors<kHidden>& vectors,
                                             const Tile<kHidden, kLanes>& sources,
                                             const Tile<kHidden, kLanes>& targets,
                                             const Tile<kHidden, kLanes>& grads, const RowSoftmax& rows) {
  constexpr int kChannels = kHidden / kLanes;
  const EdgeView<kHidden, kLanes> view(vectors);
  items.for_each_shared<kLanes>([&](int node, int step, unsigned mask) {
    float source[kChannels], message[kChannels] = {}, through_score[kChannels] = {};
    sources.read(node, step, source);
    const int begin = graph.colptr[node], end = graph.colptr[node + 1];
    const int last = begin + most_entries<kLanes>(end - begin, mask);
#pragma unroll 1
    for (int k = begin; k < last; ++k) {
      const bool inside = kLanes == 1 || k < end;
      const int other = inside ? graph.row[k] : node;
      const float edge_weight =
          inside && edge_weights != nullptr ? load(edge_weights + graph.csr2csc[k]) : 0.0f;
      float target[kChannels], grad[kChannels];
      targets.read(other, step, target);
      grads.read(other, step, grad);
      const float score = view.score(source, target, edge_weight, mask);
      const float d_alpha = view.d_alpha(grad, source, mask);
      if (!inside) continue;
      const float* row = rows.at(other, step);
      const EdgeCotangent cotangent(score, d_alpha, row[0], row[1], row[2]);
#pragma unroll
      for (int c = 0; c < kChannels; ++c) {
        const float z = view.argument(source[c], target[c], edge_weight, c);
        message[c] += cotangent.alpha * grad[c];
        through_score[c] += through_leaky(cotangent.score, z);
      }
    }
#pragma unroll
    for (int c = 0; c < kChannels; ++c) message[c] += view.att[c] * through_score[c];
    sources.write(node, step, message);
  });
}

// A partial sum of this block: set by its first task, added to by the others.
struct PartialSum {
  float* at;
  bool add;

  __device__ void put(int i, float value) const { at[i] = add ? at[i] + value : value; }
};

// Sums of a vector's channels over the items of each warp, into scratch[warp][of `vectors`][H].
template <int kHidden, int kLanes>
__device__ __forceinline__ void sum_over_warp(const float (&values)[kHidden / kLanes], int vector,
                                              int vectors, float* scratch) {
  float* to = scratch + (static_cast<int>(threadIdx.x) / kWarp * vectors + vector) * kHidden;
  to += 4 * lane_of_item<kLanes>();
#pragma unroll
  for (int c = 0; c < kHidden / kLanes; ++c) {
    float total = values[c];
#pragma unroll
    for (int bit = kWarp / 2; bit >= kLanes; bit /= 2) total += __shfl_xor_sync(kFullMask, total, bit);
    if (threadIdx.x % kWarp / kLanes == 0) to[c / 4 * 4 * kLanes + c % 4] = total;
  }
}

// The sum over the warps, in order; a barrier stands between.
__device__ __forceinline__ float sum_over_warps(const float* scratch, int i, int count) {
  float total = 0.0f;
  for (int w = 0; w < static_cast<int>(blockDim.x) / kWarp; ++w) total += scratch[w * count + i];
  return total;
}

// A thread of weight_products holds four cotangents times four inputs, and the cotangents alone.
constexpr int kProductSums = 4 * 4 + 4;

// Products of four rows of [x_l'; x_r'] with four inputs.
template <int kHidden>
constexpr int kProducts = 2 * (kHidden / 4) * (kHidden / 4);
// Up to here a block has at least a thread for each and shares out their rows; beyond, a thread has several.
constexpr int kMaxSharedProducts = 128;
template <int kHidden>
constexpr int kLeastThreads = kProducts<kHidden> > kMaxSharedProducts ? 1 : kProducts<kHidden>;

// Values of the partial sum of one convolution: att, lin_edge, bias, then what MatrixGrads reads.
__host__ __device__ constexpr int64_t conv_grad_values(int64_t inputs, int64_t hidden) {
  return 3 * hidden + 2 * hidden * (inputs + 1);
}

// Of the products of [x_l'; x_r'] with `inputs`, which hold the input channels from `first` on of `channels`.
// The tile of the inputs is overwritten.
template <int kHidden, int kLanes>
__device__ void weight_products(int nodes, const Tile<kHidden, kLanes>& sources,
                                const Tile<kHidden, kLanes>& targets, const Tile<kHidden, kLanes>& inputs,
                                int first, int channels, const PartialSum& out) {
  constexpr int kQuads = kHidden / 4, kPairs = kProducts<kHidden>;
  const int thread = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
  const int chunk = inputs.chunk;
  // Four rows of cotangents times four inputs, over every `slices`-th node from `slice` on.
  const auto products = [&](int pair, int slice, int slices, float (&sums)[kProductSums]) {
    const int row = pair / kQuads, column = pair % kQuads;
    const Tile<kHidden, kLanes> cotangents{row < kQuads ? sources.data : targets.data, chunk};
    for (int node = slice; node < nodes; node += slices) {
      const float4* left = cotangents.at(node, 0) + row % kQuads * chunk;
      const float4* right = inputs.at(node, 0) + column * chunk;
      for (int step = 0; step < chunk; ++step) {
        const float4 a = left[step], b = right[step];
        const float lefts[4] = {a.x, a.y, a.z, a.w}, rights[4] = {b.x, b.y, b.z, b.w};
#pragma unroll
        for (int i = 0; i < 4; ++i) {
#pragma unroll
          for (int k = 0; k < 4; ++k) sums[4 * i + k] += lefts[i] * rights[k];
          sums[16 + i] += lefts[i];
        }
      }
    }
  };
  if constexpr (kPairs > kMaxSharedProducts) {
    for (int pair = thread; pair < kPairs; pair += threads) {
      float sums[kProductSums] = {};
      products(pair, 0, 1, sums);
      const int column = pair % kQuads * 4;
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int row = (pair / kQuads * 4 + i) * (channels + 1);
#pragma unroll
        for (int k = 0; k < 4; ++k) {
          if (first + column + k < channels) out.put(row + first + column + k, sums[4 * i + k]);
        }
        if (first == 0 && column == 0) out.put(row + channels, sums[16 + i]);
      }
    }
  } else {
    const int slices = threads / kPairs, slice = thread / kPairs, pair = thread % kPairs;
    float sums[kProductSums] = {};
    products(pair, slice < slices ? slice : nodes, slices, sums);
    __syncthreads();
    float* scratch = inputs.data;
    if (slice < slices) {
#pragma unroll
      for (int i = 0; i < kProductSums; ++i) scratch[(slice * kPairs + pair) * kProductSums + i] = sums[i];
    }
    __syncthreads();
    for (int i = thread; i < 2 * kHidden * (kHidden + 1); i += threads) {
      const int m = i / (kHidden + 1), k = i % (kHidden + 1);
      const bool bias = k == kHidden;
      if (bias ? first != 0 : first + k >= channels) continue;
      const int from =
          (m / 4 * kQuads + (bias ? 0 : k / 4)) * kProductSums + (bias ? 16 + m % 4 : m % 4 * 4 + k % 4);
      float total = 0.0f;
      for (int s = 0; s < slices; ++s) total += scratch[s * kPairs * kProductSums + from];
      out.put(m * (channels + 1) + (bias ? channels : first + k), total);
    }
  }
}

// Where the sums of all convolutions go.
struct StackGrads {
  GatV2Grads<float> convs[kMaxStackConvs];
  int conv_layers, channels, hidden;

  __device__ void write(int i, float value) const {
    int layer = 0, width = channels;
    for (; layer + 1 < conv_layers; ++layer, width = hidden) {
      const int count = static_cast<int>(conv_grad_values(width, hidden));
      if (i < count) break;
      i -= count;
    }
    if (i < 3 * hidden) {
      VectorGrads<float>{convs[layer], hidden}.write(i, value);
    } else {
      MatrixGrads<float>{convs[layer], hidden, width}.write(i - 3 * hidden, value);
    }
  }
};

// Where the sums over all steps of the edge weights' gradient go; entries past the last row are padding.
struct EdgeWeightGrads {
  const int32_t* rowptr;
  int nodes;
  float* to;

  __device__ void write(int i, float value) const { to[i] = i < rowptr[nodes] ? value : 0.0f; }
};

// Whether products on tensor cores, which this way has no use for, gain more than launches and memory cost.
template <class S>
constexpr bool leaves_to_tensor_cores(int64_t hidden, bool tf32) {
  return hidden > 32 && use_tensor_cores<S>(tf32);
}

// One for each entry and step of each copy.
template <class S>
int64_t edge_values(const ConvStackForward<S>& p) {
  return p.graph.copies * p.steps * p.graph.num_entries;
}

}  // namespace hiermt::cuda
