// GATv2 convolution over every time step, forward.
#include "conv_tasks.h"
#include "gatv2_block.h"
#include "kernels.h"
#include "parallel.h"

namespace hiermt {
namespace cpu {
namespace HIERMT_ISA {

namespace {

// Nodes gathered and projected together: their rows of x stay in the first-level cache.
constexpr int64_t kGatherNodes = 4 * kNodeTile;
// Ranges that the nodes of one large block are shared out in.
constexpr int64_t kNodeRanges = 64;

template <class S>
struct Forward {
  using C = Compute<S>;
  const GatV2ConvForward<S>& params;
  GatV2Packed<C> packed;
  const C* edge_weight;
  int64_t max_degree;

  // x_l, x_r and the linear scores of the nodes [begin, end), which are rows begin - first of the tiles.
  void project_nodes(const LaneChunk<C>& chunk, int64_t first, int64_t begin, int64_t end,
                     const TileSpan<C>& left, const TileSpan<C>& right, C* linear) const {
    ScratchFrame frame;
    const int64_t stride = packed.inputs * kLanes<C>;
    const TileSpan<C> x{frame.take<C>(kGatherNodes * stride), stride};
    const LaneRows<S> rows(params.x, chunk);
    for (int64_t n = begin; n < end; n += kGatherNodes) {
      const int64_t count = end - n < kGatherNodes ? end - n : kGatherNodes;
      for (int64_t k = 0; k < count; ++k) gather(rows, n + k, x.node(k));
      const int64_t row = n - first;
      project(packed, {x.data, stride}, {left.node(row), left.node_stride},
              {right.node(row), right.node_stride}, linear + row * kLanes<C>, 0, count);
    }
  }

  // The outputs of the targets [begin, end).
  void attend_nodes(const LaneChunk<C>& chunk, const Neighbourhood<C>& g, int64_t begin, int64_t end,
                    const TileSpan<C>& right) const {
    ScratchFrame frame;
    C* score = frame.take<C>(max_degree * kLanes<C>);
    const LaneRowsOut<S> rows(params.out, params.graph.num_nodes, params.steps, params.hidden, chunk);
    for (int64_t n = begin; n < end; ++n) {
      C* target = right.node(n - g.first);
      if (edge_weight) {
        attend<true>(packed, g, n - g.first, target, score, params.activation);
      } else {
        attend<false>(packed, g, n - g.first, target, score, params.activation);
      }
      scatter(target, rows, n);
    }
  }

  struct Tiles {
    TileSpan<C> left, right;
    C* linear;
    Tiles(ScratchFrame& frame, int64_t nodes, int64_t padded)
        : left{frame.take<C>(nodes * padded * kLanes<C>), padded * kLanes<C>},
          right{frame.take<C>(nodes * padded * kLanes<C>), padded * kLanes<C>},
          linear(frame.take<C>(nodes * kLanes<C>)) {}
  };
  Neighbourhood<C> neighbourhood(const Tiles& tiles, int64_t first) const {
    return {
        params.graph.rowptr, params.graph.col, edge_weight, first, {tiles.left.data, tiles.left.node_stride},
        tiles.linear};
  }

  // One task: the nodes [begin, end), which no edge leaves, and one chunk of instances.
  void run(const LaneChunk<C>& chunk, int64_t begin, int64_t end) const {
    ScratchFrame frame;
    const Tiles tiles(frame, end - begin, packed.padded);
    project_nodes(chunk, begin, begin, end, tiles.left, tiles.right, tiles.linear);
    attend_nodes(chunk, neighbourhood(tiles, begin), begin, end, tiles.right);
  }

  // The same with the nodes shared out among the threads, for a block too large, or too lonely, for one task.
  void run_phased(const LaneChunk<C>& chunk, int64_t begin, int64_t end) const {
    ScratchFrame frame;
    const Tiles tiles(frame, end - begin, packed.padded);
    const Neighbourhood<C> g = neighbourhood(tiles, begin);
    const int64_t ranges = end - begin < kNodeRanges ? end - begin : kNodeRanges;
    parallel_for(ranges, [&](int64_t range) {
      const Range nodes = split(end - begin, ranges, range);
      project_nodes(chunk, begin, begin + nodes.begin, begin + nodes.end, tiles.left, tiles.right,
                    tiles.linear);
    });
    parallel_for(ranges, [&](int64_t range) {
      const Range nodes = split(end - begin, ranges, range);
      attend_nodes(chunk, g, begin + nodes.begin, begin + nodes.end, tiles.right);
    });
  }
};

}  // namespace

template <class S>
void gatv2_conv_forward(const GatV2ConvForward<S>& params) {
  using C = Compute<S>;
  const int64_t instances = params.graph.copies * params.steps;
  if (instances == 0 || params.graph.num_nodes == 0 || params.hidden == 0) return;
  ScratchFrame frame;
  Forward<S> forward{params, pack_gatv2(frame, params.weights, params.x.channels, params.hidden), nullptr, 0};
  if (params.weights.lin_edge_weight) {
    forward.edge_weight = compute_weights(frame, params.edge_weight, params.graph.num_entries);
  }
  const int64_t node_bytes = (2 * forward.packed.padded + 1) * kVectorBytes;
  const NodeGroups groups = group_blocks(frame, params.graph, node_bytes);
  forward.max_degree = groups.degree;
  const int64_t chunks = chunk_count<C>(instances);
  const auto chunk = [&](int64_t index) { return LaneChunk<C>(params.steps, index * kLanes<C>, instances); };
  if (groups.largest * node_bytes > kPhasedBytes || groups.count * chunks == 1) {
    for (int64_t c = 0; c < chunks; ++c) {
      for (int64_t k = 0; k < groups.count; ++k)
        forward.run_phased(chunk(c), groups.begin[k], groups.begin[k + 1]);
    }
  } else {
    parallel_for(groups.count * chunks, [&](int64_t task) {
      const int64_t k = task / chunks;
      forward.run(chunk(task % chunks), groups.begin[k], groups.begin[k + 1]);
    });
  }
}

HIERMT_INSTANTIATE(gatv2_conv_forward)

}  // namespace HIERMT_ISA
}  // namespace cpu
}  // namespace hiermt
