// The convolution stack, backward. A task computes its convolutions again, tile by tile, so that the sequence
// between two convolutions is never stored.
#include <cstring>

#include "cpu/conv/conv_tasks.h"
#include "cpu/conv/gcn_block.h"
#include "cpu/support/kernels.h"
#include "cpu/support/parallel.h"

namespace hiermt {
namespace cpu {
namespace HIERMT_ISA {

namespace {

// Nodes whose dx is formed together, in the first-level cache.
constexpr int64_t kScatterNodes = 4 * kNodeTile;

template <class S>
struct StackBackward {
  using C = Compute<S>;
  static constexpr int64_t L = kLanes<C>;

  const ConvStackBackward<S, C>& params;
  const GatV2Packed<C>* convs;
  const GatV2Transposed<C>* transposed;
  const C* edge_weight;  // nullptr without an edge term
  int64_t max_degree;

  const ConvStackForward<S>& forward() const { return params.forward; }
  bool gat() const { return forward().gat != nullptr; }

  struct Task {
    const LaneChunk<C>& chunk;
    int64_t begin, end;        // nodes, which no edge leaves
    const GatV2Sums<C>* sums;  // [conv_layers] added to
    C* edge_gradient;          // [E] added to, or nullptr
    EntryScratch<C> scratch;
  };

  void run(const LaneChunk<C>& chunk, int64_t begin, int64_t end, const GatV2Sums<C>* sums,
           C* edge_gradient) const {
    ScratchFrame frame;
    const int64_t nodes = end - begin, padded = convs[0].padded, last = forward().conv_layers - 1;
    const Task task{
        chunk,
        begin,
        end,
        sums,
        edge_gradient,
        {frame.take<C>(max_degree * L), frame.take<C>(max_degree * L), frame.take<C>(max_degree * L)}};
    TileSpan<C>* inputs = frame.take<TileSpan<C>>(last + 1);
    for (int64_t k = 0; k <= last; ++k)
      inputs[k] = take_tiles<C>(frame, nodes, k == 0 ? convs[0].inputs : padded);
    GatV2BackwardTiles<C> tiles{nodes,
                                inputs[0],
                                take_tiles<C>(frame, nodes, padded),
                                take_tiles<C>(frame, nodes, padded),
                                take_tiles<C>(frame, nodes, padded),
                                take_tiles<C>(frame, nodes, padded)};
    C* linear = frame.take<C>(nodes * L);
    const Neighbourhood<C> g{
        forward().graph.rowptr, forward().graph.col, edge_weight, begin, tiles.left, linear};

    gather_tiles(task, inputs[0], tiles.dout);
    clear_dead_lanes(task, inputs[0]);
    for (int64_t k = 0; k < last; ++k) recompute(k, g, inputs[k], tiles.left, inputs[k + 1], linear, task);
    for (int64_t k = last; k >= 0; --k) {
      tiles.x = inputs[k];
      conv_backward(k, g, tiles, linear, task);
      if (k > 0) {
        input_cotangent(transposed[k], tiles, 0, nodes, tiles.dout);
        through_activation(inputs[k], tiles.dout, nodes);
        clear_dead_lanes(task, tiles.dout);
      } else if (params.d_x) {
        scatter_input_cotangent(task, tiles);
      }
    }
  }

  void gather_tiles(const Task& task, const TileSpan<C>& x, const TileSpan<C>& dout) const {
    const ConvStackForward<S>& f = forward();
    const LaneRows<S> x_rows(f.x, task.chunk);
    const LaneRows<S> out_rows(contiguous_view<S>(f.out, f.graph.num_nodes, f.steps, f.hidden), task.chunk);
    const LaneRows<S> d_rows(contiguous_view<S>(params.d_out, f.graph.num_nodes, f.steps, f.hidden),
                             task.chunk);
    for (int64_t n = task.begin; n < task.end; ++n) {
      prefetch_ahead(x_rows, n, task.end);
      prefetch_ahead(out_rows, n, task.end);
      prefetch_ahead(d_rows, n, task.end);
      gather(x_rows, n, x.node(n - task.begin));
      gather_cotangent(d_rows, out_rows, f.last, n, convs[0].padded, dout.node(n - task.begin));
    }
  }

  // out = convolution k of x, after its activation.
  void recompute(int64_t k, const Neighbourhood<C>& g, const TileSpan<C>& x, const TileSpan<C>& left,
                 const TileSpan<C>& out, C* linear, const Task& task) const {
    const int64_t nodes = task.end - task.begin;
    const TileSpan<const C> input = x;
    if (gat()) {
      project(convs[k], input, left, out, linear, 0, nodes);
    } else {
      product(convs[k].left, input, left, 0, nodes);
    }
    for (int64_t i = 0; i < nodes; ++i) {
      if (!gat()) {
        aggregate(convs[k], g, i, out.node(i), Activation::kLeakyRelu);
      } else if (edge_weight) {
        attend<true>(convs[k], g, i, out.node(i), task.scratch.score, Activation::kLeakyRelu);
      } else {
        attend<false>(convs[k], g, i, out.node(i), task.scratch.score, Activation::kLeakyRelu);
      }
    }
    clear_dead_lanes(task, out);
  }

