// GATv2 convolution over every time step, backward.
#include <cstring>

#include "conv_tasks.h"
#include "gatv2_block_backward.h"
#include "kernels.h"
#include "parallel.h"

namespace hiermt {
namespace cpu {
namespace HIERMT_ISA {

namespace {

// Nodes whose dx is formed together, in the first-level cache.
constexpr int64_t kScatterNodes = 4 * kNodeTile;

template <class S>
struct Backward {
  using C = Compute<S>;
  const GatV2ConvForward<S>& params;
  const S* grad_out;
  S* grad_x;
  GatV2Packed<C> packed;
  GatV2Transposed<C> transposed;
  const C* edge_weight;
  int64_t max_degree;

  static constexpr int64_t L = kLanes<C>;

  static TileSpan<C> take(ScratchFrame& frame, int64_t nodes, int64_t channels) {
    return {frame.take<C>(nodes * channels * L), channels * L};
  }

  // One task. edge_gradient[e] is added to for every entry of the nodes, or nullptr.
  void run(const LaneChunk<C>& chunk, int64_t begin, int64_t end, const GatV2Sums<C>& sums,
           C* edge_gradient) const {
    ScratchFrame frame;
    const int64_t nodes = end - begin, padded = packed.padded;
    const TileSpan<C> x = take(frame, nodes, packed.inputs), dout = take(frame, nodes, padded);
    const TileSpan<C> left = take(frame, nodes, padded), right = take(frame, nodes, padded);
    const TileSpan<C> dleft = take(frame, nodes, padded);
    C* linear = frame.take<C>(nodes * L);
    const EntryScratch<C> scratch{frame.take<C>(max_degree * L), frame.take<C>(max_degree * L),
                                  frame.take<C>(max_degree * L)};
    const GatV2BackwardTiles<C> tiles{
        nodes, {x.data, x.node_stride}, {dout.data, dout.node_stride}, left, right, dleft};

    const LaneRows<S> x_rows(params.x, chunk);
    const SequenceView<S> out =
        contiguous_view<S>(params.out, params.graph.num_nodes, params.steps, params.hidden);
    SequenceView<S> grad = out;
    grad.data = grad_out;
    const LaneRows<S> out_rows(out, chunk), grad_rows(grad, chunk);
    for (int64_t n = 0; n < nodes; ++n) {
      gather(x_rows, begin + n, x.node(n));
      gather_cotangent(grad_rows, out_rows, params.activation, begin + n, padded, dout.node(n));
    }
    project(packed, tiles.x, left, right, linear, 0, nodes);
    std::memset(dleft.data, 0, static_cast<size_t>(nodes * dleft.node_stride) * sizeof(C));

    const Neighbourhood<C> g{
        params.graph.rowptr, params.graph.col, edge_weight, begin, {left.data, left.node_stride}, linear};
    if (!edge_weight) {
      conv_backward<false, false>(packed, g, tiles, sums, scratch, edge_gradient);
    } else if (!edge_gradient) {
      conv_backward<true, false>(packed, g, tiles, sums, scratch, edge_gradient);
    } else {
      conv_backward<true, true>(packed, g, tiles, sums, scratch, edge_gradient);
    }
    projection_sums(packed, tiles, sums);
    if (grad_x) scatter_input_cotangent(chunk, begin, tiles);
  }

