// The convolution stack, backward. A task recomputes the convolutions of its tiles, so that the sequences
// between the convolutions are never stored.
#include <cstring>

#include "cpu/conv/conv_tasks.h"
#include "cpu/conv/convolution.h"
#include "cpu/conv/gatv2_block_backward.h"
#include "cpu/support/kernels.h"
#include "cpu/support/parallel.h"

namespace hiermt::cpu::HIERMT_ISA {

namespace {

// Nodes whose d_x is computed together: their tiles stay in the first-level cache.
constexpr int64_t kScatterNodes = 4 * kNodeTile;

template <class S>
struct StackBackward {
  using C = Compute<S>;
  static constexpr int64_t L = kLanes<C>;

  const ConvStackBackward<S, C>& params;
  const PackedConv<C>* convs;
  const TransposedConv<C>* transposed;
  const C* edge_weight;  // nullptr without an edge term
  int64_t max_degree;

  const ConvStackForward<S>& forward() const { return params.forward; }
  bool gat() const { return convs[0].gat(); }
  bool masked() const { return forward().present != nullptr; }

  struct Task {
    const LaneChunk<C>& chunk;
    int64_t begin, end;       // nodes, which no edge leaves
    const ConvSums<C>* sums;  // [conv_layers] added to
    C* d_edge_weight;         // [E] added to, or nullptr
    EntryScratch<C> scratch;
    C* d_log_scale;  // [node][lane] of a GCN with a mask
  };

  void run(const LaneChunk<C>& chunk, int64_t begin, int64_t end, const ConvSums<C>* sums,
           C* d_edge_weight) const {
    ScratchFrame frame;
    const int64_t nodes = end - begin, padded = convs[0].padded, last = forward().conv_layers - 1;
    const Task task{
        chunk,
        begin,
        end,
        sums,
        d_edge_weight,
        {frame.take<C>(max_degree * L), frame.take<C>(max_degree * L), frame.take<C>(max_degree * L)},
        masked() && !gat() ? frame.take<C>(nodes * L) : nullptr};
    TileSpan<C>* inputs = frame.take<TileSpan<C>>(last + 1);
    for (int64_t k = 0; k <= last; ++k)
      inputs[k] = take_tiles<C>(frame, nodes, k == 0 ? convs[0].inputs : padded);
    BackwardTiles<C> tiles{nodes,
                           inputs[0],
                           take_tiles<C>(frame, nodes, padded),
                           take_tiles<C>(frame, nodes, padded),
                           take_tiles<C>(frame, nodes, padded),
                           take_tiles<C>(frame, nodes, padded)};
    C* linear_score = frame.take<C>(nodes * L);
    const CsrGraph& graph = forward().graph;
    const Presence<C> presence = masked() ? Presence<C>::take(frame, nodes, gat()) : Presence<C>{};
    if (masked()) {
      gather_presence(presence, forward().present, graph.num_nodes, forward().steps, chunk, begin, begin,
                      end);
      if (!gat()) set_scales(presence, graph.rowptr, graph.col, edge_weight, begin, begin, end);
    }
    const TileGraph<C> g{graph.rowptr, graph.col, edge_weight, begin, tiles.x_l, linear_score, presence};

    gather_tiles(task, inputs[0], tiles.d_out);
    if (masked()) {
      // What is not read may be NaN, or have a cotangent.
      clear_absent(presence, inputs[0], convs[0].inputs, 0, nodes);
      clear_absent(presence, tiles.d_out, padded, 0, nodes);
    }
    clear_unused_lanes(task, inputs[0]);
    for (int64_t k = 0; k < last; ++k)
      recompute(k, g, inputs[k], tiles.x_l, inputs[k + 1], linear_score, task);
    for (int64_t k = last; k >= 0; --k) {
      tiles.x = inputs[k];
      conv_backward(k, g, tiles, linear_score, task);
      if (k > 0) {
        input_cotangent(transposed[k], tiles, 0, nodes, tiles.d_out);
        activation_backward(inputs[k], tiles.d_out, nodes);
        if (masked()) clear_absent(presence, tiles.d_out, padded, 0, nodes);
        clear_unused_lanes(task, tiles.d_out);
      } else if (params.d_x) {
        scatter_input_cotangent(task, tiles, presence);
      }
    }
  }

  void gather_tiles(const Task& task, const TileSpan<C>& x, const TileSpan<C>& d_out) const {
    const ConvStackForward<S>& f = forward();
    const LaneRows<S> x_rows(f.x, task.chunk);
    const LaneRows<S> out_rows(contiguous_view<S>(f.out, f.graph.num_nodes, f.steps, f.hidden), task.chunk);
    const LaneRows<S> d_out_rows(contiguous_view<S>(params.d_out, f.graph.num_nodes, f.steps, f.hidden),
                                 task.chunk);
    for (int64_t n = task.begin; n < task.end; ++n) {
      prefetch_ahead(x_rows, n, task.end);
      prefetch_ahead(out_rows, n, task.end);
      prefetch_ahead(d_out_rows, n, task.end);
      gather(x_rows, n, x.node(n - task.begin));
      gather_cotangent(d_out_rows, out_rows, f.last, n, convs[0].padded, d_out.node(n - task.begin));
    }
  }

