// One GATv2 convolution on the items of a block (stack.cuh; equations and names in dense/gatv2_conv.cuh): its
// vectors in shared memory, and the attention over the entries of a node.
#pragma once

#include "cuda/dense/gatv2_conv.cuh"
#include "cuda/fused/stack.cuh"

namespace hiermt::cuda {

// The vectors of a convolution that its entries need, [3, H]: att, W_e, bias.
template <int kHidden>
struct ConvVectors {
  float* data;

  static constexpr int kValues = 3 * kHidden;

  explicit __device__ ConvVectors(SharedMemory& memory) : data(memory.take<float>(kValues)) {}
  static size_t bytes() { return padded_bytes<float>(kValues); }

  template <class S>
  __device__ void fill(const GatV2Weights<S>& weights) const {
    for (int c = static_cast<int>(threadIdx.x); c < kHidden; c += static_cast<int>(blockDim.x)) {
      data[c] = load(weights.att + c);
      data[kHidden + c] = weights.lin_edge_weight != nullptr ? load(weights.lin_edge_weight + c) : 0.0f;
      data[2 * kHidden + c] = load(weights.bias + c);
    }
  }
  __device__ const float* att() const { return data; }
  __device__ const float* edge() const { return data + kHidden; }
  __device__ const float* bias() const { return data + 2 * kHidden; }
};

// Sum of term(c) over the channels of a lane: a chain for each quad, then the quads in pairs. item_sum continues in the
// same order across the lanes of an item: a lane for each quad has the same bits as one for all of them.
template <int kChannels, class Term>
__device__ __forceinline__ float channel_sum(Term&& term) {
  constexpr int kQuads = kChannels / 4;
  static_assert(kChannels % 4 == 0 && (kQuads & (kQuads - 1)) == 0);
  float sums[kQuads] = {};
#pragma unroll
  for (int k = 0; k < 4; ++k) {
#pragma unroll
    for (int q = 0; q < kQuads; ++q) sums[q] += term(4 * q + k);
  }
#pragma unroll
  for (int apart = 1; apart < kQuads; apart *= 2) {
#pragma unroll
    for (int q = 0; q < kQuads; q += 2 * apart) sums[q] += sums[q + apart];
  }
  return sums[0];
}

template <int kChannels>
__device__ __forceinline__ float inner_product(const float (&a)[kChannels], const float (&b)[kChannels]) {
  return channel_sum<kChannels>([&](int c) { return a[c] * b[c]; });
}

// att . leaky(z) with z = x_j + (x_i + edge_weight * edge).
template <int kChannels>
__device__ __forceinline__ float attention_score(const float (&x_j)[kChannels], const float (&x_i)[kChannels],
                                                 const float (&att)[kChannels],
                                                 const float (&edge)[kChannels], float edge_weight) {
  return channel_sum<kChannels>(
      [&](int c) { return att[c] * attention_leaky(x_j[c] + (x_i[c] + edge_weight * edge[c])); });
}

// A score can be split: att . leaky(z) = 0.6 att . z + 0.4 att . |z|. The linear part is one number per
// source (0.6 att . x_l[j]) and one per entry (0.6 att . W_e w_e); that of the target is the same for all
// entries of a node and cancels in the softmax. An infinite z gives inf - inf, so a row whose softmax is NaN
// is recomputed without the split.
constexpr float kLinearPart = static_cast<float>(0.5 * (1 + kAttentionSlope));
constexpr float kAbsolutePart = static_cast<float>(0.5 * (1 - kAttentionSlope));

// The linear parts of the scores of a convolution's sources in shared memory, times log2(e).
template <int kHidden>
struct LinearScores {
  static constexpr int kQuads = kHidden / 4;
  float* data;
  int chunk;

