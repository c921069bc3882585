// What kernels share whose blocks own all nodes of one copy of the graph for a few time steps, so that no
// edge leaves a block. A thread owns one node at one step (an item) with all its channels, so a score needs
// no exchange between lanes; lanes are neighbouring steps of the same node first, which walk the same entries
// and read a neighbour's channels in one piece.
//
// Where an item has more channels than a thread has registers for, kLanes neighbouring lanes share it. They
// take turns at its quads of channels: local quad q of lane l is quad q * kLanes + l of the item.
#pragma once

#include "cuda/support/device.cuh"

namespace hiermt::cuda {

// Blocks beyond one on each multiprocessor of a large GPU gain nothing; fewer leave some of them idle.
constexpr int64_t kWantedBlocks = 132;
// Above, to sort the nodes by degree would cost more than it saves.
constexpr int kMaxSortedNodes = 1024;
constexpr int kMaxStackConvs = 3;

// The most threads of a block. At 64 channels two rounds for a hundred nodes, four lanes each, and room for a
// second block.
template <int kHidden>
constexpr int kStackThreads = kHidden <= 16   ? 384
                              : kHidden <= 32 ? 256
                                              : 224;

// Which of the lanes of an item this thread is.
template <int kLanes>
__device__ __forceinline__ int lane_of_item() {
  return kLanes == 1 ? 0 : static_cast<int>(threadIdx.x) % kLanes;
}

// The lanes of this thread's item.
template <int kLanes>
__device__ __forceinline__ unsigned item_mask() {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  return kLanes == 1 ? 1u << lane : ((1u << kLanes) - 1) << (lane / kLanes * kLanes);
}

// Adds up what the lanes of an item have, for all lanes of `mask`; every one of them gets the sum.
template <int kLanes>
__device__ __forceinline__ float item_sum(float value, unsigned mask) {
#pragma unroll
  for (int bit = 1; bit < kLanes; bit *= 2) value += __shfl_xor_sync(mask, value, bit);
  return value;
}

// This lane's channels of a row of kHidden.
template <int kHidden, int kLanes = 1>
__device__ __forceinline__ void copy_channels(const float* from, float (&to)[kHidden / kLanes]) {
  from += 4 * lane_of_item<kLanes>();
#pragma unroll
  for (int c = 0; c < kHidden / kLanes; c += 4) {
    const float4 quad = *reinterpret_cast<const float4*>(from + c * kLanes);
    to[c] = quad.x, to[c + 1] = quad.y, to[c + 2] = quad.z, to[c + 3] = quad.w;
  }
}

template <int kHidden, int kLanes>
__device__ __forceinline__ void write_channels(const float (&from)[kHidden / kLanes], float* to) {
  to += 4 * lane_of_item<kLanes>();
#pragma unroll
  for (int c = 0; c < kHidden / kLanes; c += 4) {
    *reinterpret_cast<float4*>(to + c * kLanes) = float4{from[c], from[c + 1], from[c + 2], from[c + 3]};
  }
}

// sum[c] += value * weights[c], this lane's channels of `weights`.
template <int kHidden, int kLanes = 1>
__device__ __forceinline__ void add_scaled(const float* weights, float value,
                                           float (&sum)[kHidden / kLanes]) {
  weights += 4 * lane_of_item<kLanes>();
#pragma unroll
  for (int c = 0; c < kHidden / kLanes; c += 4) {
    const float4 quad = *reinterpret_cast<const float4*>(weights + c * kLanes);
    sum[c] += value * quad.x;
    sum[c + 1] += value * quad.y;
    sum[c + 2] += value * quad.z;
    sum[c + 3] += value * quad.w;
  }
}

// The same for several values at once: a weight that is read serves all of them. To read 16 bytes from shared
// memory keeps it busy for two cycles even where all threads read the same.
template <int kHidden, int kItems>
__device__ __forceinline__ void add_scaled(const float* weights, const float (&values)[kItems],
                                           float (&sums)[kItems][kHidden]) {
#pragma unroll
  for (int c = 0; c < kHidden; c += 4) {
    const float4 quad = *reinterpret_cast<const float4*>(weights + c);
#pragma unroll
    for (int i = 0; i < kItems; ++i) {
      sums[i][c] += values[i] * quad.x;
      sums[i][c + 1] += values[i] * quad.y;
      sums[i][c + 2] += values[i] * quad.z;
      sums[i][c + 3] += values[i] * quad.w;
    }
  }
}

// Channels of (node, step) in shared memory, four by four, steps of a node side by side.
template <int kHidden, int kLanes = 1>
struct Tile {
  static constexpr int kQuads = kHidden / 4, kOwn = kQuads / kLanes;
  // A quarter of a warp reads the items of several nodes at once: they begin at different banks.
  static constexpr int kPad = kLanes > 1 && kLanes < 8 ? kLanes : 0;
  float* data;
  int chunk;

