// GATv2 convolution, backward (names in gatv2_conv.cuh). With d_y the cotangent of the activation's argument:
//
//   d_alpha = d_y[i] . x_l[j]     d_score = alpha (d_alpha - sum_k alpha_k d_alpha_k)
//   d_z = d_score att leaky'(z)
//   d_x_r[i] = sum over the entries of i of d_z                      (target kernel, CSR)
//   d_x_l[j] = sum over the edges out of j of alpha d_y[i] + d_z     (source kernel, transposed CSR)
//   d_w_e    = sum over instances and channels of d_z W_e            (edge weight kernel)
//
// The projections are recomputed. Only alpha and d_score of an edge are stored. Each sum is computed by one
// owner in a fixed order.
//
// With kMasked the loop of a row has the mean of its entries that count for a weight: their gradients get its
// gradient in equal parts.
#include "cuda/dense/gatv2_conv.cuh"
#include "cuda/dense/gatv2_grads.cuh"
#include "cuda/dense/weight_grad.cuh"

namespace hiermt::cuda {
namespace {

template <class C>
struct alignas(2 * sizeof(C)) EdgeState {
  C alpha, d_score;  // score and d_alpha between the two loops of the target kernel
};

// With kMasked, of a row: the weight of its loop, and the gradient that each of its other entries gets from it.
template <class C>
struct alignas(2 * sizeof(C)) LoopState {
  C weight, d_weight;
};

// Blocks of the target kernel, each with a partial sum of the vectors' gradients. A constant, so that the order of
// the sums is the same on every GPU.
constexpr int64_t kMaxTargetBlocks = 1024;

template <class C>
struct BackwardMemory {
  C* x_l;  // overwritten with d_x_l by the source kernel
  C* x_r;
  C* d_y;
  C* d_x_r;
  EdgeState<C>* edges;  // [E, B * T]: neighbouring steps of an entry are adjacent
  C* partial;           // [blocks, 3, H] sums of the gradients of the vectors
  LoopState<C>* loops;  // [N * T] with kMasked

