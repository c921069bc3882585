// Products of the items of a thread block with matrices of weights, on tensor cores. A warp takes 32 or 16 items at once, in
// the order of the tiles. Of each block of 16 input channels lane 4 g + m reads quad m of the items g, g + 8, g + 16
// and g + 24, and of each block of 16 outputs it gets quad m of the same items (LinearSums): what it reads of a tile,
// it can overwrite.
#pragma once

#include "cuda/fused/stack.cuh"

namespace hiermt::cuda {

// A group of 8 kItems items, and which of them are of this lane. Those past the end repeat the last one.
template <int kItems>
struct LaneItems {
  static constexpr int kGroup = 8 * kItems;
  static constexpr int kStepBits = 16;  // of less than 2^13 items
  int first, count, chunk;              // first of the group, and of the block: items and steps
  int items[kItems];

  __device__ __forceinline__ LaneItems(const StackItems& all, int first_)
      : first(first_), count(all.nodes * all.chunk), chunk(all.chunk) {
#pragma unroll
    for (int i = 0; i < kItems; ++i) items[i] = item_of(i);
  }
  __device__ __forceinline__ int index(int i) const {
    return first + static_cast<int>(threadIdx.x) % kWarp / 4 + 8 * i;
  }
  __device__ __forceinline__ bool inside(int i) const { return index(i) < count; }
  __device__ __forceinline__ int item_of(int i) const {
    const int item = inside(i) ? index(i) : count - 1, node = quotient(item, chunk);
    return node << kStepBits | (item - node * chunk);
  }
  __device__ static int node_of(int item) { return item >> kStepBits; }
  __device__ static int step_of(int item) { return item & ((1 << kStepBits) - 1); }
  __device__ __forceinline__ int node(int i) const { return node_of(items[i]); }
  __device__ __forceinline__ int step(int i) const { return step_of(items[i]); }
};

// Calls f(LaneItems<kItems>) for the groups of this warp. All of its lanes are in the same call.
template <int kItems, class F>
__device__ __forceinline__ void for_each_lane_items(const StackItems& items, F&& f) {
  using At = LaneItems<kItems>;
  const int warp = static_cast<int>(threadIdx.x) / kWarp, warps = static_cast<int>(blockDim.x) / kWarp;
  const int count = items.nodes * items.chunk;
  for (int first = warp * At::kGroup; first < count; first += warps * At::kGroup) f(At(items, first));
}

// Inputs of a product: quads(at, block, values) are those of this lane, channel(node, step, k) any channel. Channels
// behind the last are zeros: an infinite one times the zero of a weight would be NaN.
__device__ __forceinline__ void clear_unless(bool inside, float (&values)[4]) {
#pragma unroll
  for (int k = 0; k < 4; ++k) values[k] = inside ? values[k] : 0.0f;
}

// Channels of x; zeros of an item that is not there.
template <class S>
struct SequenceInput {
  const StackInput<S>& x;
  const StackPresence& presence;
  bool packed;

  __device__ __forceinline__ SequenceInput(const StackInput<S>& x_, const StackPresence& presence_)
      : x(x_), presence(presence_), packed(x.packed()) {}
  __device__ __forceinline__ int width() const { return x.channels; }
  template <int kItems>
  __device__ __forceinline__ void quads(const LaneItems<kItems>& at, int block,
                                        float (&values)[kItems][4]) const {
    const int k = block * kBlockColumns + static_cast<int>(threadIdx.x) % 4 * 4;
#pragma unroll
    for (int i = 0; i < kItems; ++i) {
      const int node = at.node(i), step = at.step(i);
      const unsigned row = static_cast<unsigned>(node * x.stride_node + step * x.stride_step);
      if (packed && k + 4 <= x.channels) {
        load_quad(x.data + (row + k), values[i]);
      } else {
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          values[i][j] = k + j < x.channels ? load(x.data + (row + (k + j) * x.stride_channel)) : 0.0f;
        }
      }
      if (presence.masked()) clear_unless(presence.has(node, step), values[i]);
    }
  }
  __device__ __forceinline__ float channel(int node, int step, int k) const {
    return presence.has(node, step) ? load(x.row(node, step) + k * x.stride_channel) : 0.0f;
  }
};

// Channels of a tile.
template <int kHidden, int kLanes>
struct TileInput {
  Tile<kHidden, kLanes> tile;