  // From dout to dx_l and dx_r, and everything that is added to the sums.
  void conv_backward(int64_t k, const Neighbourhood<C>& g, const GatV2BackwardTiles<C>& t, C* linear,
                     const Task& task) const {
    std::memset(t.dleft.data, 0, static_cast<size_t>(t.nodes * t.dleft.node_stride) * sizeof(C));
    const GatV2Sums<C>& sums = task.sums[k];
    if (gat()) {
      project(convs[k], t.x, t.left, t.right, linear, 0, t.nodes);
    } else if (task.edge_gradient) {
      product(convs[k].left, t.x, t.left, 0, t.nodes);
      clear_dead_lanes(task, t.left);
    }
    for (int64_t i = 0; i < t.nodes; ++i) {
      const C* dout = t.dout.node(i);
      C* right = t.right.node(i);
      if (!gat()) {
        aggregate_backward(convs[k], g, i, dout, t.dleft, task.edge_gradient);
      } else if (!edge_weight) {
        attend_backward<false, false>(convs[k], g, i, dout, right, t.dleft, sums, task.scratch,
                                      task.edge_gradient);
      } else if (!task.edge_gradient) {
        attend_backward<true, false>(convs[k], g, i, dout, right, t.dleft, sums, task.scratch,
                                     task.edge_gradient);
      } else {
        attend_backward<true, true>(convs[k], g, i, dout, right, t.dleft, sums, task.scratch,
                                    task.edge_gradient);
      }
    }
    clear_dead_lanes(task, t.dleft);
    if (params.gat || params.gcn) projection_sums(convs[k], t, sums, gat());
  }

  // Only for a GCN: through the softmax of an attention all of a node is NaN then, in every lane alike.
  void clear_dead_lanes(const Task& task, const TileSpan<C>& tiles) const {
    if (!gat()) clear_lanes_past(task.chunk.count, tiles.data, (task.end - task.begin) * tiles.node_stride);
  }

  // d *= the slope of the inner activation at `value`, its result.
  void through_activation(const TileSpan<C>& value, const TileSpan<C>& d, int64_t nodes) const {
    for (int64_t i = 0; i < nodes * d.node_stride; i += L) {
      store(d.data + i, load(d.data + i) * activation_slope<C>(load(value.data + i), Activation::kLeakyRelu));
    }
  }

  void scatter_input_cotangent(const Task& task, const GatV2BackwardTiles<C>& tiles) const {
    ScratchFrame frame;
    const TileSpan<C> dx = take_tiles<C>(frame, kScatterNodes, transposed[0].left.outputs);
    const LaneRowsOut<S> rows(params.d_x, forward().graph.num_nodes, forward().steps, convs[0].inputs,
                              task.chunk);
    for (int64_t n = 0; n < tiles.nodes; n += kScatterNodes) {
      const int64_t count = tiles.nodes - n < kScatterNodes ? tiles.nodes - n : kScatterNodes;
      input_cotangent(transposed[0], tiles, n, n + count, dx);
      for (int64_t i = 0; i < count; ++i) {
        if (params.accumulate_d_x) {
          scatter<true>(dx.node(i), rows, task.begin + n + i);
        } else {
          scatter(dx.node(i), rows, task.begin + n + i);
        }
      }
    }
  }
};

// The gradient of the entries, one partial for each group of tasks, over the entries of the group's own
// blocks.
template <class C>
struct EdgePartials {
  int64_t* begin;   // [groups] first entry
  int64_t* offset;  // [groups + 1] where the partial stands in `data`
  C* data;          // nullptr when not wanted

  // Group k runs the tasks [tasks[k], tasks[k + 1]).
  EdgePartials(ScratchFrame& frame, const CsrGraph& graph, const NodeGroups& blocks, int64_t chunks,
               int64_t groups, const int64_t* tasks, bool wanted)
      : begin(frame.take<int64_t>(groups)), offset(frame.take<int64_t>(groups + 1)), data(nullptr) {
    offset[0] = 0;
    for (int64_t k = 0; k < groups; ++k) {
      const int64_t first = tasks[k] / chunks, last = (tasks[k + 1] - 1) / chunks;
      const bool none = tasks[k] == tasks[k + 1];
      begin[k] = none ? 0 : graph.rowptr[blocks.begin[first]];
      offset[k + 1] = offset[k] + (none ? 0 : graph.rowptr[blocks.begin[last + 1]] - begin[k]);
    }
    if (wanted) data = frame.take<C>(offset[groups]);
  }

  // Zeros, indexed by entry; nullptr when not wanted.
  C* start(int64_t group) const {
    if (!data) return nullptr;
    std::memset(data + offset[group], 0, static_cast<size_t>(offset[group + 1] - offset[group]) * sizeof(C));
    return data + offset[group] - begin[group];
  }