  __host__ __device__ static constexpr int64_t values(int64_t nodes, int64_t chunk) {
    return nodes * (kQuads * chunk + kPad) * 4;
  }
  // Quad q of the item lies q * chunk further.
  __device__ __forceinline__ float4* at(int node, int step) const {
    return reinterpret_cast<float4*>(data) + node * (kQuads * chunk + kPad) + step;
  }
  // A lane reads and writes its own channels.
  __device__ __forceinline__ void read(int node, int step, float (&values)[kHidden / kLanes]) const {
    const float4* from = at(node, step) + lane_of_item<kLanes>() * chunk;
#pragma unroll
    for (int q = 0; q < kOwn; ++q) {
      const float4 quad = from[q * kLanes * chunk];
      values[4 * q] = quad.x, values[4 * q + 1] = quad.y, values[4 * q + 2] = quad.z,
                 values[4 * q + 3] = quad.w;
    }
  }
  __device__ __forceinline__ void write(int node, int step, const float (&values)[kHidden / kLanes]) const {
    float4* to = at(node, step) + lane_of_item<kLanes>() * chunk;
#pragma unroll
    for (int q = 0; q < kOwn; ++q) {
      to[q * kLanes * chunk] = float4{values[4 * q], values[4 * q + 1], values[4 * q + 2], values[4 * q + 3]};
    }
  }
};

// order[rank] = node, by falling degree: the nodes of a warp then have about the same number of entries.
__device__ inline void order_by_degree(const CsrGraph& graph, int nodes, int* order) {
  for (int node = static_cast<int>(threadIdx.x); node < nodes; node += static_cast<int>(blockDim.x)) {
    const int degree = graph.rowptr[node + 1] - graph.rowptr[node];
    int rank = node;
    if (nodes <= kMaxSortedNodes) {
      rank = 0;
      for (int other = 0; other < nodes; ++other) {
        const int theirs = graph.rowptr[other + 1] - graph.rowptr[other];
        rank += theirs > degree || (theirs == degree && other < node) ? 1 : 0;
      }
    }
    order[rank] = node;
  }
}

// Some items of one thread.
template <int kCount>
struct ItemGroup {
  static constexpr int kItems = kCount;
  int node[kCount], step[kCount];
};

// The items of a block, and which thread has which: the same in every round of calls.
struct StackItems {
  int nodes, chunk;
  const int* order;

  // Calls f(node, step) for the items of this thread. Every second round runs backwards, so that a thread
  // that had a node of high degree gets one of low degree next.
  template <class F>
  __device__ __forceinline__ void for_each(F&& f) const {
    const int width = static_cast<int>(blockDim.x), rounds = ceil_div(nodes * chunk, width);
    for (int round = 0; round < rounds; ++round) {
      const int item = item_of(round);
      if (item < 0) continue;
      const int rank = item / chunk;
      f(order[rank], item - rank * chunk);
    }
  }

  // The same, two rounds at once where this thread has an item in both: f(ItemGroup<2>) or f(ItemGroup<1>).
  template <class F>
  __device__ __forceinline__ void for_each_pair(F&& f) const {
    const int width = static_cast<int>(blockDim.x), rounds = ceil_div(nodes * chunk, width);
    for (int round = 0; round < rounds; round += 2) {
      const int item = item_of(round), other = round + 1 < rounds ? item_of(round + 1) : -1;
      if (item < 0) continue;
      const int rank = item / chunk;
      if (other < 0) {
        f(ItemGroup<1>{{order[rank]}, {item - rank * chunk}});
      } else {
        const int other_rank = other / chunk;
        f(ItemGroup<2>{{order[rank], order[other_rank]}, {item - rank * chunk, other - other_rank * chunk}});
      }
    }
  }

