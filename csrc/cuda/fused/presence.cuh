// Items that are not there, in the fused kernels: they are no source, and their rows of the results are zero. A
// kernel takes its mask at run time: the branches are the same for all threads, so that a stack without a mask
// pays a predicate for each of them.
#pragma once

#include "cuda/fused/items.cuh"

namespace hiermt::cuda {

// Which items of a block are there. The address of the mask and the number of steps are parameters of the kernel, which
// take no registers.
struct StackPresence {
  const bool* data;      // nullptr without a mask
  int first, all_steps;  // first: node 0 at the first step of the block

  template <class P>
  __device__ StackPresence(const P& p, int copy, int first_step)
      : data(p.present),
        first(copy * static_cast<int>(p.graph.num_nodes) * p.steps + first_step),
        all_steps(p.steps) {}
  __device__ __forceinline__ bool masked() const { return data != nullptr; }
  __device__ __forceinline__ bool has(int node, int step) const {
    return data == nullptr || data[first + node * all_steps + step];
  }
};

// A number of each item in shared memory, which only stacks with a mask have room for.
struct ItemNumbers {
  float* data;
  int chunk;

  template <class P>
  __device__ ItemNumbers(const P& p, SharedMemory& memory)
      : data(memory.take<float>(p.present != nullptr ? static_cast<size_t>(p.graph.num_nodes) * p.chunk : 0)),
        chunk(p.chunk) {}
  static size_t bytes(bool masked, int64_t items) { return masked ? padded_bytes<float>(items) : 0; }

  __device__ __forceinline__ float& at(int node, int step) const { return data[node * chunk + step]; }
};

// GATv2: the weight of the loop of each item, the mean of the weights of its other entries whose sources are there.
// Each lane reads what lane 0 of its item has written after a barrier.
template <int kLanes, class S>
__device__ __forceinline__ void find_loop_weights(const StackItems& items, const CsrGraph& graph,
                                                  const S* edge_weights, const StackPresence& presence,
                                                  const ItemNumbers& loops) {
  if (!presence.masked()) return;
  items.for_each_with_mask<kLanes>([&](int node, int step, unsigned) {
    if (lane_of_item<kLanes>() != 0) return;
    float sum = 0.0f;
    int others = 0;
    const int last = graph.rowptr[node + 1] - 1;
#pragma unroll 1
    for (int entry = graph.rowptr[node]; edge_weights != nullptr && entry < last; ++entry) {
      if (!presence.has(graph.col[entry], step)) continue;
      sum += load(edge_weights + entry);
      ++others;
    }
    loops.at(node, step) = sum / static_cast<float>(others > 0 ? others : 1);
  });
}

// GCN: d^-1/2 of each item, where d is the sum of the weights of its entries whose sources are there; negative where
// the item is not.
template <int kLanes, class S>
__device__ __forceinline__ void find_scales(const StackItems& items, const CsrGraph& graph,
                                            const S* edge_weights, const StackPresence& presence,
                                            const ItemNumbers& scales) {
  if (!presence.masked()) return;
  items.for_each_with_mask<kLanes>([&](int node, int step, unsigned) {
    if (lane_of_item<kLanes>() != 0) return;
    float degree = 0.0f;
#pragma unroll 1
    for (int entry = graph.rowptr[node]; entry < graph.rowptr[node + 1]; ++entry) {
      if (presence.has(graph.col[entry], step)) degree += load(edge_weights + entry);
    }
    scales.at(node, step) = !presence.has(node, step) ? -1.0f : degree == 0.0f ? 0.0f : 1.0f / sqrt(degree);
  });
}

}  // namespace hiermt::cuda
