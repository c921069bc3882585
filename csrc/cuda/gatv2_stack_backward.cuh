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

#include "gatv2_stack.cuh"

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

  __device__ __forceinline__ EdgeCotangent(float score_, float grad_alpha, float top, float scale,
                                           float expected)
      : alpha(exponential(score_ - top) * scale), score(alpha * (grad_alpha - expected)) {}
};

// s' leaky'(z)
__device__ __forceinline__ float through_leaky(float grad_score, float z) {
  return z > 0.0f ? grad_score : static_cast<float>(kAttentionSlope) * grad_score;
}

template <int kHidden>
__device__ __forceinline__ float inner_product(const float (&a)[kHidden], const float (&b)[kHidden]) {
  float sums[4] = {};
#pragma unroll
  for (int c = 0; c < kHidden; ++c) sums[c % 4] += a[c] * b[c];
  return (sums[0] + sums[1]) + (sums[2] + sums[3]);
}

// Leaves each row's softmax in `rows` and x_r' where target_row(node, step) points. Adds the items of this
// thread to what becomes the gradients of att and of lin_edge / att.
template <class S, int kHidden, class TargetRow>
__device__ __forceinline__ void target_sweep(const StackItems& items, const CsrGraph& graph,
                                             const S* edge_weights, const ConvMemory<kHidden>& conv,
                                             const Tile<kHidden>& sources, const Tile<kHidden>& targets,
                                             const Tile<kHidden>& grads, const RowSoftmax& rows,
                                             TargetRow&& target_row, float (&att_sums)[kHidden],
                                             float (&edge_sums)[kHidden]) {
  float att[kHidden], edge[kHidden];
  copy_channels<kHidden>(conv.att(), att);
  copy_channels<kHidden>(conv.edge(), edge);
  items.for_each([&](int node, int step) {
    float target[kHidden], grad[kHidden];
    targets.read(node, step, target);
    grads.read(node, step, grad);
    const int begin = graph.rowptr[node], end = graph.rowptr[node + 1];
    OnlineSoftmax<float> softmax;
    float expected = 0.0f;
#pragma unroll 1
    for (int entry = begin; entry < end; ++entry) {
      const float edge_weight = edge_weights != nullptr ? load(edge_weights + entry) : 0.0f;
      float source[kHidden];
      sources.read(graph.col[entry], step, source);
      softmax.see(attention_score<kHidden>(source, target, att, edge, edge_weight));
      expected = expected * softmax.keep + softmax.weight * inner_product(grad, source);
    }
    const float scale = end > begin ? softmax.scale() : 0.0f;
    expected *= scale;
    float* row = rows.at(node, step);
    row[0] = softmax.top, row[1] = scale, row[2] = expected;

    float grad_target[kHidden] = {};
#pragma unroll 1
    for (int entry = begin; entry < end; ++entry) {
      const float edge_weight = edge_weights != nullptr ? load(edge_weights + entry) : 0.0f;
      float source[kHidden];
      sources.read(graph.col[entry], step, source);
      const EdgeCotangent cotangent(attention_score<kHidden>(source, target, att, edge, edge_weight),
                                    inner_product(grad, source), softmax.top, scale, expected);
#pragma unroll
      for (int c = 0; c < kHidden; ++c) {
        const float z = source[c] + (target[c] + edge_weight * edge[c]);
        const float through = through_leaky(cotangent.score, z);
        grad_target[c] += through;
        att_sums[c] += through * z;
        edge_sums[c] += through * edge_weight;
      }
    }
    float4* to = reinterpret_cast<float4*>(target_row(node, step));
#pragma unroll
    for (int c = 0; c < kHidden; c += 4) {
      to[c / 4] = float4{att[c] * grad_target[c], att[c + 1] * grad_target[c + 1],
                         att[c + 2] * grad_target[c + 2], att[c + 3] * grad_target[c + 3]};
    }
  });
}