  // Calls f(node, step, mask) for the items of this thread's group of kLanes; the lanes of `mask` are in the
  // same call, so that they may exchange values.
  template <int kLanes, class F>
  __device__ __forceinline__ void for_each_shared(F&& f) const {
    if constexpr (kLanes == 1) {
      for_each([&](int node, int step) { f(node, step, kFullMask); });
    } else {
      const int items = nodes * chunk;
      const int width = static_cast<int>(blockDim.x) / kLanes, group = static_cast<int>(threadIdx.x) / kLanes;
      for (int round = 0; round * width < items; ++round) {
        const int first = round * width, count = items - first < width ? items - first : width;
        const unsigned mask = __ballot_sync(kFullMask, group < count);
        if (group < count) {
          const int item = first + (round % 2 == 1 ? count - 1 - group : group);
          const int rank = item / chunk;
          f(order[rank], item - rank * chunk, mask);
        }
      }
    }
  }

 private:
  // What this thread has in a round, -1 for nothing.
  __device__ __forceinline__ int item_of(int round) const {
    const int width = static_cast<int>(blockDim.x), thread = static_cast<int>(threadIdx.x);
    const int first = round * width, items = nodes * chunk;
    const int count = items - first < width ? items - first : width;
    if (thread >= count) return -1;
    return first + (round % 2 == 1 ? count - 1 - thread : thread);
  }
};

// The most entries that one of the items of `mask` has: lanes that share items walk together.
template <int kLanes>
__device__ __forceinline__ int most_entries(int entries, unsigned mask) {
  return kLanes == 1 ? entries : __reduce_max_sync(mask, entries);
}

// The copy and the steps that a block owns; all blocks of a copy but the last have `chunk` steps.
struct StackBlock {
  int copy, first_step, steps;

  __device__ StackBlock(int all_steps, int chunk) {
    const int chunks = ceil_div(all_steps, chunk);
    copy = static_cast<int>(blockIdx.x) / chunks;
    first_step = static_cast<int>(blockIdx.x) % chunks * chunk;
    steps = all_steps - first_step < chunk ? all_steps - first_step : chunk;
  }
  __device__ __forceinline__ int64_t row(const CsrGraph& graph, int all_steps, int node, int step) const {
    return (copy * graph.num_nodes + node) * all_steps + first_step + step;
  }
};

// x of one copy from a block's first step on.
template <class S>
struct StackInput {
  const S* data;
  int64_t stride_node, stride_step, stride_channel;
  int channels;

