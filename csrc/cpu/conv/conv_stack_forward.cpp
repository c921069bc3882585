// The convolution stack, forward: x_{k+1} = activation(conv_k(x_k)) for every instance. Only x_0 and the last
// output are sequences in memory; the outputs between are tiles of a task.
#include "cpu/conv/conv_tasks.h"
#include "cpu/conv/convolution.h"
#include "cpu/support/kernels.h"
#include "cpu/support/parallel.h"

namespace hiermt::cpu::HIERMT_ISA {

namespace {

// Nodes gathered and projected together: their tiles of x stay in the first-level cache.
constexpr int64_t kGatherNodes = 4 * kNodeTile;
// Ranges of nodes of a block whose nodes the threads share.
constexpr int64_t kNodeRanges = 64;

template <class S>
struct StackForward {
  using C = Compute<S>;
  static constexpr int64_t L = kLanes<C>;

  const ConvStackForward<S>& params;
  const PackedConv<C>* convs;
  const C* edge_weight;  // nullptr without an edge term
  int64_t max_degree;

  // Convolution k reads result(k - 1) and writes result(k).
  struct Tiles {
    TileSpan<C> x_l, even, odd;
    C* linear_score;
    Presence<C> presence;
    Tiles(ScratchFrame& frame, int64_t nodes, int64_t padded, int64_t conv_layers, bool masked, bool gat)
        : x_l(take_tiles<C>(frame, nodes, padded)),
          even(take_tiles<C>(frame, nodes, padded)),
          odd(take_tiles<C>(frame, conv_layers > 1 ? nodes : 0, padded)),
          linear_score(frame.take<C>(nodes * L)),
          presence(masked ? Presence<C>::take(frame, nodes, gat) : Presence<C>{}) {}
    const TileSpan<C>& result(int64_t k) const { return k % 2 == 0 ? even : odd; }
  };

  Activation activation(int64_t k) const {
    return k + 1 == params.conv_layers ? params.last : Activation::kLeakyRelu;
  }

  Tiles take_tiles_of(ScratchFrame& frame, int64_t nodes) const {
    return Tiles(frame, nodes, convs[0].padded, params.conv_layers, params.present != nullptr,
                 convs[0].gat());
  }
  void gather_nodes(const LaneChunk<C>& chunk, int64_t first, int64_t begin, int64_t end,
                    const Tiles& tiles) const {
    gather_presence(tiles.presence, params.present, params.graph.num_nodes, params.steps, chunk, first, begin,
                    end);
  }
  void scale_nodes(int64_t first, int64_t begin, int64_t end, const Tiles& tiles) const {
    if (tiles.presence.scale == nullptr) return;
    set_scales(tiles.presence, params.graph.rowptr, params.graph.col, edge_weight, first, begin, end);
  }

  // x_l, x_r and the linear scores of convolution k for the nodes [begin, end). Row 0 of the tiles is node
  // `first`.
  void project_nodes(int64_t k, const LaneChunk<C>& chunk, int64_t first, int64_t begin, int64_t end,
                     const Tiles& tiles) const {
    ScratchFrame frame;
    const int64_t stride = convs[k].inputs * L;
    C* gathered = k == 0 ? frame.take<C>(kGatherNodes * stride) : nullptr;
    const LaneRows<S> rows(params.x, chunk);
    for (int64_t n = begin; n < end; n += kGatherNodes) {
      const int64_t count = min(end - n, kGatherNodes), row = n - first;
      TileSpan<const C> x{gathered, stride};
      if (k == 0) {
        for (int64_t i = 0; i < count; ++i) {
          prefetch_ahead(rows, n + i, end);
          gather(rows, n + i, gathered + i * stride);
        }
      } else {
        x = tiles.result(k - 1).from(row);
      }
      project(convs[k], x, tiles.x_l.from(row), tiles.result(k).from(row), tiles.linear_score + row * L,
              tiles.presence.from(row), 0, count);
    }
  }

  // The outputs of convolution k at the targets [begin, end).
  void convolve_nodes(int64_t k, const LaneChunk<C>& chunk, int64_t first, int64_t begin, int64_t end,
                      const Tiles& tiles) const {
    for_kind(convs[0].gat(), params.present, [&](auto gat, auto masked) {
      convolve_targets<gat(), masked()>(k, chunk, first, begin, end, tiles);
    });
  }

  template <bool kGat, bool kMasked>
  HIERMT_NOINLINE void convolve_targets(int64_t k, const LaneChunk<C>& chunk, int64_t first, int64_t begin,
                                        int64_t end, const Tiles& tiles) const {
    ScratchFrame frame;
    C* score = frame.take<C>(max_degree * L);
    const bool last = k + 1 == params.conv_layers;
    const LaneRowsOut<S> rows(params.out, params.graph.num_nodes, params.steps, params.hidden, chunk);
    const TileGraph<C> g{params.graph.rowptr, params.graph.col,   edge_weight,   first,
                         tiles.x_l.from(0),   tiles.linear_score, tiles.presence};
    for (int64_t i = begin - first; i < end - first; ++i) {
      C* target = tiles.result(k).node(i);
      convolve<kGat, kMasked>(convs[k], g, i, target, score, activation(k));
      if (last) scatter(target, rows, first + i);
    }
  }

  // One task: the nodes [begin, end), which no edge leaves, and one chunk of instances.
  void run(const LaneChunk<C>& chunk, int64_t begin, int64_t end) const {
    ScratchFrame frame;
    const Tiles tiles = take_tiles_of(frame, end - begin);
    if (params.present) {
      gather_nodes(chunk, begin, begin, end, tiles);
      scale_nodes(begin, begin, end, tiles);
    }
    for (int64_t k = 0; k < params.conv_layers; ++k) {
      project_nodes(k, chunk, begin, begin, end, tiles);
      convolve_nodes(k, chunk, begin, begin, end, tiles);
    }
  }

  // The same with the nodes of the block shared among the threads, for a block too large for one task or the
  // only one.
  void run_phased(const LaneChunk<C>& chunk, int64_t begin, int64_t end) const {
    ScratchFrame frame;
    const Tiles tiles = take_tiles_of(frame, end - begin);
    const int64_t ranges = min(end - begin, kNodeRanges);
    if (params.present) {
      parallel_for(ranges, [&](int64_t index) {
        const Range range = split(end - begin, ranges, index);
        gather_nodes(chunk, begin, begin + range.begin, begin + range.end, tiles);
      });
      parallel_for(ranges, [&](int64_t index) {
        const Range range = split(end - begin, ranges, index);
        scale_nodes(begin, begin + range.begin, begin + range.end, tiles);
      });
    }
    for (int64_t k = 0; k < params.conv_layers; ++k) {
      parallel_for(ranges, [&](int64_t index) {
        const Range range = split(end - begin, ranges, index);
        project_nodes(k, chunk, begin, begin + range.begin, begin + range.end, tiles);
      });
      parallel_for(ranges, [&](int64_t index) {
        const Range range = split(end - begin, ranges, index);
        convolve_nodes(k, chunk, begin, begin + range.begin, begin + range.end, tiles);
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
  const PackedConv<C>* convs = pack_convs(frame, p);
  const int64_t masks = p.present ? Presence<C>::vectors(p.gat != nullptr) : 0;
  const int64_t node_bytes = (3 * convs[0].padded + 1 + masks) * kVectorBytes;
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

}  // namespace hiermt::cpu::HIERMT_ISA