  template <class S>
  BackwardMemory(const GatV2Forward<S>& p, Stream& on) {
    const int64_t rows = p.rows();
    for (C** one : {&x_l, &x_r, &d_y, &d_x_r}) *one = on.take<C>(rows * p.hidden);
    edges = on.take<EdgeState<C>>(p.graph.num_entries * p.graph.copies * p.steps);
    partial = on.take<C>(kMaxTargetBlocks * 3 * p.hidden);
    loops = on.take<LoopState<C>>(p.present != nullptr ? rows : 0);
  }
};

template <class S, int kHidden, bool kMasked>
__global__ void __launch_bounds__(ConvTraits::kThreads)
    gatv2_conv_bwd_target_kernel(GatV2Forward<S> p, const S* d_out, BackwardMemory<Compute<S>> memory,
                                 int rows, int tiles) {
  using C = Compute<S>;
  GroupRow<kHidden> group(p.hidden, 0, rows);
  constexpr int kChannels = group.kChannels;
  const auto& split = group.split;
  const int hidden = split.hidden, steps = static_cast<int>(p.steps),
            groups = ConvTraits::kThreads / split.lanes;
  const int member = group.member, first = group.first;
  const int64_t instances = p.graph.copies * p.steps;
  const GatV2Lane<S, kHidden> lane(p.weights, split, first);
  C d_att[kChannels] = {}, d_edge[kChannels] = {}, d_bias[kChannels] = {};

  for (int tile = static_cast<int>(blockIdx.x); tile < tiles; tile += static_cast<int>(gridDim.x)) {
    group.move_to(tile, rows);
    const bool inside = group.inside;
    GatV2Entries<S, kMasked> entries(p, group.row, inside);
    const int longest = __reduce_max_sync(kFullMask, entries.degree);
    if constexpr (kMasked) entries.find_loop_weight(p, member, split.lanes);
    const int64_t offset = group.offset();
    EdgeState<C>* edges = memory.edges + entries.begin * instances +
                          static_cast<int64_t>(entries.at.copy) * steps + entries.at.step;

    C x_i[kChannels], d_y_i[kChannels], saved[kChannels], d_x_r[kChannels] = {};
    split.load_aligned(memory.x_r + offset, first, x_i);
    split.load_any(d_out + offset, first, d_y_i);
    split.load_any(p.out + offset, first, saved);
#pragma unroll
    for (int v = 0; v < kChannels; ++v) {
      d_y_i[v] *= activation_slope(p.activation, saved[v]);
      if (kMasked && !entries.there) d_y_i[v] = C(0);
    }

    OnlineSoftmax<C> softmax;
    CotangentMean<C> mean;
    for (int k = 0; k < longest; ++k) {
      const GatV2Entry<C> entry = entries.entry(p, k);
      C x_j[kChannels];
      split.load_aligned(memory.x_l + entry.row * hidden, first, x_j);
      C product = C(0);
#pragma unroll
      for (int v = 0; v < kChannels; ++v) product += d_y_i[v] * x_j[v];
      const C score = group_sum(lane.partial_score(x_j, x_i, entry.edge_weight), split.lanes);
      const C d_alpha = group_sum(product, split.lanes);
      if (entry.active) {
        const C before = softmax.sum;
        softmax.update(score);
        mean.update(softmax, before, d_alpha);
        if (member == 0) edges[k * instances] = {score, d_alpha};
      } else if (kMasked && member == 0 && k < entries.degree) {
        edges[k * instances] = {C(0), C(0)};
      }
    }
    const C scale = softmax.scale();
    C d_loop = C(0);
    for (int k = 0; k < longest; ++k) {
      const GatV2Entry<C> entry = entries.entry(p, k);
      // Only the lane that wrote the state may read it without a fence; it broadcasts to its group.
      EdgeState<C> state{C(0), C(0)};
      if (entry.active && member == 0) state = edges[k * instances];
      const C score = __shfl_sync(kFullMask, state.alpha, 0, split.lanes);
      const C d_alpha = __shfl_sync(kFullMask, state.d_score, 0, split.lanes);
      if (!entry.active) continue;
      const C alpha = softmax_weight(score - softmax.max) * scale;
      const C d_score = mean.d_score(alpha, d_alpha, scale);
      if (member == 0) edges[k * instances] = {alpha, d_score};
      C x_j[kChannels];
      split.load_aligned(memory.x_l + entry.row * hidden, first, x_j);
#pragma unroll
      for (int v = 0; v < kChannels; ++v) {
        const C z = lane.argument(x_j[v], x_i[v], entry.edge_weight, v);
        const C slope = z > C(0) ? C(1) : C(kAttentionSlope);
        const C d_z = d_score * lane.att[v] * slope;
        d_x_r[v] += d_z;
        d_att[v] += d_score * (slope * z);
        d_edge[v] += entry.edge_weight * d_z;
        if (kMasked && k == entries.degree - 1) d_loop += lane.edge[v] * d_z;
      }
    }
    if constexpr (kMasked) {
      d_loop = group_sum(d_loop, split.lanes);
      if (inside && member == 0) memory.loops[group.row] = {entries.loop_weight, d_loop * entries.share};
    }
    if (inside) {
      split.store_aligned(memory.d_x_r + offset, first, d_x_r);
      split.store_aligned(memory.d_y + offset, first, d_y_i);
#pragma unroll
      for (int v = 0; v < kChannels; ++v) d_bias[v] += d_y_i[v];
    }
  }

  // Adds the groups in order: one partial sum [3, H] per block.
  SharedMemory shared;
  C* sums = shared.take<C>(static_cast<size_t>(groups) * 3 * hidden);
  split.store_any(sums + (group.group * 3 + 0) * hidden, first, d_att);
  split.store_any(sums + (group.group * 3 + 1) * hidden, first, d_edge);
  split.store_any(sums + (group.group * 3 + 2) * hidden, first, d_bias);
  __syncthreads();
  for (int i = static_cast<int>(threadIdx.x); i < 3 * hidden; i += ConvTraits::kThreads) {
    C total = C(0);
    for (int g = 0; g < groups; ++g) total += sums[g * 3 * hidden + i];
    memory.partial[static_cast<int64_t>(blockIdx.x) * 3 * hidden + i] = total;
  }
}

// Overwrites x_l with d_x_l: a group reads only its own row of x_l.
template <class S, int kHidden, bool kMasked>
__global__ void __launch_bounds__(ConvTraits::kThreads)
    gatv2_conv_bwd_source_kernel(GatV2Forward<S> p, BackwardMemory<Compute<S>> memory, int rows) {
  using C = Compute<S>;
  const GroupRow<kHidden> group(p.hidden, static_cast<int>(blockIdx.x), rows);
  if (!group.inside) return;
  constexpr int kChannels = group.kChannels;
  const auto& split = group.split;
  const int hidden = split.hidden, steps = static_cast<int>(p.steps), first = group.first;

  const RowIndex at(group.row, static_cast<int>(p.graph.num_nodes), steps);
  const int64_t instances = p.graph.copies * p.steps;
  const int64_t step_row = static_cast<int64_t>(at.copy) * p.graph.num_nodes * steps + at.step;
  const EdgeState<C>* edges = memory.edges + static_cast<int64_t>(at.copy) * steps + at.step;
  const GatV2Lane<S, kHidden> lane(p.weights, split, first);
  C x_j[kChannels], d_x_l[kChannels] = {};
  split.load_aligned(memory.x_l + group.offset(), first, x_j);

  const int end = kMasked && !p.present[group.row] ? 0 : p.graph.colptr[at.node + 1];
  for (int k = p.graph.colptr[at.node]; k < end; ++k) {
    const int entry = p.graph.csr2csc[k];
    const int64_t target = step_row + static_cast<int64_t>(p.graph.row[k]) * steps, other = target * hidden;
    if (kMasked && !p.present[target]) continue;
    const EdgeState<C> edge = edges[entry * instances];
    C edge_weight = p.edge_weight != nullptr ? load(p.edge_weight + entry) : C(0);
    if (kMasked && p.graph.row[k] == at.node) edge_weight = memory.loops[group.row].weight;
    C x_i[kChannels], d_y_i[kChannels];
    split.load_aligned(memory.x_r + other, first, x_i);
    split.load_aligned(memory.d_y + other, first, d_y_i);
#pragma unroll
    for (int v = 0; v < kChannels; ++v) {
      const C z = lane.argument(x_j[v], x_i[v], edge_weight, v);
      d_x_l[v] += edge.alpha * d_y_i[v] + edge.d_score * lane.att[v] * (z > C(0) ? C(1) : C(kAttentionSlope));
    }
  }
  split.store_aligned(memory.x_l + group.offset(), first, d_x_l);
}

// A term of the gradient of an edge weight.
template <class S>
struct EdgeWeightTerm {
  using C = Compute<S>;
  GatV2Forward<S> p;
  BackwardMemory<C> memory;