  void scatter_input_cotangent(const LaneChunk<C>& chunk, int64_t begin,
                               const GatV2BackwardTiles<C>& tiles) const {
    ScratchFrame frame;
    const TileSpan<C> dx = take(frame, kScatterNodes, transposed.padded_inputs());
    const LaneRowsOut<S> rows(grad_x, params.graph.num_nodes, params.steps, packed.inputs, chunk);
    for (int64_t n = 0; n < tiles.nodes; n += kScatterNodes) {
      const int64_t count = tiles.nodes - n < kScatterNodes ? tiles.nodes - n : kScatterNodes;
      input_cotangent(transposed, tiles, n, n + count, dx);
      for (int64_t k = 0; k < count; ++k) scatter(dx.node(k), rows, begin + n + k);
    }
  }
};

}  // namespace

template <class S>
void gatv2_conv_backward(const GatV2ConvBackward<S, Compute<S>>& p) {
  using C = Compute<S>;
  const GatV2ConvForward<S>& params = p.forward;
  const CsrGraph& graph = params.graph;
  const int64_t instances = graph.copies * params.steps;
  ScratchFrame frame;
  Backward<S> backward{params,
                       p.grad_out,
                       p.grad_x,
                       pack_gatv2(frame, params.weights, params.x.channels, params.hidden),
                       pack_transposed(frame, params.weights, params.x.channels, params.hidden),
                       nullptr,
                       0};
  const GatV2Packed<C>& packed = backward.packed;
  if (params.weights.lin_edge_weight)
    backward.edge_weight = compute_weights(frame, params.edge_weight, graph.num_entries);
  const bool edge_gradient = p.grad_edge_weight != nullptr && backward.edge_weight != nullptr;

  const NodeGroups blocks =
      group_blocks(frame, graph, (4 * packed.padded + packed.inputs + 1) * kVectorBytes);
  backward.max_degree = blocks.degree;
  const int64_t chunks = chunk_count<C>(instances), tasks = blocks.count * chunks;
  const int64_t groups = tasks < kGradientGroups ? tasks : kGradientGroups;
  const int64_t vectors = GatV2Sums<C>::vectors(packed.padded, packed.inputs);
  C* totals = frame.take<C>(groups * vectors);

  // A group of tasks adds to the gradients of the entries of its own blocks.
  int64_t* edge_begin = frame.take<int64_t>(groups);
  int64_t* edge_offset = frame.take<int64_t>(groups + 1);
  edge_offset[0] = 0;
  for (int64_t k = 0; k < groups; ++k) {
    const Range range = split(tasks, groups, k);
    edge_begin[k] = graph.rowptr[blocks.begin[range.begin / chunks]];
    const int64_t end = graph.rowptr[blocks.begin[(range.end - 1) / chunks + 1]];
    edge_offset[k + 1] = edge_offset[k] + (end - edge_begin[k]);
  }
  C* edge_totals = edge_gradient && groups > 0 ? frame.take<C>(edge_offset[groups]) : nullptr;

  parallel_for(groups, [&](int64_t group) {
    ScratchFrame own;
    C* data = own.take<C>(vectors * kLanes<C>);
    std::memset(data, 0, static_cast<size_t>(vectors) * kVectorBytes);
    const GatV2Sums<C> sums = GatV2Sums<C>::over(data, packed.padded, packed.inputs);
    C* entries = nullptr;
    if (edge_totals) {
      entries = edge_totals + edge_offset[group];
      std::memset(entries, 0, static_cast<size_t>(edge_offset[group + 1] - edge_offset[group]) * sizeof(C));
      entries -= edge_begin[group];
    }
    const Range range = split(tasks, groups, group);
    for (int64_t task = range.begin; task < range.end; ++task) {
      const int64_t k = task / chunks;
      const LaneChunk<C> chunk(params.steps, task % chunks * kLanes<C>, instances);
      backward.run(chunk, blocks.begin[k], blocks.begin[k + 1], sums, entries);
    }
    reduce_lanes(data, vectors, totals + group * vectors);
  });
  write_gradients(packed, totals, groups, p.grads);
  if (p.grad_edge_weight) {
    for (int64_t e = 0; e < graph.num_entries; ++e) p.grad_edge_weight[e] = C(0);
    if (!edge_totals) return;
    for (int64_t k = 0; k < groups; ++k) {
      const C* entries = edge_totals + edge_offset[k];
      for (int64_t e = 0; e < edge_offset[k + 1] - edge_offset[k]; ++e)
        p.grad_edge_weight[edge_begin[k] + e] += entries[e];
    }
  }
}

HIERMT_INSTANTIATE(gatv2_conv_backward)

}  // namespace HIERMT_ISA
}  // namespace cpu
}  // namespace hiermt
