// Building blocks of the fused kernels. A thread block owns every node of one graph copy for a chunk of time
// steps, so all neighbours are in shared memory (items.cuh).
#pragma once

#include "cuda/fused/presence.cuh"
#include "cuda/scan/gated_scan.cuh"

namespace hiermt::cuda {

// Limits of every stack kernel.
struct StackLimits {
  // One block per multiprocessor of an H100. More blocks do not help; with fewer, multiprocessors are idle.
  static constexpr int64_t kBlocks = 132;
  static constexpr int kConvs = 3;  // whose weights are passed by value
  static constexpr int64_t kNodes = 4096;
  static constexpr int64_t kChannels = 1024;
  // Of shared memory in the forward: leaves room for a second block on a multiprocessor.
  static constexpr size_t kSharedBytes = 112 * 1024;
};

// Configuration of the forward kernels with kHidden channels.
template <int kHidden>
struct StackTraits {
  // Up to 32 channels a thread owns an item in the loops over its entries; above, four lanes share it.
  static constexpr bool kMultilane = kHidden > 32;
  static constexpr int kLanes = kMultilane ? 4 : 1;
  // Blocks of 16 columns (item_products.cuh) that are computed at once: their weights fit shared memory and their sums
  // registers. Of x_l and x_r at once, or first of x_l; of the gates; of a GCN.
  static constexpr int kConvBlocks = kMultilane ? kHidden / 16 : kHidden / 8;
  static constexpr int kGateBlocks = kHidden == 16 ? 3 : 2;
  static constexpr int kGcnBlocks = (kHidden + 15) / 16;
  // Items of a lane in these products. Four would read a weight together, but their sums would spill.
  static constexpr int kItems = 2;
  // Threads of a block: as many as the registers of a multiprocessor allow, in two blocks if kMultilane.
  static constexpr int kThreads = kHidden <= 16 ? 384 : kHidden <= 32 ? 256 : 224;
  static constexpr int kMinBlocks = kMultilane ? 2 : 1;
  // The split of a GATv2 score (gatv2_stack.cuh) needs registers that are free up to 16 channels.
  static constexpr bool kSplitScores = kHidden <= 16;
  // Transposing weights by tiles pays off only where the reads of a column are far apart.
  static constexpr bool kTiledTranspose = kHidden > 32;
  static_assert(kHidden % (4 * kLanes) == 0 && kThreads % kWarp == 0 && kWarp % kLanes == 0);
};

// Parameters of every stack kernel. The weights of the convolutions are copied, because those of a layer are
// in host memory.
template <class S, class Weights>
struct StackProblem {
  CsrGraph graph;
  SequenceView<S> x;
  const S* edge_weight;
  const bool* present;  // or nullptr
  Weights convs[StackLimits::kConvs] = {};
  GateWeights<S> gates;
  Activation last;
  int conv_layers, steps, chunk = 0;

  StackProblem(const ConvStackForward<S>& p, const Weights* weights, const GateWeights<S>& gates_)
      : graph(p.graph),
        x(p.x),
        edge_weight(p.edge_weight),
        present(p.present),
        gates(gates_),
        last(p.last),
        conv_layers(static_cast<int>(p.conv_layers)),
        steps(static_cast<int>(p.steps)) {
    for (int k = 0; k < conv_layers; ++k) convs[k] = weights[k];
  }
  // Activation of convolution k.
  __device__ __forceinline__ Activation activation(int k) const {
    return k + 1 == conv_layers ? last : Activation::kLeakyRelu;
  }
};

// The copy and the steps of a block. All blocks of a copy but the last have `chunk` steps.
struct StackBlock {
  int copy, first_step, steps;

