// Backward of one GATv2 convolution on the items of a block (stack.cuh; names in dense/gatv2_conv.cuh). With
// d_y the cotangent of the activation's argument:
//
//   d_alpha = d_y[i] . x_l[j]     d_score = alpha (d_alpha - sum_k alpha_k d_alpha_k)
//   d_z = d_score att leaky'(z)
//   d_x_r[i] = sum over the entries of i of d_z                      (target_sweep, CSR)
//   d_x_l[j] = sum over the edges out of j of alpha d_y[i] + d_z     (source_sweep, transposed CSR)
//   d_W_l, d_W_r = sum over the items of d_x_l, d_x_r times the input    (weight_products)
//
// Two numbers of each entry are kept between the loops over the entries, in global memory that stays in L2: its weight
// in the softmax before the division, or its score, and d_alpha; then alpha and d_score. To compute them again in each
// loop took two fifths of the kernel's instructions.
#pragma once

#include "cuda/fused/gatv2_stack_gradients.cuh"

namespace hiermt::cuda {

// Two numbers of each entry and step of a task, written by the lanes of the entry's target.
struct EdgePairs {
  float2* data;
  int chunk;  // steps

  __device__ __forceinline__ float2& at(int entry, int step) const { return data[entry * chunk + step]; }
};

// d_score leaky'(z)
__device__ __forceinline__ float through_leaky(float d_score, float z) {
  return z > 0.0f ? d_score : static_cast<float>(kAttentionSlope) * d_score;
}

// sum += value where z > 0, in two instructions: a selection would take three.
__device__ __forceinline__ void add_if_positive(float& sum, float z, float value) {
#ifdef HIERMT_SIMT
  if (z > 0.0f) sum += value;
#else
  asm("{\n\t.reg .pred positive;\n\tsetp.gt.f32 positive, %1, 0f00000000;\n\t@positive add.f32 %0, %0, "
      "%2;\n\t}"
      : "+f"(sum)
      : "f"(z), "f"(value));
#endif
}

// Keeps the compiler from holding what it has read of shared memory in registers: it reads it anew.
__device__ __forceinline__ void forget_shared() {
  asm volatile("" ::: "memory");
}

// Score and d_alpha of an edge, summed over the lanes of an item.
template <int kHidden, int kLanes>
struct EdgeView {
  static constexpr int kChannels = kHidden / kLanes;
  float att[kChannels], edge[kChannels];

  __device__ __forceinline__ explicit EdgeView(const ConvVectors<kHidden>& vectors) {
    copy_channels<kHidden, kLanes>(vectors.att(), att);
    copy_channels<kHidden, kLanes>(vectors.edge(), edge);
  }
  __device__ __forceinline__ float score(const float (&x_j)[kChannels], const float (&x_i)[kChannels],
                                         float edge_weight, unsigned mask) const {
    return item_sum<kLanes>(attention_score<kChannels>(x_j, x_i, att, edge, edge_weight), mask);
  }
  __device__ __forceinline__ float d_alpha(const float (&d_y_i)[kChannels], const float (&x_j)[kChannels],
                                           unsigned mask) const {
    return item_sum<kLanes>(inner_product(d_y_i, x_j), mask);
  }
  __device__ __forceinline__ float argument(float x_j, float x_i, float edge_weight, int c) const {
    return x_j + (x_i + edge_weight * edge[c]);
  }
};

// The weights of a row's entries relative to that of its last one (attend), and the mean of d_alpha, relative to d_alpha
// of the largest weight as in CotangentMean.
struct RelativeRow {
  float total = 0.0f, largest = 0.0f, pivot = 0.0f, sum = 0.0f;

  __device__ __forceinline__ void add(float weight, float d_alpha) {
    const bool higher = weight > largest;
    sum += higher ? total * (pivot - d_alpha) : 0.0f;
    pivot = higher ? d_alpha : pivot;
    largest = higher ? weight : largest;
    total += weight;
    sum += weight * (d_alpha - pivot);
  }
  __device__ __forceinline__ bool finite() const { return fabsf(fmaf(0.0f, sum, total)) < INFINITY; }
};

// Gradient of the edge weights of a task, [step][entry]: set by the last convolution, added to by the others.
// One thread owns an entry at a step.
struct EdgeSums {
  float* at;
  int entries;
  bool add;