  __device__ __forceinline__ float of(int node, int step) const { return data[node * chunk + step]; }
  // The quad of att that write() needs.
  __device__ static void load_att(const ConvVectors<kHidden>& vectors, float (&att)[4]) {
    load_quad(vectors.att() + static_cast<int>(threadIdx.x) % 4 % kQuads * 4, att);
  }
  // Writes the linear score of an item, whose x_l has quad m in lane m of four. An item that is not there has -inf, so
  // that its weight is 0.
  __device__ __forceinline__ void write(const float (&att)[4], const float (&x_l)[4], int node, int step,
                                        bool there, bool wanted) const {
    const float score = kLog2E * kLinearPart * item_sum<kQuads>(inner_product(att, x_l), kFullMask);
    if (static_cast<int>(threadIdx.x) % 4 == 0 && wanted)
      data[node * chunk + step] = there ? score : -INFINITY;
  }
};

// Scores entries from x_l of their sources and their weights, times log2(e).
template <int kHidden, int kLanes>
struct SplitScore {
  static constexpr int kChannels = kHidden / kLanes;
  float att[kChannels], edge[kChannels], edge_linear;

  // All lanes of the warp call it, if they share items.
  __device__ __forceinline__ explicit SplitScore(const ConvVectors<kHidden>& vectors) {
    copy_channels<kHidden, kLanes>(vectors.att(), att);
    copy_channels<kHidden, kLanes>(vectors.edge(), edge);
    edge_linear = kLog2E * kLinearPart * item_sum<kLanes>(inner_product(att, edge), kFullMask);
#pragma unroll
    for (int c = 0; c < kChannels; ++c) att[c] *= kLog2E * kAbsolutePart;
  }
  __device__ __forceinline__ float operator()(float linear, const float (&x_j)[kChannels],
                                              const float (&x_i)[kChannels], float weight,
                                              unsigned mask) const {
    const float absolute =
        channel_sum<kChannels>([&](int c) { return att[c] * fabsf(x_j[c] + (x_i[c] + weight * edge[c])); });
    return linear + edge_linear * weight + item_sum<kLanes>(absolute, mask);
  }
  // The channels of this lane of a score without the split. `att` is scaled, so the original is read from shared memory.
  __device__ __forceinline__ float unsplit(const ConvVectors<kHidden>& vectors, const float (&x_j)[kChannels],
                                           const float (&x_i)[kChannels], float weight) const {
    const float* unscaled = vectors.att() + 4 * lane_of_item<kLanes>();
    return channel_sum<kChannels>([&](int c) {
      return unscaled[c / 4 * 4 * kLanes + c % 4] * attention_leaky(x_j[c] + (x_i[c] + weight * edge[c]));
    });
  }
};

// Writes the columns from `first` on of [x_l, x_r] of an item, this lane's quad of each block of columns. x_l is zero
// where the item is not there.
template <int kHidden, int kLanes, int kBlocks>
__device__ __forceinline__ void write_projections(Tile<kHidden, kLanes> x_l, Tile<kHidden, kLanes> x_r,
                                                  int node, int step, bool there, bool wanted, int first,
                                                  float (&quads)[kBlocks][4]) {
  constexpr int kQuads = kHidden / 4;
#pragma unroll
  for (int block = 0; block < kBlocks; ++block) {
    const int quad = (first + block * kBlockColumns) / 4 + static_cast<int>(threadIdx.x) % 4;
    const bool source = quad < kQuads;
#pragma unroll
    for (int k = 0; k < 4; ++k) quads[block][k] = source && !there ? 0.0f : quads[block][k];
    const Tile<kHidden, kLanes> to(source ? x_l.data : x_r.data, x_l.chunk);
    if (wanted) to.put(node, step, source ? quad : quad - kQuads, quads[block]);
  }
}

// Sum over the entries of a row of alpha x_l[j], before the division by the denominator.
template <int kChannels>
struct AttendedRow {
  float sum[kChannels] = {};
  OnlineSoftmax<float> softmax;