  void write(int64_t groups, int64_t entries, C* gradient) const {
    for (int64_t e = 0; e < entries; ++e) gradient[e] = C(0);
    for (int64_t k = 0; k < (data ? groups : 0); ++k) {
      for (int64_t e = 0; e < offset[k + 1] - offset[k]; ++e) gradient[begin[k] + e] += data[offset[k] + e];
    }
  }
};

}  // namespace

template <class S>
void conv_stack_backward(const ConvStackBackward<S, Compute<S>>& p) {
  using C = Compute<S>;
  const ConvStackForward<S>& f = p.forward;
  const int64_t instances = f.graph.copies * f.steps;
  ScratchFrame frame;
  GatV2Packed<C>* convs = frame.take<GatV2Packed<C>>(f.conv_layers);
  GatV2Transposed<C>* transposed = frame.take<GatV2Transposed<C>>(f.conv_layers);
  int64_t totals_size = 0, lanes_size = 0;
  for (int64_t k = 0; k < f.conv_layers; ++k) {
    const int64_t inputs = k == 0 ? f.x.channels : f.hidden;
    convs[k] =
        f.gat ? pack_gatv2(frame, f.gat[k], inputs, f.hidden) : pack_gcn(frame, f.gcn[k], inputs, f.hidden);
    transposed[k] =
        f.gat ? pack_transposed(frame, f.gat[k].lin_l_weight, f.gat[k].lin_r_weight, inputs, f.hidden)
              : pack_transposed<S>(frame, f.gcn[k].lin_weight, nullptr, inputs, f.hidden);
    totals_size += GatV2Sums<C>::totals(convs[k].padded, inputs);
    lanes_size += GatV2Sums<C>::lanes(convs[k].padded);
  }
  const int64_t node_bytes = ((f.conv_layers + 3) * convs[0].padded + f.x.channels + 1) * kVectorBytes;
  const NodeGroups blocks = group_blocks(frame, f.graph, node_bytes);
  const C* edge_weight = compute_weights(frame, f.edge_weight, f.graph.num_entries);
  const StackBackward<S> stack{p, convs, transposed, edge_weight, blocks.degree};

  const int64_t chunks = chunk_count<C>(instances), tasks = blocks.count * chunks;
  const int64_t groups = tasks < kGradientGroups ? tasks : kGradientGroups;
  C* totals = frame.take<C>(groups * totals_size);
  const int64_t* group_tasks = balance_tasks(frame, f.graph, blocks, chunks, groups);
  const EdgePartials<C> edges(frame, f.graph, blocks, chunks, groups, group_tasks,
                              p.d_edge_weight && edge_weight);
  parallel_for(groups, [&](int64_t group) {
    ScratchFrame own;
    GatV2Sums<C>* sums = own.take<GatV2Sums<C>>(f.conv_layers);
    C* lanes = own.take<C>(lanes_size);
    C* weights = totals + group * totals_size;
    std::memset(lanes, 0, static_cast<size_t>(lanes_size) * sizeof(C));
    std::memset(weights, 0, static_cast<size_t>(totals_size) * sizeof(C));
    for (int64_t k = 0; k < f.conv_layers; ++k) {
      sums[k] = GatV2Sums<C>::over(weights, lanes, convs[k].padded, convs[k].inputs);
      weights += GatV2Sums<C>::totals(convs[k].padded, convs[k].inputs);
      lanes += GatV2Sums<C>::lanes(convs[k].padded);
    }
    C* edge_gradient = edges.start(group);
    for (int64_t task = group_tasks[group]; task < group_tasks[group + 1]; ++task) {
      const LaneChunk<C> chunk(f.steps, task % chunks * kLanes<C>, instances);
      stack.run(chunk, blocks.begin[task / chunks], blocks.begin[task / chunks + 1], sums, edge_gradient);
    }
    for (int64_t k = 0; k < f.conv_layers; ++k) {
      C* rest = sums[k].left_weight + GatV2Sums<C>::weights(convs[k].padded, convs[k].inputs);
      reduce_lanes(sums[k].left_bias, GatV2Sums<C>::lanes(convs[k].padded) / kLanes<C>, rest);
    }
  });

  const C* own = totals;
  for (int64_t k = 0; k < f.conv_layers; ++k) {
    if (p.gat) write_gradients(convs[k], own, groups, totals_size, p.gat[k]);
    if (p.gcn) {
      const GatV2Grads<C> grads{p.gcn[k].lin_weight, nullptr, nullptr, nullptr, nullptr, nullptr,
                                p.gcn[k].bias};
      write_gradients(convs[k], own, groups, totals_size, grads);
    }
    own += GatV2Sums<C>::totals(convs[k].padded, convs[k].inputs);
  }
  if (p.d_edge_weight) edges.write(groups, f.graph.num_entries, p.d_edge_weight);
}

HIERMT_INSTANTIATE(conv_stack_backward)

}  // namespace HIERMT_ISA
}  // namespace cpu
}  // namespace hiermt