  __device__ StackBlock(int all_steps, int chunk) {
    const int chunks = ceil_div(all_steps, chunk);
    copy = static_cast<int>(blockIdx.x) / chunks;
    first_step = (static_cast<int>(blockIdx.x) - copy * chunks) * chunk;
    steps = all_steps - first_step < chunk ? all_steps - first_step : chunk;
  }
  // Rows of a sequence fit 31 bits.
  __device__ __forceinline__ int row(const CsrGraph& graph, int all_steps, int node, int step) const {
    return copy * static_cast<int>(graph.num_nodes) * all_steps + first_step + (node * all_steps + step);
  }
};

// x of one copy, from the first step of a block on.
template <class S>
struct StackInput {
  const S* data;
  int stride_node, stride_step, stride_channel;  // offsets in a copy fit, stack_fits
  int channels;

  __device__ StackInput(const SequenceView<S>& x, int copy, int first_step)
      : data(x.data + copy * x.stride_copy + first_step * x.stride_time),
        stride_node(static_cast<int>(x.stride_node)),
        stride_step(static_cast<int>(x.stride_time)),
        stride_channel(static_cast<int>(x.stride_channel)),
        channels(static_cast<int>(x.channels)) {}
  __device__ __forceinline__ const S* row(int node, int step) const {
    return data + (node * stride_node + step * stride_step);
  }
  // Whether each quad of channels is as a Pack.
  __device__ __forceinline__ bool packed() const {
    return stride_channel == 1 && packs<4>(data, stride_node, stride_step);
  }
};

// to[k * stride + c] = from[c * columns + k] for the first `inputs` columns. A warp copies tiles of 8 rows
// and 4 columns, a compromise between coalesced reads and conflict-free writes.
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

// Calls add(k, values) for each channel k of x, with one value per item. kUnroll is for the overload below.
template <int kUnroll = 1, class S, int kItems, class Add>
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

// The same for the channels of a tile, kUnroll quads at a time.
template <int kUnroll = 1, int kHidden, int kLanes, int kItems, class Add>
__device__ __forceinline__ void for_each_channel(const Tile<kHidden, kLanes>& tile,
                                                 const ItemGroup<kItems>& group, Add&& add) {
#pragma unroll kUnroll
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

// gate_weights[k][gate][c]: the first `inputs` columns of the three gates, transposed.
template <class S, int kHidden>
__device__ void fill_gate_weights(const GateWeights<S>& gates, int inputs, float* gate_weights) {
  if constexpr (StackTraits<kHidden>::kTiledTranspose) {
    for (int gate = 0; gate < 3; ++gate) {
      transpose_weights<kHidden>(gate_weight(gates, gate), inputs + kHidden, inputs,
                                 gate_weights + gate * kHidden, 3 * kHidden);
    }
  } else {
    for (int i = static_cast<int>(threadIdx.x); i < 3 * inputs * kHidden; i += static_cast<int>(blockDim.x)) {
      const int c = i % kHidden, gate = i / kHidden % 3, k = i / (3 * kHidden);
      gate_weights[i] = load(gate_weight(gates, gate) + c * (inputs + kHidden) + k);
    }
  }
}

// Largest number of input channels of a convolution of the stack, which sizes the memory of its weights.
__host__ __device__ constexpr int64_t max_inputs(int64_t channels, int64_t hidden, int64_t conv_layers) {
  return channels > hidden || conv_layers == 1 ? channels : hidden;
}

// Steps of a block: enough blocks for every multiprocessor, and no more than `limit` bytes of shared memory.
// bytes(chunk) is the shared memory of a block with `chunk` steps.
template <class Bytes>
int64_t steps_per_block(int64_t steps, int64_t copies, size_t limit, Bytes&& bytes) {
  const int64_t wanted = StackLimits::kBlocks / (copies > 0 ? copies : 1);
  const int64_t blocks_per_copy = wanted > 0 ? wanted : 1;
  int64_t chunk = ceil_div<int64_t>(steps, blocks_per_copy < steps ? blocks_per_copy : steps);
  while (chunk > 1 && bytes(chunk) > limit) --chunk;
  return chunk;
}

// Threads of a block: a multiple of a warp that spreads the items evenly over the fewest rounds.
inline int64_t stack_threads(int64_t items, int64_t most) {
  return ceil_div<int64_t>(ceil_div(items, ceil_div(items, most)), kWarp) * kWarp;
}

}  // namespace hiermt::cuda