  template <bool kGat, bool kMasked>
  HIERMT_NOINLINE void recompute_targets(int64_t k, const TileGraph<C>& g, const TileSpan<C>& out,
                                         const Task& task) const {
    for (int64_t i = 0; i < task.end - task.begin; ++i) {
      convolve<kGat, kMasked>(convs[k], g, i, out.node(i), task.scratch.score, Activation::kLeakyRelu);
    }
  }

  // out = convolution k of x, after its activation.
  void recompute(int64_t k, const TileGraph<C>& g, const TileSpan<C>& x, const TileSpan<C>& x_l,
                 const TileSpan<C>& out, C* linear_score, const Task& task) const {
    const int64_t nodes = task.end - task.begin;
    project<C>(convs[k], x, x_l, out, linear_score, g.presence, 0, nodes);
    for_kind(gat(), masked(),
             [&](auto gat, auto masked) { recompute_targets<gat(), masked()>(k, g, out, task); });
    clear_unused_lanes(task, out);
  }

  // Computes d_x_l and d_x_r from d_out and adds to the sums.
  void conv_backward(int64_t k, const TileGraph<C>& g, const BackwardTiles<C>& t, C* linear_score,
                     const Task& task) const {
    const ConvSums<C>& sums = task.sums[k];
    if (gat() || task.d_edge_weight) {
      project(convs[k], t.x, t.x_l, t.x_r, linear_score, g.presence, 0, t.nodes);
      clear_unused_lanes(task, t.x_l);
    }
    for_kind(gat(), masked(), [&](auto gat, auto masked) {
      if constexpr (gat()) {
        attention_backward<masked()>(k, g, t, task);
      } else {
        sums_backward<masked()>(k, g, t, task);
      }
    });
    clear_unused_lanes(task, t.d_x_l);
    if (params.gat || params.gcn) add_projection_sums(convs[k], t, sums);
  }

  template <bool kMasked>
  HIERMT_NOINLINE void attention_backward(int64_t k, const TileGraph<C>& g, const BackwardTiles<C>& t,
                                          const Task& task) const {
    const ConvSums<C>& sums = task.sums[k];
    std::memset(t.d_x_l.data, 0, static_cast<size_t>(t.nodes * t.d_x_l.node_stride) * sizeof(C));
    for (int64_t i = 0; i < t.nodes; ++i) {
      const C* d_out = t.d_out.node(i);
      C* x_r = t.x_r.node(i);
      if (!edge_weight) {
        attend_backward<false, false, kMasked>(convs[k], g, i, d_out, x_r, t.d_x_l, sums, task.scratch,
                                               task.d_edge_weight);
      } else if (!task.d_edge_weight) {
        attend_backward<true, false, kMasked>(convs[k], g, i, d_out, x_r, t.d_x_l, sums, task.scratch,
                                              task.d_edge_weight);
      } else {
        attend_backward<true, true, kMasked>(convs[k], g, i, d_out, x_r, t.d_x_l, sums, task.scratch,
                                             task.d_edge_weight);
      }
    }
  }

  template <bool kMasked>
  HIERMT_NOINLINE void sums_backward(int64_t k, const TileGraph<C>& g, const BackwardTiles<C>& t,
                                     const Task& task) const {
    for (int64_t j = 0; j < t.nodes; ++j) {
      aggregate_backward<kMasked>(convs[k], g, forward().graph, j, t.d_out, t.d_x_l.node(j));
    }
    if (task.d_edge_weight) {
      if (kMasked) std::memset(task.d_log_scale, 0, static_cast<size_t>(t.nodes * L) * sizeof(C));
      for (int64_t i = 0; i < t.nodes; ++i) {
        norm_backward<kMasked>(convs[k], g, i, t.d_out.node(i), task.d_edge_weight, task.d_log_scale);
      }
      for (int64_t i = 0; i < (kMasked ? t.nodes : 0); ++i) {
        degree_backward(g, i, task.d_log_scale, task.d_edge_weight);
      }
    }
    if (kMasked) apply_scales(g.presence, t.d_x_l, convs[k].padded, 0, t.nodes);
  }

  // GCN only. In a GATv2 an infinity makes the whole node NaN through the softmax, in every lane alike.
  void clear_unused_lanes(const Task& task, const TileSpan<C>& tiles) const {
    if (!gat()) clear_lanes_past(task.chunk.count, tiles.data, (task.end - task.begin) * tiles.node_stride);
  }

  // d *= the derivative of the inner activation, from its result `value`.
  void activation_backward(const TileSpan<C>& value, const TileSpan<C>& d, int64_t nodes) const {
    for (int64_t i = 0; i < nodes * d.node_stride; i += L) {
      store(d.data + i, load(d.data + i) * activation_slope<C>(load(value.data + i), Activation::kLeakyRelu));
    }
  }

