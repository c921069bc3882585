// How the dense convolutions walk their graph: a group of lanes owns one row (node, step), and a block the gradient of
// the weights of one node's entries. Neighbouring groups are neighbouring steps of the same node: they walk the same
// entries, so the lanes of a warp rarely diverge and their loads of a neighbour coalesce.
#pragma once

#include "cuda/dense/conv.h"
#include "cuda/support/device.cuh"

namespace hiermt::cuda {

struct ConvTraits {
  static constexpr int kThreads = 128;  // small blocks: a block lasts as long as its node of highest degree
  static_assert(kThreads % kWarp == 0);
};

// The row of a group of lanes in a tile of as many as a block has groups, and the channels of a lane, from `first` on.
template <int kHidden>
struct GroupRow {
  static constexpr int kChannels = ChannelSplit<kHidden>::kChannels;
  ChannelSplit<kHidden> split;
  int group, member, first;
  bool inside;  // a group past the last row repeats it
  int row;

  __device__ GroupRow(int64_t hidden, int tile, int rows)
      : split(kHidden != 0 ? kHidden : static_cast<int>(hidden)),
        group(static_cast<int>(threadIdx.x) / split.lanes),
        member(static_cast<int>(threadIdx.x) % split.lanes),
        first(member * kChannels) {
    move_to(tile, rows);
  }
  __device__ void move_to(int tile, int rows) {
    const int64_t wanted = static_cast<int64_t>(tile) * (ConvTraits::kThreads / split.lanes) + group;
    inside = wanted < rows;
    row = inside ? static_cast<int>(wanted) : rows - 1;
  }
  __device__ int64_t offset() const { return static_cast<int64_t>(row) * split.hidden; }

  static int64_t groups(int64_t hidden) {
    return ConvTraits::kThreads / ChannelSplit<kHidden>(static_cast<int>(hidden)).lanes;
  }
};

// Calls f with the number of channels as a constant (dispatch_hidden), whether there is a mask, and how many blocks
// own all rows.
template <class S, class Weights, class F>
void dispatch_rows(const ConvForward<S, Weights>& p, F&& f) {
  dispatch_hidden<S>(p.hidden, [&](auto hidden) {
    const int64_t blocks = ceil_div(p.rows(), GroupRow<hidden>::groups(p.hidden));
    dispatch_masked(p.present, [&](auto masked) { f(hidden, masked, blocks); });
  });
}

// d_weight[entry] = the sum of term(entry, instance, source row, target row, channel) over the instances of the
// template graph, copies and steps, and channels. One block per node; one more clears the padding, the entries past
// the last row.
template <class C, class Term>
__global__ void __launch_bounds__(ConvTraits::kThreads)
    edge_weight_grad_kernel(CsrGraph graph, int steps, int hidden, Term term, C* d_weight, bool accumulate) {
  SharedMemory shared;
  C* scratch = shared.take<C>(ConvTraits::kThreads);
  const int node = static_cast<int>(blockIdx.x), thread = static_cast<int>(threadIdx.x);
  if (node == graph.num_nodes) {
    for (int64_t i = graph.rowptr[node] + thread; i < graph.num_entries; i += ConvTraits::kThreads) {
      if (!accumulate) d_weight[i] = C(0);
    }
    return;
  }
  const int64_t values = graph.copies * steps * hidden;
  for (int entry = graph.rowptr[node]; entry < graph.rowptr[node + 1]; ++entry) {
    C sum = C(0);
    for (int64_t i = thread; i < values; i += ConvTraits::kThreads) {
      const int instance = static_cast<int>(i / hidden), c = static_cast<int>(i - int64_t{instance} * hidden);
      const int copy = instance / steps, step = instance - copy * steps;
      const int64_t first = copy * graph.num_nodes;
      sum +=
          term(entry, instance, (first + graph.col[entry]) * steps + step, (first + node) * steps + step, c);
    }
    sum = block_sum(sum, scratch);
    if (thread == 0) d_weight[entry] = accumulate ? d_weight[entry] + sum : sum;
  }
}

template <class S, class Weights, class Grads, class Term>
void edge_weight_grad(const ConvBackward<S, Weights, Grads>& p, const Term& term, Stream& on) {
  using C = Compute<S>;
  const ConvForward<S, Weights>& f = p.forward;
  launch(edge_weight_grad_kernel<C, Term>, f.graph.num_nodes + 1, ConvTraits::kThreads,
         padded_bytes<C>(ConvTraits::kThreads), on, f.graph, f.steps, f.hidden, term, p.d_edge_weight,
         p.accumulate_d_edge_weight);
}

}  // namespace hiermt::cuda