  __device__ explicit TileInput(const Tile<kHidden, kLanes>& tile_) : tile(tile_) {}
  __device__ __forceinline__ int width() const { return kHidden; }
  template <int kItems>
  __device__ __forceinline__ void quads(const LaneItems<kItems>& at, int block,
                                        float (&values)[kItems][4]) const {
    const int q = block * (kBlockColumns / 4) + static_cast<int>(threadIdx.x) % 4;
    const bool inside = kHidden % kBlockColumns == 0 || q < kHidden / 4;
#pragma unroll
    for (int i = 0; i < kItems; ++i) {
      load_quad(tile.quad(at.node(i), at.step(i), inside ? q : 0), values[i]);
      clear_unless(inside, values[i]);
    }
  }
  __device__ __forceinline__ float channel(int node, int step, int k) const {
    return tile.quad(node, step, k / 4)[k % 4];
  }
};

// kBlocks blocks of 16 columns of weights in shared memory, split once, as operands:
// [block of inputs][step][block][part][lane], and before them their biases. Columns are those of matrices [inputs, H],
// one after the other; Weight as in dense/linear.cuh has one group for each.
template <class S, int kHidden, int kBlocks, int kItems>
struct ProductWeights {
  using T = LinearTraits;
  static constexpr Products kHow = kProductsOf<float, sizeof(S) == 2>;
  using Stored = StoredOperand<float, kHow>;
  static constexpr int kColumns = kBlocks * kBlockColumns;
  using Sums = LinearSums<float, kHow, kBlocks, kItems / 2>;
  float* biases;
  int first, columns;  // the first column here, and all columns

  // For inputs in `blocks` blocks.
  __host__ __device__ static constexpr int64_t values(int64_t blocks) {
    return kColumns + blocks * T::kSteps * kBlocks * T::kParts * kWarp * Stored::kValues;
  }
  __device__ __forceinline__ Stored& operand(int i) const {
    const int lane = static_cast<int>(threadIdx.x) % kWarp;
    return reinterpret_cast<Stored*>(biases + kColumns)[i * kWarp + lane];
  }