  void scatter_input_cotangent(const Task& task, const BackwardTiles<C>& tiles,
                               const Presence<C>& presence) const {
    ScratchFrame frame;
    const TileSpan<C> d_x = take_tiles<C>(frame, kScatterNodes, transposed[0].lin_l.outputs);
    const LaneRowsOut<S> rows(params.d_x, forward().graph.num_nodes, forward().steps, convs[0].inputs,
                              task.chunk);
    for (int64_t n = 0; n < tiles.nodes; n += kScatterNodes) {
      const int64_t count = min(tiles.nodes - n, kScatterNodes);
      if (params.accumulate_d_x) {
        for (int64_t i = 0; i < count; ++i) prefetch_to_add(rows, task.begin + n + i);
      }
      input_cotangent(transposed[0], tiles, n, n + count, d_x);
      if (masked()) clear_absent(presence.from(n), d_x, transposed[0].lin_l.outputs, 0, count);
      for (int64_t i = 0; i < count; ++i) {
        if (params.accumulate_d_x) {
          scatter<true>(d_x.node(i), rows, task.begin + n + i);
        } else {
          scatter(d_x.node(i), rows, task.begin + n + i);
        }
      }
    }
  }
};

// The gradient of the edge weights: a partial sum per group of tasks, over the entries of the blocks of the
// group.
template <class C>
struct EdgePartials {
  int64_t* begin;   // [groups] first entry
  int64_t* offset;  // [groups + 1] of the partial sum in `data`
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

  // The cleared partial sum of a group, indexed by entry; nullptr when not wanted.
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
  const PackedConv<C>* convs = pack_convs(frame, f);
  TransposedConv<C>* transposed = frame.take<TransposedConv<C>>(f.conv_layers);
  int64_t totals_size = 0, lanes_size = 0;
  for (int64_t k = 0; k < f.conv_layers; ++k) {
    const int64_t inputs = convs[k].inputs;
    transposed[k] =
        f.gat ? pack_transposed(frame, f.gat[k].lin_l_weight, f.gat[k].lin_r_weight, inputs, f.hidden)
              : pack_transposed<S>(frame, f.gcn[k].lin_weight, nullptr, inputs, f.hidden);
    totals_size += ConvSums<C>::totals(convs[k]);
    lanes_size += ConvSums<C>::lanes(convs[k]);
  }
  const int64_t masks = f.present ? Presence<C>::vectors(f.gat != nullptr) : 0;
  const int64_t node_bytes =
      ((f.conv_layers + 3) * convs[0].padded + f.x.channels + 1 + masks) * kVectorBytes;
  const NodeGroups blocks = group_blocks(frame, f.graph, node_bytes);
  const C* edge_weight = compute_weights(frame, f.edge_weight, f.graph.num_entries);
  const StackBackward<S> stack{p, convs, transposed, edge_weight, blocks.degree};

  const int64_t chunks = chunk_count<C>(instances), tasks = blocks.count * chunks;
  const int64_t groups = min(tasks, kGradientGroups);
  C* totals = frame.take<C>(groups * totals_size);
  const int64_t* group_tasks = balance_tasks(frame, f.graph, blocks, chunks, groups);
  const EdgePartials<C> edges(frame, f.graph, blocks, chunks, groups, group_tasks,
                              p.d_edge_weight && edge_weight && f.hidden > 0);
  parallel_for(groups, [&](int64_t group) {
    ScratchFrame own;
    ConvSums<C>* sums = own.take<ConvSums<C>>(f.conv_layers);
    C* lanes = own.take<C>(lanes_size);
    C* weights = totals + group * totals_size;
    std::memset(lanes, 0, static_cast<size_t>(lanes_size) * sizeof(C));
    std::memset(weights, 0, static_cast<size_t>(totals_size) * sizeof(C));
    for (int64_t k = 0; k < f.conv_layers; ++k) {
      sums[k] = ConvSums<C>::over(convs[k], weights, lanes);
      weights += ConvSums<C>::totals(convs[k]);
      lanes += ConvSums<C>::lanes(convs[k]);
    }
    C* d_edge_weight = edges.start(group);
    for (int64_t task = group_tasks[group]; task < group_tasks[group + 1]; ++task) {
      const LaneChunk<C> chunk(f.steps, task % chunks * kLanes<C>, instances);
      stack.run(chunk, blocks.begin[task / chunks], blocks.begin[task / chunks + 1], sums, d_edge_weight);
    }
    for (int64_t k = 0; k < f.conv_layers; ++k) {
      C* rest = sums[k].lin_l_weight + ConvSums<C>::weights(convs[k]);
      reduce_lanes(sums[k].lin_l_bias, ConvSums<C>::lanes(convs[k]) / kLanes<C>, rest);
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
    own += ConvSums<C>::totals(convs[k]);
  }
  if (p.d_edge_weight) edges.write(groups, f.graph.num_entries, p.d_edge_weight);
}

HIERMT_INSTANTIATE(conv_stack_backward)

}  // namespace hiermt::cpu::HIERMT_ISA
