// The convolution stack, forward.
#include "cpu/conv/conv_tasks.h"
#include "cpu/conv/gatv2_block.h"
#include "cpu/conv/gcn_block.h"
#include "cpu/support/kernels.h"
#include "cpu/support/parallel.h"

namespace hiermt {
namespace cpu {
namespace HIERMT_ISA {

namespace {

// Nodes gathered and projected together: their rows of x stay in the first-level cache.
constexpr int64_t kGatherNodes = 4 * kNodeTile;
// Ranges that the nodes of one large block are shared out in.
constexpr int64_t kNodeRanges = 64;

template <class S>
struct StackForward {
  using C = Compute<S>;
  static constexpr int64_t L = kLanes<C>;

  const ConvStackForward<S>& params;
  const PackedConv<C>* convs;
  const C* edge_weight;  // nullptr without an edge term
  int64_t max_degree;

  // Convolution k reads the output of its predecessor from result(k - 1) and leaves its own in result(k).
  struct Tiles {
    TileSpan<C> x_l, even, odd;
    C* linear_score;
    Tiles(ScratchFrame& frame, int64_t nodes, int64_t padded, int64_t conv_layers)
        : x_l(take_tiles<C>(frame, nodes, padded)),
          even(take_tiles<C>(frame, nodes, padded)),
          odd(take_tiles<C>(frame, conv_layers > 1 ? nodes : 0, padded)),
          linear_score(frame.take<C>(nodes * L)) {}
    const TileSpan<C>& result(int64_t k) const { return k % 2 == 0 ? even : odd; }
  };

  Activation activation(int64_t k) const {
    return k + 1 == params.conv_layers ? params.last : Activation::kLeakyRelu;
  }

  // x_l, x_r and the linear scores of convolution k for the nodes [begin, end); row 0 of the tiles is node
  // `first`.
  void project_nodes(int64_t k, const LaneChunk<C>& chunk, int64_t first, int64_t begin, int64_t end,
                     const Tiles& tiles) const {
    ScratchFrame frame;
    const int64_t stride = convs[k].inputs * L;
    C* gathered = k == 0 ? frame.take<C>(kGatherNodes * stride) : nullptr;
    const LaneRows<S> rows(params.x, chunk);
    for (int64_t n = begin; n < end; n += kGatherNodes) {
      const int64_t count = end - n < kGatherNodes ? end - n : kGatherNodes, row = n - first;
      TileSpan<const C> x{gathered, stride};
      if (k == 0) {
        for (int64_t i = 0; i < count; ++i) {
          prefetch_ahead(rows, n + i, end);
          gather(rows, n + i, gathered + i * stride);
        }
      } else {
        x = tiles.result(k - 1).from(row);
      }
      if (params.gat) {
        project(convs[k], x, tiles.x_l.from(row), tiles.result(k).from(row), tiles.linear_score + row * L, 0,
                count);
      } else {
        product(convs[k].lin_l, x, tiles.x_l.from(row), 0, count);
      }
    }
  }

  // The outputs of convolution k at the targets [begin, end).
  void attend_nodes(int64_t k, const LaneChunk<C>& chunk, int64_t first, int64_t begin, int64_t end,
                    const Tiles& tiles) const {
    ScratchFrame frame;
    C* score = frame.take<C>(max_degree * L);
    const bool last = k + 1 == params.conv_layers;
    const LaneRowsOut<S> rows(params.out, params.graph.num_nodes, params.steps, params.hidden, chunk);
    const TileGraph<C> g{params.graph.rowptr, params.graph.col,  edge_weight, first,
                         tiles.x_l.from(0),   tiles.linear_score};
    for (int64_t i = begin - first; i < end - first; ++i) {
      C* target = tiles.result(k).node(i);
      if (!params.gat) {
        aggregate(convs[k], g, i, target, activation(k));
      } else if (edge_weight) {
        attend<true>(convs[k], g, i, target, score, activation(k));
      } else {
        attend<false>(convs[k], g, i, target, score, activation(k));
      }
      if (last) scatter(target, rows, first + i);
    }
  }

  // One task: the nodes [begin, end), which no edge leaves, and one chunk of instances.
  void run(const LaneChunk<C>& chunk, int64_t begin, int64_t end) const {
    ScratchFrame frame;
    const Tiles tiles(frame, end - begin, convs[0].padded, params.conv_layers);
    for (int64_t k = 0; k < params.conv_layers; ++k) {
      project_nodes(k, chunk, begin, begin, end, tiles);
      attend_nodes(k, chunk, begin, begin, end, tiles);
    }
  }

  // The same with the nodes shared out among the threads, for a block too large, or too lonely, for one task.
  void run_phased(const LaneChunk<C>& chunk, int64_t begin, int64_t end) const {
    ScratchFrame frame;
    const Tiles tiles(frame, end - begin, convs[0].padded, params.conv_layers);
    const int64_t ranges = end - begin < kNodeRanges ? end - begin : kNodeRanges;
    for (int64_t k = 0; k < params.conv_layers; ++k) {
      parallel_for(ranges, [&](int64_t index) {
        const Range range = split(end - begin, ranges, index);
        project_nodes(k, chunk, begin, begin + range.begin, begin + range.end, tiles);
      });
      parallel_for(ranges, [&](int64_t index) {
        const Range range = split(end - begin, ranges, index);
        attend_nodes(k, chunk, begin, begin + range.begin, begin + range.end, tiles);
      });
    }
  }
};

}  // namespace

template <class S>
void conv_stack_forward(const ConvStackForward<S>& p) {
  using C = Compute<S>;
  const int64_t instances = p.graph.copies * p.steps;
  if (instances == 0 || p.graph.num_nodes == 0 || p.hidden == 0) return;
  ScratchFrame frame;
  PackedConv<C>* convs = frame.take<PackedConv<C>>(p.conv_layers);
  for (int64_t k = 0; k < p.conv_layers; ++k) {
    const int64_t inputs = k == 0 ? p.x.channels : p.hidden;
    convs[k] =
        p.gat ? pack_gatv2(frame, p.gat[k], inputs, p.hidden) : pack_gcn(frame, p.gcn[k], inputs, p.hidden);
  }
  const int64_t node_bytes = (3 * convs[0].padded + 1) * kVectorBytes;
  const NodeGroups groups = group_blocks(frame, p.graph, node_bytes);
  const StackForward<S> stack{p, convs, compute_weights(frame, p.edge_weight, p.graph.num_entries),
                              groups.degree};

  const int64_t chunks = chunk_count<C>(instances);
  const auto chunk = [&](int64_t index) { return LaneChunk<C>(p.steps, index * kLanes<C>, instances); };
  if (groups.largest * node_bytes > kPhasedBytes || groups.count * chunks == 1) {
    for (int64_t c = 0; c < chunks; ++c) {
      for (int64_t k = 0; k < groups.count; ++k)
        stack.run_phased(chunk(c), groups.begin[k], groups.begin[k + 1]);
    }
  } else {
    parallel_for(groups.count * chunks, [&](int64_t task) {
      const int64_t k = task % groups.count;
      stack.run(chunk(task / groups.count), groups.begin[k], groups.begin[k + 1]);
    });
  }
}

HIERMT_INSTANTIATE(conv_stack_forward)

}  // namespace HIERMT_ISA
}  // namespace cpu
}  // namespace hiermt