  __device__ StackInput(const SequenceView<S>& x, int copy, int first_step)
      : data(x.data + copy * x.stride_copy + first_step * x.stride_time),
        stride_node(x.stride_node),
        stride_step(x.stride_time),
        stride_channel(x.stride_channel),
        channels(static_cast<int>(x.channels)) {}
  __device__ __forceinline__ const S* row(int node, int step) const {
    return data + node * stride_node + step * stride_step;
  }
};

// to[k * stride + c] = from[c * columns + k] for the first `inputs` columns. A warp takes eight rows of four
// columns: what it reads and what it writes lies in pieces.
template <int kHidden, class S>
__device__ void transpose_weights(const S* from, int columns, int inputs, float* to, int stride) {
  constexpr int kRows = 8, kColumns = kWarp / kRows, kTiles = kHidden / kRows;
  const int lane = static_cast<int>(threadIdx.x) % kWarp, warps = static_cast<int>(blockDim.x) / kWarp;
  const int tiles = kTiles * ceil_div(inputs, kColumns);
#pragma unroll 4
  for (int tile = static_cast<int>(threadIdx.x) / kWarp; tile < tiles; tile += warps) {
    const int c = tile % kTiles * kRows + lane / kColumns, k = tile / kTiles * kColumns + lane % kColumns;
    if (k < inputs) to[k * stride + c] = load(from + c * columns + k);
  }
}

// Calls add(k, values) for each channel k of the items' rows of x.
template <class S, int kItems, class Add>
__device__ __forceinline__ void for_each_channel(const StackInput<S>& x, const ItemGroup<kItems>& group,
                                                 Add&& add) {
  const S* rows[kItems];
#pragma unroll
  for (int i = 0; i < kItems; ++i) rows[i] = x.row(group.node[i], group.step[i]);
#pragma unroll 4
  for (int k = 0; k < x.channels; ++k) {
    float values[kItems];
#pragma unroll
    for (int i = 0; i < kItems; ++i) values[i] = load(rows[i] + k * x.stride_channel);
    add(k, values);
  }
}

// The same for the items' rows of a tile.
template <int kHidden, int kItems, class Add>
__device__ __forceinline__ void for_each_channel(const Tile<kHidden>& tile, const ItemGroup<kItems>& group,
                                                 Add&& add) {
#pragma unroll 1
  for (int q = 0; q < kHidden / 4; ++q) {
    float4 quads[kItems];
#pragma unroll
    for (int i = 0; i < kItems; ++i) quads[i] = tile.at(group.node[i], group.step[i])[q * tile.chunk];
    const auto channel = [&](int k, float float4::* part) {
      float values[kItems];
#pragma unroll
      for (int i = 0; i < kItems; ++i) values[i] = quads[i].*part;
      add(4 * q + k, values);
    };
    channel(0, &float4::x);
    channel(1, &float4::y);
    channel(2, &float4::z);
    channel(3, &float4::w);
  }
}

// gate_weights[k][gate][c] of the first `inputs` columns of the three gates.
template <class S, int kHidden>
__device__ void fill_gate_weights(const GateWeights<S>& gates, int inputs, float* gate_weights) {
  if constexpr (kHidden > 32) {
    for (int gate = 0; gate < 3; ++gate) {
      const S* weight = gate == 0 ? gates.u_weight : gate == 1 ? gates.r_weight : gates.c_weight;
      transpose_weights<kHidden>(weight, inputs + kHidden, inputs, gate_weights + gate * kHidden,
                                 3 * kHidden);
    }
    return;
  }
  for (int i = static_cast<int>(threadIdx.x); i < 3 * inputs * kHidden; i += static_cast<int>(blockDim.x)) {
    const int c = i % kHidden, gate = i / kHidden % 3, k = i / (3 * kHidden);
    const S* weight = gate == 0 ? gates.u_weight : gate == 1 ? gates.r_weight : gates.c_weight;
    gate_weights[i] = load(weight + c * (inputs + kHidden) + k);
  }
}

// Activation of convolution k.
__host__ __device__ constexpr Activation stack_activation(int k, int conv_layers, Activation last) {
  return k + 1 == conv_layers ? last : Activation::kLeakyRelu;
}

// The widest input of a convolution of the stack, for the memory of its weights.
__host__ __device__ constexpr int64_t widest_input(int64_t channels, int64_t hidden, int64_t conv_layers) {
  return channels > hidden || conv_layers == 1 ? channels : hidden;
}

// Steps a block takes: as few as keep every multiprocessor busy, and no more than fit into `limit` bytes.
// bytes(chunk) is the shared memory of a block with so many steps.
template <class Bytes>
int64_t steps_per_block(int64_t steps, int64_t copies, size_t limit, Bytes&& bytes) {
  const int64_t wanted = kWantedBlocks / (copies > 0 ? copies : 1);
  const int64_t blocks_per_copy = wanted > 0 ? wanted : 1;
  int64_t chunk = ceil_div<int64_t>(steps, blocks_per_copy < steps ? blocks_per_copy : steps);
  while (chunk > 1 && bytes(chunk) > limit) --chunk;
  return chunk;
}

// Threads of a block: every thread gets the same number of items, give or take one warp.
inline int64_t stack_threads(int64_t items, int64_t most) {
  return ceil_div<int64_t>(ceil_div(items, ceil_div(items, most)), kWarp) * kWarp;
}

}  // namespace hiermt::cuda
