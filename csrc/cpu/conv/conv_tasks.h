// How a graph convolution is split into tasks. A task is a closed range of nodes, which no edge leaves, and
// one chunk of instances. Its tiles stay in the second-level cache. The split depends on the problem alone,
// not on the number of threads.
#pragma once

#include "cpu/conv/lane_tile.h"
#include "cpu/support/scratch.h"

namespace hiermt::cpu::HIERMT_ISA {

// Size of the tiles of one task, for the second-level cache.
constexpr int64_t kTaskBytes = 512 * 1024;
// Tiles of a block above this size leave the caches anyway: the threads share its nodes instead.
constexpr int64_t kPhasedBytes = 16 * 1024 * 1024;
// Groups of tasks with sums of parameter gradients of their own.
constexpr int64_t kGradientGroups = 32;

// Consecutive closed blocks, joined while their tiles fit into kTaskBytes, or 1.5 times that if the next
// block is small beside the ones before it, such as a node without edges.
struct NodeGroups {
  int64_t count;
  int64_t largest;       // nodes of the largest group
  int64_t degree;        // largest number of entries of a node
  const int64_t* begin;  // [count + 1]
};

inline NodeGroups group_blocks(ScratchFrame& frame, const CsrGraph& graph, int64_t bytes_per_node) {
  int64_t* begin = frame.take<int64_t>(graph.num_blocks + 2);
  NodeGroups groups{0, 0, 0, begin};
  begin[0] = 0;
  for (int64_t b = 0; b < graph.num_blocks; ++b) {
    const int64_t start = begin[groups.count], end = graph.blocks[b + 1];
    const int64_t next = b + 1 < graph.num_blocks ? graph.blocks[b + 2] : end;
    const int64_t limit = (next - end) * 8 > end - start ? kTaskBytes : kTaskBytes * 3 / 2;
    const bool full = (next - start) * bytes_per_node > limit;
    if ((full || b + 1 == graph.num_blocks) && end > start) {
      begin[++groups.count] = end;
      if (end - start > groups.largest) groups.largest = end - start;
    }
  }
  for (int64_t n = 0; n < graph.num_nodes; ++n) {
    const int64_t degree = graph.rowptr[n + 1] - graph.rowptr[n];
    if (degree > groups.degree) groups.degree = degree;
  }
  return groups;
}

// Splits the tasks, ordered by block group and then chunk, into ranges of nearly equal work, counted in nodes
// and entries: range g is [result[g], result[g + 1]).
inline const int64_t* balance_tasks(ScratchFrame& frame, const CsrGraph& graph, const NodeGroups& blocks,
                                    int64_t chunks, int64_t ranges) {
  int64_t* begin = frame.take<int64_t>(ranges + 1);
  const auto work_before = [&](int64_t node) { return 2 * node + graph.rowptr[node]; };
  const int64_t all = work_before(graph.num_nodes) * chunks;
  int64_t range = 0, done = 0;
  for (int64_t k = 0; k < blocks.count; ++k) {
    const int64_t work = work_before(blocks.begin[k + 1]) - work_before(blocks.begin[k]);
    for (int64_t c = 0; c < chunks; ++c, done += work) {
      // A task belongs to the range that contains its middle.
      while (range * all <= (done + work / 2) * ranges && range < ranges) begin[range++] = k * chunks + c;
    }
  }
  while (range <= ranges) begin[range++] = blocks.count * chunks;
  return begin;
}

// The edge weights in compute precision: the given ones, a converted copy, or nullptr without edge weights.
template <class S, class C = Compute<S>>
const C* compute_weights(ScratchFrame& frame, const S* weight, int64_t count) {
  if constexpr (std::is_same_v<S, C>) {
    return weight;
  } else {
    if (weight == nullptr) return nullptr;
    C* converted = frame.take<C>(count);
    for (int64_t e = 0; e < count; ++e) converted[e] = to_compute(weight[e]);
    return converted;
  }
}

}  // namespace hiermt::cpu::HIERMT_ISA
