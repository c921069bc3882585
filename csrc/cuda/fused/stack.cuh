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
  // Of shared memory in a forward whose registers leave room for a second block on a multiprocessor.
  static constexpr size_t kHalfSharedBytes = 112 * 1024;
};

// Configuration of the forward kernels with kHidden channels.
template <int kHidden>
struct StackTraits {
  // Up to 32 channels a thread owns an item in the loops over its entries; above, four lanes share it.
  static constexpr bool kMultilane = kHidden > 32;
  static constexpr int kLanes = kMultilane ? 4 : 1;
  // Lanes of an item in a block with few items: each has a quad of channels, and a neighbour is read without bank
  // conflicts.
  static constexpr int kSpreadLanes = kHidden <= 16 ? kHidden / 4 : kLanes;
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
  int conv_layers, steps, chunk = 0, chunks = 0;  // chunks: tasks of a copy, each of `chunk` steps

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

// The copy and the steps of a task. All tasks of a copy but the last have `chunk` steps.
struct StackTask {
  int copy, first_step, steps;

  template <class P>
  __device__ __forceinline__ StackTask(const P& p, int task)
      : copy(task / p.chunks),
        first_step((task - copy * p.chunks) * p.chunk),
        steps(p.steps - first_step < p.chunk ? p.steps - first_step : p.chunk) {}
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