  __device__ __forceinline__ C operator()(int entry, int instance, int64_t source, int64_t target,
                                          int c) const {
    const int64_t instances = p.graph.copies * p.steps, hidden = p.hidden;
    if (p.present != nullptr) {
      // Of a loop the others share the gradient.
      if (source == target || !p.present[source] || !p.present[target]) return C(0);
    }
    const C projected = load(p.weights.lin_edge_weight + c);
    const C z = memory.x_l[source * hidden + c] +
                (memory.x_r[target * hidden + c] + load(p.edge_weight + entry) * projected);
    C term = memory.edges[entry * instances + instance].d_score * load(p.weights.att + c) * projected *
             (z > C(0) ? C(1) : C(kAttentionSlope));
    if (p.present != nullptr && c == 0) term += memory.loops[target].d_weight;
    return term;
  }
};

template <class C>
bool wants_matrices(const GatV2Grads<C>& g) {
  return g.lin_l_weight != nullptr || g.lin_l_bias != nullptr || g.lin_r_weight != nullptr ||
         g.lin_r_bias != nullptr;
}

}  // namespace

template <class S>
void conv_backward(const GatV2Backward<S>& p, Stream& on) {
  using C = Compute<S>;
  const GatV2Forward<S>& f = p.forward;
  const int hidden = static_cast<int>(f.hidden), channels = static_cast<int>(f.x.channels);
  const BackwardMemory<C> memory(f, on);
  project_pair(f, memory.x_l, memory.x_r, on);
  dispatch_rows(f, [&](auto constant, auto masked, int64_t tiles) {
    const int64_t groups = GroupRow<constant>::groups(f.hidden);
    const int64_t blocks = RowChunks(tiles, kMaxTargetBlocks, 1).count;
    launch(gatv2_conv_bwd_target_kernel<S, constant, masked>, blocks, ConvTraits::kThreads,
           padded_bytes<C>(groups * 3 * f.hidden), on, f, p.d_out, memory, f.rows(), tiles);
    if (p.grads.att != nullptr || p.grads.lin_edge_weight != nullptr || p.grads.bias != nullptr) {
      ordered_sum(on, sum_of<C>(memory.partial, blocks, 3 * f.hidden, VectorGrads<C>{p.grads, hidden}));
    }
    if (p.d_edge_weight != nullptr) edge_weight_grad(p, EdgeWeightTerm<S>{f, memory}, on);
    if (p.d_x == nullptr && !wants_matrices(p.grads)) return;
    launch(gatv2_conv_bwd_source_kernel<S, constant, masked>, tiles, ConvTraits::kThreads, 0, on, f, memory,
           f.rows());
  });
  const auto rounded = rounds_operands<S>(f.tf32);
  const DenseRows<C, 2> d_projections{memory.x_l, hidden, f.hidden, memory.d_x_r - memory.x_l};
  if (wants_matrices(p.grads)) {
    weight_grad<C>(d_projections, SequenceRows<S>::of(f), f.rows(), MatrixGrads<C>{p.grads, hidden, channels},
                   rounded, on);
  }
  if (p.d_x == nullptr) return;
  linear<C, 1>(d_projections, Transposed<PairWeights<S>>{{f.weights, channels}, hidden},
               InputGradientOut<S>{{p.d_x, channels, channels, 0, p.accumulate_d_x}, f.present}, f.rows(),
               channels, rounded, on);
}

#define HIERMT_INSTANTIATE(S) template void conv_backward<S>(const GatV2Backward<S>&, Stream&);
HIERMT_FOR_EACH_STORAGE(HIERMT_INSTANTIATE)
#undef HIERMT_INSTANTIATE

}  // namespace hiermt::cuda