  template <class Weight>
  __device__ __forceinline__ void fill_biases(const Weight& weight) const {
    for (int i = static_cast<int>(threadIdx.x); i < kColumns; i += static_cast<int>(blockDim.x)) {
      const int column = first + i;
      biases[i] =
          column < columns ? weight.bias(matrix_of(column), column - matrix_of(column) * kHidden) : 0.0f;
    }
  }
  // The weights of `width` inputs from row `source` of the matrices on, as blocks of inputs from `block` on.
  template <class Weight>
  __device__ __forceinline__ void fill(const Weight& weight, int block, int source, int width) const {
    constexpr int kStepOperands = kBlocks * T::kParts;
    const int lane = static_cast<int>(threadIdx.x) % kWarp;
    const unsigned count = static_cast<unsigned>(ceil_div(width, kBlockColumns)) * T::kSteps * kStepOperands;
    for (unsigned i = threadIdx.x / kWarp; i < count; i += blockDim.x / kWarp) {
      const unsigned step = i / kStepOperands, part = i % T::kParts, group = i / T::kParts % kBlocks;
      const int column =
          first + static_cast<int>(group) * kBlockColumns + Sums::channel(static_cast<int>(part));
      const int k = static_cast<int>(step / T::kSteps * kBlockColumns + step % T::kSteps * 2) + lane % 4 * 4;
      const int matrix = matrix_of(column), c = column - matrix * kHidden;
      float pair[2];
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        const bool inside = k + j < width && column < columns;
        pair[j] = inside ? weight.weight(source + k + j, matrix, c) : 0.0f;
      }
      operand(block * T::kSteps * kStepOperands + static_cast<int>(i)).store(pair);
    }
  }

  // biases + the inputs times their weights for the items of a group. Calls write(node, step, quads, wanted) for the
  // items of this lane with its quad of each block, in all lanes of the warp; `wanted`: whether to write it. No item is
  // read after it was written.
  template <class Weight, class Write, class... Inputs>
  __device__ __forceinline__ void products(const LaneItems<kItems>& at, const Weight& weight, Write&& write,
                                           const Inputs&... inputs) const {
    Sums sums;
#pragma unroll
    for (int group = 0; group < kBlocks; ++group) {
      float bias[4];
      load_bias(group, bias);
#pragma unroll
      for (int i = 0; i < kItems; ++i) sums.set(kItems * group + i, bias);
    }
    int first_block = 0;
    (add(sums, at, inputs, first_block), ...);
    unsigned wrong = 0;  // items with a NaN, which may come from Inf - Inf in the rest of an operand
    if (kHow == Products::kSplit && __ballot_sync(kFullMask, !sums.finite()) != 0) wrong = not_finite(sums);
    __syncwarp();
#pragma unroll
    for (int i = 0; i < kItems; ++i) {
      float quads[kBlocks][4];
#pragma unroll
      for (int group = 0; group < kBlocks; ++group) sums.get(kItems * group + i, quads[group]);
      write(at.node(i), at.step(i), quads, at.inside(i) && !(wrong >> i & 1));
    }
    // They are computed again without tensor cores; the others keep their bits.
    if constexpr (kHow == Products::kSplit) {
      if (__ballot_sync(kFullMask, wrong != 0) != 0) write_exactly(at, weight, write, wrong, inputs...);
    }
  }

 private:
  __device__ static int matrix_of(int column) {
    return static_cast<int>(static_cast<unsigned>(column) / kHidden);
  }
  // Of the quad of this lane in a block.
  __device__ __forceinline__ void load_bias(int group, float (&bias)[4]) const {
    load_quad(biases + group * kBlockColumns + static_cast<int>(threadIdx.x) % 4 * 4, bias);
  }
  template <class Input>
  __device__ __forceinline__ void add(Sums& sums, const LaneItems<kItems>& at, const Input& input,
                                      int& first_block) const {
    const int blocks = ceil_div(input.width(), kBlockColumns);
#pragma unroll 1
    for (int block = 0; block < blocks; ++block) {
      float values[kItems][4];
      input.quads(at, block, values);
      sums.add(values, [&](int step, int group, int part) {
        const int i = (((first_block + block) * T::kSteps + step) * kBlocks + group) * T::kParts + part;
        return operand(i).load();
      });
    }
    first_block += blocks;
  }
  // A bit for each item of the lane: whether a sum of it, in any of the four lanes that have one, is not finite.
  __device__ static unsigned not_finite(const Sums& sums) {
    unsigned found = 0;
#pragma unroll
    for (int i = 0; i < kItems; ++i) {
      bool finite = true;
#pragma unroll
      for (int group = 0; group < kBlocks; ++group) finite = finite && sums.finite(kItems * group + i);
      const unsigned lanes =
          __ballot_sync(kFullMask, !finite) >> static_cast<int>(threadIdx.x) % kWarp / 4 * 4;
      found |= (lanes & 15) != 0 ? 1u << i : 0u;
    }
    return found;
  }
  template <class Weight, class Write, class... Inputs>
  __device__ __forceinline__ void write_exactly(const LaneItems<kItems>& at, const Weight& weight,
                                                Write&& write, unsigned wanted,
                                                const Inputs&... inputs) const {
#pragma unroll 1
    for (int i = 0; i < kItems; ++i) {
      const int item = at.item_of(i), node = LaneItems<kItems>::node_of(item),
                step = LaneItems<kItems>::step_of(item);
      float quads[kBlocks][4] = {};
#pragma unroll 1
      for (int k = 0; k < 4; ++k) {
        float sums_k[kBlocks];
        exact_sums(k, node, step, sums_k, weight, inputs...);
#pragma unroll
        for (int group = 0; group < kBlocks; ++group) {
#pragma unroll
          for (int j = 0; j < 4; ++j) quads[group][j] = j == k ? sums_k[group] : quads[group][j];
        }
      }
      __syncwarp();
      write(node, step, quads, at.inside(i) && (wanted >> i & 1));
      __syncwarp();
    }
  }
  // Value k of the quads of this lane in each block.
  template <class Weight, class... Inputs>
  __device__ __forceinline__ void exact_sums(int k, int node, int step, float (&sums)[kBlocks],
                                             const Weight& weight, const Inputs&... inputs) const {
    const int column = static_cast<int>(threadIdx.x) % 4 * 4 + k;
#pragma unroll
    for (int group = 0; group < kBlocks; ++group) sums[group] = biases[group * kBlockColumns + column];
    int source = 0;
    const auto add_input = [&](const auto& input) {
#pragma unroll 1
      for (int from = 0; from < input.width(); ++from, ++source) {
        const float value = input.channel(node, step, from);
#pragma unroll
        for (int group = 0; group < kBlocks; ++group) {
          const int at = first + group * kBlockColumns + column;
          if (at < columns)
            sums[group] += value * weight.weight(source, matrix_of(at), at - matrix_of(at) * kHidden);
        }
      }
    };
    (add_input(inputs), ...);
  }
};

}  // namespace hiermt::cuda