  __device__ __forceinline__ void put(int entry, int step, float value) const {
    float* to = at + static_cast<int64_t>(step) * entries + entry;
    *to = add ? *to + value : value;
  }
  // Adds to what this convolution has put.
  __device__ __forceinline__ void put_more(int entry, int step, float value) const {
    at[static_cast<int64_t>(step) * entries + entry] += value;
  }
  // Entries past the last row are padding; their gradient is zero.
  __device__ void clear_padding(int first, int steps) const {
    for (int i = first + static_cast<int>(threadIdx.x); i < entries; i += static_cast<int>(blockDim.x)) {
      for (int step = 0; step < steps; ++step) at[static_cast<int64_t>(step) * entries + i] = 0.0f;
    }
  }
};

// Leaves alpha and d_score of each entry in `pairs` and writes d_x_r to d_x_r_row(node, step). Adds the items of
// this thread to the gradients of att and of lin_edge (without its factor att), and if kEdges to that of the edge
// weights. Both numbers are 0 where one end of an entry is not there. `linear` is as for attend().
template <bool kEdges, class S, int kHidden, int kLanes, class Row, class Linear>
__device__ __forceinline__ void target_sweep(
    const StackItems& items, const CsrGraph& graph, const S* edge_weights, const StackPresence& presence,
    const ItemNumbers& loops, const ConvVectors<kHidden>& vectors, const Tile<kHidden, kLanes>& x_l,
    const Tile<kHidden, kLanes>& x_r, const Tile<kHidden, kLanes>& d_y, const EdgePairs& pairs,
    Row&& d_x_r_row, float (&att_sums)[kHidden / kLanes], float (&edge_sums)[kHidden / kLanes],
    const EdgeSums& edge_weight_sums, const Linear& linear) {
  constexpr int kChannels = kHidden / kLanes;
  constexpr bool kSplit = !std::is_same_v<Linear, std::nullptr_t>;
  static_assert(!kSplit || kLanes == 1);
  items.for_each_with_mask<kLanes>([&](int node, int step, unsigned mask) {
    float x_i[kChannels];
    x_r.read(node, step, x_i);
    const bool there = presence.has(node, step);
    const int begin = graph.rowptr[node], end = graph.rowptr[node + 1];
    const auto weight_of = [&](int entry) {
      return edge_weights != nullptr ? load(edge_weights + entry) : 0.0f;
    };
    // Whether an entry counts, and its weight. Not even a NaN is read as the weight of one that does not.
    const auto counts = [&](int entry, int from, float& weight) {
      if (presence.masked()) {
        if (!there || !presence.has(from, step)) return false;
        if (entry == end - 1) {
          weight = loops.at(node, step);
          return true;
        }
      }
      weight = weight_of(entry);
      return true;
    };
    OnlineSoftmax<float> softmax;
    CotangentMean<float> mean;
    float scale = 0.0f;
    // Each loop over the entries reads the vectors that it needs: registers are scarce.
    const auto walk_unsplit = [&] {
      forget_shared();
      const EdgeView<kHidden, kLanes> view(vectors);
      float d_y_i[kChannels];
      d_y.read(node, step, d_y_i);
      const int last = begin + most_entries<kLanes>(end - begin, mask);
#pragma unroll 1
      for (int entry = begin; entry < last; ++entry) {
        // Past the end an item reads itself, so that its lanes take part in the sums.
        bool inside = kLanes == 1 || entry < end;
        const int from = inside ? graph.col[entry] : node;
        float edge_weight = 0.0f;
        if (inside) inside = counts(entry, from, edge_weight);
        if (kLanes == 1 && !inside) continue;
        float x_j[kChannels];
        x_l.read(from, step, x_j);
        const float score = view.score(x_j, x_i, edge_weight, mask);
        const float d_alpha = view.d_alpha(d_y_i, x_j, mask);
        if (!inside) continue;
        const float before = softmax.sum;
        softmax.update(score);
        mean.update(softmax, before, d_alpha);
        if (lane_of_item<kLanes>() == 0) pairs.at(entry, step) = float2{score, d_alpha};
      }
      scale = there && end > begin ? softmax.scale() : 0.0f;
    };
    if constexpr (!kSplit) {
      walk_unsplit();
    } else if (there && end > begin) {
      forget_shared();
      const SplitScore<kHidden, kLanes> split(vectors);
      float d_y_i[kChannels];
      d_y.read(node, step, d_y_i);
      float shift = 0.0f;
      RelativeRow row;
      // The last entry first.
      float2* pair = &pairs.at(end - 1, step);
#pragma unroll 1
      for (int entry = end - 1; entry >= begin; --entry, pair -= pairs.chunk) {
        const int from = graph.col[entry];
        float edge_weight = 0.0f;
        if (!counts(entry, from, edge_weight)) continue;
        float x_j[kChannels];
        x_l.read(from, step, x_j);
        const float score = split(linear.of(from, step), x_j, x_i, edge_weight, mask);
        const float d_alpha = inner_product(d_y_i, x_j);
        if (entry == end - 1) shift = score;
        const float weight = approximate_exp2(score - shift);
        row.add(weight, d_alpha);
        *pair = float2{weight, d_alpha};
      }
      scale = 1.0f / row.total;
      mean.pivot = row.pivot;
      mean.sum = row.sum;
      // Where this overflows, the row is computed with a maximum.
      if (!row.finite()) {
        mean = {};
        walk_unsplit();
#pragma unroll 1
        for (int entry = begin; entry < end; ++entry) {
          float edge_weight, &score = pairs.at(entry, step).x;
          if (counts(entry, graph.col[entry], edge_weight)) score = softmax_weight(score - softmax.max);
        }
      }
    }
    if constexpr (kLanes > 1) __syncwarp(mask);

    forget_shared();
    const EdgeView<kHidden, kLanes> view(vectors);
    float d_x_r[kChannels] = {};
    float d_loop = 0.0f;
    int counted = 0;
    float2* pair = &pairs.at(begin, step);
#pragma unroll 1
    for (int entry = begin; entry < end; ++entry, pair += pairs.chunk) {
      const int from = graph.col[entry];
      float edge_weight;
      if (!counts(entry, from, edge_weight)) {
        if (lane_of_item<kLanes>() != 0) continue;
        *pair = float2{0.0f, 0.0f};
        if constexpr (kEdges) edge_weight_sums.put(entry, step, 0.0f);
        continue;
      }
      float x_j[kChannels];
      x_l.read(from, step, x_j);
      const float2 found = *pair;
      const float alpha = (kSplit ? found.x : softmax_weight(found.x - softmax.max)) * scale;
      const float d_score = mean.d_score(alpha, found.y, scale);
      float d_weights[4] = {};
#pragma unroll
      for (int c = 0; c < kChannels; ++c) {
        const float z = view.argument(x_j[c], x_i[c], edge_weight, c);
        const float through = through_leaky(d_score, z);
        d_x_r[c] += through;
        att_sums[c] += through * z;
        edge_sums[c] += through * edge_weight;
        if constexpr (kEdges) d_weights[c % 4] += through * (view.att[c] * view.edge[c]);
      }
      if constexpr (kEdges) {
        const float mine = (d_weights[0] + d_weights[1]) + (d_weights[2] + d_weights[3]);
        float total = item_sum<kLanes>(mine, item_mask<kLanes>());
        if (presence.masked()) {
          ++counted;
          if (entry == end - 1) d_loop = total, total = 0.0f;
        }
        if (lane_of_item<kLanes>() == 0) edge_weight_sums.put(entry, step, total);
      }
      if constexpr (kLanes > 1) __syncwarp(item_mask<kLanes>());
      if (lane_of_item<kLanes>() == 0) *pair = float2{alpha, d_score};
    }
    // The weight of the loop is the mean of the others that count.
    if (kEdges && presence.masked() && there && lane_of_item<kLanes>() == 0) {
      for (int entry = begin; entry < end - 1; ++entry) {
        float edge_weight;
        if (counts(entry, graph.col[entry], edge_weight))
          edge_weight_sums.put_more(entry, step, d_loop / static_cast<float>(counted - 1));
      }
    }
    forget_shared();
    float att[kChannels];
    copy_channels<kHidden, kLanes>(vectors.att(), att);
#pragma unroll
    for (int c = 0; c < kChannels; ++c) d_x_r[c] = there ? d_x_r[c] * att[c] : 0.0f;
    write_channels<kHidden, kLanes>(d_x_r, d_x_r_row(node, step));
  });
}

// Overwrites x_l with d_x_l: a thread reads only its own item of x_l.
template <class S, int kHidden, int kLanes>
__device__ __forceinline__ void source_sweep(const StackItems& items, const CsrGraph& graph,
                                             const S* edge_weights, const StackPresence& presence,
                                             const ItemNumbers& loops, const ConvVectors<kHidden>& vectors,
                                             const Tile<kHidden, kLanes>& x_l,
                                             const Tile<kHidden, kLanes>& x_r,
                                             const Tile<kHidden, kLanes>& d_y, const EdgePairs& pairs) {
  constexpr int kChannels = kHidden / kLanes;
  const EdgeView<kHidden, kLanes> view(vectors);
  items.for_each_with_mask<kLanes>([&](int node, int step, unsigned) {
    if (!presence.has(node, step)) return x_l.clear(node, step);
    // Sum of d_score leaky'(z) = slope (sum of d_score) + (1 - slope) (sum of d_score where z > 0).
    float x_j[kChannels], message[kChannels] = {}, positive[kChannels] = {}, all = 0.0f;
    x_l.read(node, step, x_j);
#pragma unroll 1
    for (int k = graph.colptr[node]; k < graph.colptr[node + 1]; ++k) {
      const int target = graph.row[k], entry = graph.csr2csc[k];
      float edge_weight = edge_weights != nullptr ? load(edge_weights + entry) : 0.0f;
      if (presence.masked() && target == node) edge_weight = loops.at(node, step);
      const float2 pair = pairs.at(entry, step);  // alpha, d_score
      float x_i[kChannels], d_y_i[kChannels];
      x_r.read(target, step, x_i);
      d_y.read(target, step, d_y_i);
#pragma unroll
      for (int c = 0; c < kChannels; ++c) {
        const float z = view.argument(x_j[c], x_i[c], edge_weight, c);
        message[c] += pair.x * d_y_i[c];
        add_if_positive(positive[c], z, pair.y);
      }
      all += pair.y;
    }
    forget_shared();
    float att[kChannels];
    copy_channels<kHidden, kLanes>(vectors.att(), att);
#pragma unroll
    for (int c = 0; c < kChannels; ++c) {
      constexpr float kSlope = static_cast<float>(kAttentionSlope);
      message[c] += att[c] * (kSlope * all + (1.0f - kSlope) * positive[c]);
    }
    x_l.write(node, step, message);
  });
}

// Sums a vector over the items of each warp into scratch[warp][vector][H]. In each round a lane hands half of its
// channels on and adds up the other half.
template <int kHidden, int kLanes>
__device__ __forceinline__ void sum_over_warp(float (&values)[kHidden / kLanes], int vector, int vectors,
                                              float* scratch) {
  constexpr int kChannels = kHidden / kLanes;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  int count = kChannels, first = 0, repeated = 0;  // repeated: bits of the lanes that have the same sum
#pragma unroll
  for (int bit = kWarp / 2; bit >= kLanes; bit /= 2) {
    if (count == 1) {
      values[0] += __shfl_xor_sync(kFullMask, values[0], bit);
      repeated |= bit;
      continue;
    }
    count /= 2;
    const bool upper = (lane & bit) != 0;
    first += upper ? count : 0;
#pragma unroll
    for (int c = 0; c < kChannels / 2; ++c) {
      if (c >= count) break;
      const float low = values[c], high = values[count + c];
      values[c] = (upper ? high : low) + __shfl_xor_sync(kFullMask, upper ? low : high, bit);
    }
  }
  if ((lane & repeated) != 0) return;
  float* to = scratch + (static_cast<int>(threadIdx.x) / kWarp * vectors + vector) * kHidden;
  to += 4 * lane_of_item<kLanes>();
#pragma unroll
  for (int i = 0; i < kChannels; ++i) {
    if (i >= count) break;
    const int c = first + i;
    to[c / 4 * 4 * kLanes + c % 4] = values[i];
  }
}

// Sum of scratch over the warps, in order. The caller synchronises before.
__device__ __forceinline__ float sum_over_warps(const float* scratch, int i, int count) {
  float total = 0.0f;
  for (int w = 0; w < static_cast<int>(blockDim.x) / kWarp; ++w) total += scratch[w * count + i];
  return total;
}

// Output of the sums of all convolutions.
struct StackGrads {
  GatV2Grads<float> convs[StackLimits::kConvs];
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

// Output of the gradient of the edge weights.
struct EdgeWeightGrads {
  float* to;

  __device__ void write(int i, float value) const { to[i] = value; }
};

// Whether the dense backward runs in place of the fused one, which gains most where it saves memory: with few channels.
// Products that round their operands take a third of the tensor cores' time.
template <class S>
constexpr bool dense_backward_instead(int64_t hidden, bool tf32) {
  return hidden > 32 && rounds_operands<S>(tf32);
}

}  // namespace hiermt::cuda