  __device__ __forceinline__ void update(float score, const float (&x_j)[kChannels]) {
    softmax.update(score);
#pragma unroll
    for (int c = 0; c < kChannels; ++c) sum[c] = sum[c] * softmax.rescale + softmax.weight * x_j[c];
  }
  __device__ __forceinline__ void update(float first_score, const float (&first)[kChannels],
                                         float second_score, const float (&second)[kChannels]) {
    softmax.update(first_score, second_score);
#pragma unroll
    for (int c = 0; c < kChannels; ++c) {
      sum[c] = sum[c] * softmax.rescale + softmax.weight * first[c] + softmax.second_weight * second[c];
    }
  }
  // Walks the entries in pairs. score(entry, x_j) reads x_j and returns its score. If lanes share items, they
  // call it as often as the longest row of the warp requires.
  template <int kLanes, class Score>
  __device__ __forceinline__ void walk(int begin, int end, unsigned mask, Score&& score) {
    const int last = begin + most_entries<kLanes>(end - begin, mask);
    int entry = begin;
    for (; entry + 1 < last; entry += 2) {
      float first[kChannels], second[kChannels];
      const float first_score = score(entry, first), second_score = score(entry + 1, second);
      if (kLanes == 1 || entry + 1 < end) {
        update(first_score, first, second_score, second);
      } else if (entry < end) {
        update(first_score, first);
      }
    }
    if (entry < last) {
      float x_j[kChannels];
      const float only = score(entry, x_j);
      if (kLanes == 1 || entry < end) update(only, x_j);
    }
  }
  __device__ __forceinline__ float scale(int entries) const { return entries > 0 ? softmax.scale() : 0.0f; }
};

// Overwrites x_r[i] in `own` with activation(sum_j alpha x_l[j] + bias), or with zeros if i is not there. `linear` is
// a LinearScores, or nullptr for scores without the split. With a mask the last entry of a row, its
// loop, has a weight of its own, in `loops`, and is added after the others. `masked` is whether there is a mask, as a
// constant or not.
template <class S, int kHidden, int kLanes, class Masked, class Linear = std::nullptr_t>
__device__ __forceinline__ void attend(const StackItems& items, const CsrGraph& graph, const S* edge_weights,
                                       Masked masked, const StackPresence& presence, const ItemNumbers& loops,
                                       const ConvVectors<kHidden>& vectors, Activation activation,
                                       const Tile<kHidden, kLanes>& x_l, const Tile<kHidden, kLanes>& own,
                                       Linear linear = nullptr) {
  constexpr bool kSplit = !std::is_same_v<Linear, std::nullptr_t>;
  constexpr int kChannels = kHidden / kLanes;
  [[maybe_unused]] const auto split = [&] {
    if constexpr (kSplit) return SplitScore<kHidden, kLanes>(vectors);
    if constexpr (!kSplit) return nullptr;
  }();
  float att[kChannels], edge[kChannels];
  if constexpr (!kSplit) copy_channels<kHidden, kLanes>(vectors.att(), att);
  if constexpr (!kSplit) copy_channels<kHidden, kLanes>(vectors.edge(), edge);
  items.for_each_with_mask<kLanes>([&](int node, int step, unsigned mask) {
    const bool there = !masked || presence.has(node, step);
    if (kLanes == 1 && !there) return own.clear(node, step);
    float x_i[kChannels];
    own.read(node, step, x_i);
    const int begin = graph.rowptr[node], end = kLanes == 1 || there ? graph.rowptr[node + 1] : begin;
    const int others = masked && (kLanes == 1 || there) ? end - 1 : end;
    const auto weight_of = [&](int entry) {
      return edge_weights != nullptr ? load(edge_weights + entry) : 0.0f;
    };
    const auto unsplit = [&](int from, float weight, float (&x_j)[kChannels], unsigned lanes) {
      x_l.read(from, step, x_j);
      if constexpr (kSplit) {
        return item_sum<kLanes>(split.unsplit(vectors, x_j, x_i, weight), lanes);
      } else {
        // Read again: with two blocks on a multiprocessor there are no registers to keep it.
        if constexpr (kLanes > 1) copy_channels<kHidden, kLanes>(vectors.edge(), edge);
        return item_sum<kLanes>(attention_score<kChannels>(x_j, x_i, att, edge, weight), lanes);
      }
    };
    AttendedRow<kChannels> row;
    // Not even a NaN counts as the weight of an edge from an item that is not there. All lanes of `lanes` are in the same
    // call.
    const auto walk_unsplit = [&](unsigned lanes) {
      row.template walk<kLanes>(begin, others, lanes, [&](int entry, float (&x_j)[kChannels]) {
        if constexpr (kLanes == 1) {
          const int from = graph.col[entry];
          if (!masked || presence.has(from, step)) return unsplit(from, weight_of(entry), x_j, lanes);
          x_l.read(from, step, x_j);
          return -INFINITY;
        } else {
          // Past the end an item reads itself, so that its lanes take part in the sums.
          const bool inside = entry < others;
          const int from = inside ? graph.col[entry] : node;
          const bool counts = !masked || presence.has(from, step);
          const float score = unsplit(from, inside && counts ? weight_of(entry) : 0.0f, x_j, lanes);
          return counts ? score : -INFINITY;
        }
      });
      if (masked) {
        float x_j[kChannels];
        const float score_of_loop = unsplit(node, loops.at(node, step), x_j, lanes);
        if (kLanes == 1 || there) row.update(score_of_loop, x_j);
      }
      return row.scale(end - begin);
    };
    float scale = 0.0f;
    if constexpr (!kSplit) {
      scale = walk_unsplit(mask);
    } else if (kLanes > 1 || end > begin) {
      const auto score = [&](int from, float weight, float (&x_j)[kChannels]) {
        x_l.read(from, step, x_j);
        return split(linear.of(from, step), x_j, x_i, weight, mask);
      };
      // The source of an entry and its weight; past the end that of the item itself, which gets no weight in the sum.
      const int walk_end = begin + most_entries<kLanes>(end - begin, mask) - 1;
      const auto inside = [&](int entry) { return kLanes == 1 || entry < end - 1; };
      const auto source = [&](int entry) { return kLanes == 1 || entry < end ? graph.col[entry] : node; };
      const auto known_weight = [&](int entry) {
        return kLanes == 1 || entry < end ? weight_of(entry) : 0.0f;
      };
      // Weights relative to that of the last entry. Where this overflows, the row is computed with a maximum.
      const int loop = kLanes == 1 || end > begin ? end - 1 : end;
      const float shift = masked ? score(node, loops.at(node, step), row.sum)
                                 : score(source(loop), known_weight(loop), row.sum);
      float total = 1.0f;
      int entry = begin;
      for (; entry + 1 < walk_end; entry += 2) {
        const int first = source(entry), second = source(entry + 1);
        float first_weight = 0.0f, second_weight = 0.0f;
        if (edge_weights != nullptr) {
          first_weight = known_weight(entry);
          second_weight = known_weight(entry + 1);
        }
        float x_j[kChannels], x_k[kChannels];
        float a = approximate_exp2(score(first, first_weight, x_j) - shift);
        float b = approximate_exp2(score(second, second_weight, x_k) - shift);
        a = inside(entry) ? a : 0.0f;
        b = inside(entry + 1) ? b : 0.0f;
        total += a + b;
#pragma unroll
        for (int c = 0; c < kChannels; ++c) row.sum[c] = row.sum[c] + a * x_j[c] + b * x_k[c];
      }
      if (entry < walk_end) {
        float x_j[kChannels];
        float a = approximate_exp2(score(source(entry), known_weight(entry), x_j) - shift);
        a = inside(entry) ? a : 0.0f;
        total += a;
#pragma unroll
        for (int c = 0; c < kChannels; ++c) row.sum[c] += a * x_j[c];
      }
      // Quad by quad, so that it does not depend on the number of lanes. Of one entry alone only the shift is not finite.
      float probe = fmaf(0.0f, shift, total);
#pragma unroll
      for (int c = 0; c < kChannels; c += 4) {
        const float products = fmaf(row.sum[c], row.sum[c + 1], row.sum[c + 2] * row.sum[c + 3]);
        probe = fmaf(0.0f, products, probe);
      }
      scale = end > begin ? 1.0f / total : 0.0f;
      bool wrong = (kLanes == 1 || there) && !(fabsf(probe) < INFINITY);
      if constexpr (kLanes > 1) wrong = (__ballot_sync(mask, wrong) & item_mask<kLanes>()) != 0;
      const unsigned again = kLanes > 1 ? __ballot_sync(mask, wrong) : mask;
      if (wrong) {
        row = {};
        scale = walk_unsplit(again);
      }
    }
    float bias[kChannels];
    copy_channels<kHidden, kLanes>(vectors.bias(), bias);
#pragma unroll
    for (int c = 0; c < kChannels; ++c) {
      row.sum[c] = activate<S>(activation, row.sum[c] * scale + bias[c]);
      if (kLanes > 1 && !there) row.sum[c] = 0.0f;
    }
    own.write(node, step, row.sum);
  });
}

}  // namespace hiermt::cuda