// Replaces x_l by its gradient: a thread reads no other row of it.
template <class S, int kHidden>
__device__ __forceinline__ void source_sweep(const StackItems& items, const CsrGraph& graph,
                                             const S* edge_weights, const ConvMemory<kHidden>& conv,
                                             const Tile<kHidden>& sources, const Tile<kHidden>& targets,
                                             const Tile<kHidden>& grads, const RowSoftmax& rows) {
  float att[kHidden], edge[kHidden];
  copy_channels<kHidden>(conv.att(), att);
  copy_channels<kHidden>(conv.edge(), edge);
  items.for_each([&](int node, int step) {
    float source[kHidden], message[kHidden] = {}, through_score[kHidden] = {};
    sources.read(node, step, source);
    const int end = graph.t_rowptr[node + 1];
#pragma unroll 1
    for (int k = graph.t_rowptr[node]; k < end; ++k) {
      const int other = graph.t_row[k];
      const float* row = rows.at(other, step);
      const float edge_weight = edge_weights != nullptr ? load(edge_weights + graph.t_perm[k]) : 0.0f;
      float target[kHidden], grad[kHidden];
      targets.read(other, step, target);
      grads.read(other, step, grad);
      const EdgeCotangent cotangent(attention_score<kHidden>(source, target, att, edge, edge_weight),
                                    inner_product(grad, source), row[0], row[1], row[2]);
#pragma unroll
      for (int c = 0; c < kHidden; ++c) {
        const float z = source[c] + (target[c] + edge_weight * edge[c]);
        message[c] += cotangent.alpha * grad[c];
        through_score[c] += through_leaky(cotangent.score, z);
      }
    }
#pragma unroll
    for (int c = 0; c < kHidden; ++c) message[c] += att[c] * through_score[c];
    sources.write(node, step, message);
  });
}

// A partial sum of this block: set by its first task, added to by the others.
struct PartialSum {
  float* at;
  bool add;

  __device__ void put(int i, float value) const { at[i] = add ? at[i] + value : value; }
};

// Sums of a vector's channels over the threads of each warp, into scratch[warp][of `vectors`][H].
template <int kHidden>
__device__ __forceinline__ void sum_over_warp(const float (&values)[kHidden], int vector, int vectors,
                                              float* scratch) {
  float* to = scratch + (static_cast<int>(threadIdx.x) / kWarp * vectors + vector) * kHidden;
#pragma unroll
  for (int c = 0; c < kHidden; ++c) {
    const float total = group_sum(values[c], kWarp);
    if (static_cast<int>(threadIdx.x) % kWarp == 0) to[c] = total;
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

// Values of the partial sum of one convolution: att, lin_edge, bias, then what MatrixGrads reads.
__host__ __device__ constexpr int64_t conv_grad_values(int64_t inputs, int64_t hidden) {
  return 3 * hidden + 2 * hidden * (inputs + 1);
}

// Of the products of [x_l'; x_r'] with `inputs`, which hold the input channels from `first` on of `channels`.
// The tile of the inputs is overwritten.
template <int kHidden>
__device__ void weight_products(int nodes, const Tile<kHidden>& sources, const Tile<kHidden>& targets,
                                const Tile<kHidden>& inputs, int first, int channels, const PartialSum& out) {
  constexpr int kQuads = kHidden / 4, kPairs = 2 * kQuads * kQuads;
  const int slices = static_cast<int>(blockDim.x) / kPairs, slice = static_cast<int>(threadIdx.x) / kPairs;
  const int pair = static_cast<int>(threadIdx.x) % kPairs;
  const int row = pair / kQuads, column = pair % kQuads, chunk = inputs.chunk;
  const Tile<kHidden> cotangents{row < kQuads ? sources.data : targets.data, chunk};
  float sums[kProductSums] = {};
  for (int node = slice < slices ? slice : nodes; node < nodes; node += slices) {
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
  __syncthreads();
  float* scratch = inputs.data;
  if (slice < slices) {
#pragma unroll
    for (int i = 0; i < kProductSums; ++i) scratch[(slice * kPairs + pair) * kProductSums + i] = sums[i];
  }
  __syncthreads();
  for (int i = static_cast<int>(threadIdx.x); i < 2 * kHidden * (kHidden + 1);
       i += static_cast<int>(blockDim.x)) {
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

}  // namespace hiermt::cuda
