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

template <class C>
struct BackwardMemory {
  Workspace memory;
  C* x_l;  // overwritten with d_x_l by the source kernel
  C* x_r;
  C* d_y;
  C* d_x_r;
  EdgeState<C>* edges;  // [E, B * T]: neighbouring steps of an entry are adjacent
  C* partial;           // sums of the parameter gradients: of the vectors, then of the projections
  LoopState<C>* loops;  // [N * T] with kMasked

  template <class P>
  BackwardMemory(void* base, const P& p, int64_t rows) : memory(base) {
    const int64_t values = rows * p.forward.hidden;
    x_l = memory.take<C>(values);
    x_r = memory.take<C>(values);
    d_y = memory.take<C>(values);
    d_x_r = memory.take<C>(values);
    edges = memory.take<EdgeState<C>>(p.forward.graph.num_entries * p.forward.graph.copies * p.forward.steps);
    const int64_t vectors = GatV2Traits::kMaxTargetBlocks * 3 * p.forward.hidden;
    const int64_t matrices = weight_grad_values(rows, 2 * p.forward.hidden, p.forward.x.channels);
    partial = memory.take<C>(vectors > matrices ? vectors : matrices);
    loops = memory.take<LoopState<C>>(p.forward.present != nullptr ? rows : 0);
  }
};

template <class S, int kHidden, bool kMasked>
__global__ void __launch_bounds__(GatV2Traits::kThreads)
    gatv2_conv_bwd_target_kernel(GatV2ConvForward<S> p, const S* d_out, BackwardMemory<Compute<S>> memory,
                                 int rows, int tiles) {
  using C = Compute<S>;
  using Split = ChannelSplit<kHidden>;
  constexpr int kChannels = Split::kChannels;
  const Split split(kHidden != 0 ? kHidden : static_cast<int>(p.hidden));
  const int hidden = split.hidden, steps = static_cast<int>(p.steps);
  const int groups = GatV2Traits::kThreads / split.lanes;
  const int group = static_cast<int>(threadIdx.x) / split.lanes;
  const int member = static_cast<int>(threadIdx.x) % split.lanes, first = member * kChannels;
  const int64_t instances = p.graph.copies * p.steps;
  const GatV2Lane<S, kHidden> lane(p.weights, split, first);
  C d_att[kChannels] = {}, d_edge[kChannels] = {}, d_bias[kChannels] = {};

  for (int tile = static_cast<int>(blockIdx.x); tile < tiles; tile += static_cast<int>(gridDim.x)) {
    const int64_t wanted = static_cast<int64_t>(tile) * groups + group;
    const bool inside = wanted < rows;
    const int row = inside ? static_cast<int>(wanted) : rows - 1;
    GatV2Entries<S, kMasked> entries(p, row, inside);
    const int longest = __reduce_max_sync(kFullMask, entries.degree);
    if constexpr (kMasked) entries.find_loop_weight(p, member, split.lanes);
    const int64_t offset = static_cast<int64_t>(row) * hidden;
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
      if (inside && member == 0) memory.loops[row] = {entries.loop_weight, d_loop * entries.share};
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
  split.store_any(sums + (group * 3 + 0) * hidden, first, d_att);
  split.store_any(sums + (group * 3 + 1) * hidden, first, d_edge);
  split.store_any(sums + (group * 3 + 2) * hidden, first, d_bias);
  __syncthreads();
  for (int i = static_cast<int>(threadIdx.x); i < 3 * hidden; i += GatV2Traits::kThreads) {
    C total = C(0);
    for (int g = 0; g < groups; ++g) total += sums[g * 3 * hidden + i];
    memory.partial[static_cast<int64_t>(blockIdx.x) * 3 * hidden + i] = total;
  }
}

// Overwrites x_l with d_x_l: a group reads only its own row of x_l.
template <class S, int kHidden, bool kMasked>
__global__ void __launch_bounds__(GatV2Traits::kThreads)
    gatv2_conv_bwd_source_kernel(GatV2ConvForward<S> p, BackwardMemory<Compute<S>> memory, int rows) {
  using C = Compute<S>;
  using Split = ChannelSplit<kHidden>;
  constexpr int kChannels = Split::kChannels;
  const Split split(kHidden != 0 ? kHidden : static_cast<int>(p.hidden));
  const int hidden = split.hidden, steps = static_cast<int>(p.steps);
  const int64_t row = static_cast<int64_t>(blockIdx.x) * (GatV2Traits::kThreads / split.lanes) +
                      static_cast<int>(threadIdx.x) / split.lanes;
  const int first = static_cast<int>(threadIdx.x) % split.lanes * kChannels;
  if (row >= rows) return;

  const RowIndex at(static_cast<int>(row), static_cast<int>(p.graph.num_nodes), steps);
  const int64_t instances = p.graph.copies * p.steps;
  const int64_t step_row = static_cast<int64_t>(at.copy) * p.graph.num_nodes * steps + at.step;
  const EdgeState<C>* edges = memory.edges + static_cast<int64_t>(at.copy) * steps + at.step;
  const GatV2Lane<S, kHidden> lane(p.weights, split, first);
  C x_j[kChannels], d_x_l[kChannels] = {};
  split.load_aligned(memory.x_l + row * hidden, first, x_j);

  const int end = p.graph.colptr[at.node + 1];
  for (int k = p.graph.colptr[at.node]; k < end; ++k) {
    const int entry = p.graph.csr2csc[k];
    const int64_t other = (step_row + static_cast<int64_t>(p.graph.row[k]) * steps) * hidden;
    const EdgeState<C> edge = edges[entry * instances];
    C edge_weight = p.edge_weight != nullptr ? load(p.edge_weight + entry) : C(0);
    if (kMasked && p.graph.row[k] == at.node) edge_weight = memory.loops[row].weight;
    C x_i[kChannels], d_y_i[kChannels];
    split.load_aligned(memory.x_r + other, first, x_i);
    split.load_aligned(memory.d_y + other, first, d_y_i);
#pragma unroll
    for (int v = 0; v < kChannels; ++v) {
      const C z = lane.argument(x_j[v], x_i[v], edge_weight, v);
      d_x_l[v] += edge.alpha * d_y_i[v] + edge.d_score * lane.att[v] * (z > C(0) ? C(1) : C(kAttentionSlope));
    }
  }
  split.store_aligned(memory.x_l + row * hidden, first, d_x_l);
}

// One block per node of the template graph.
template <class S, bool kMasked>
__global__ void __launch_bounds__(GatV2Traits::kThreads)
    gatv2_conv_bwd_edge_weight_kernel(GatV2ConvForward<S> p, BackwardMemory<Compute<S>> memory,
                                      Compute<S>* d_edge_weight, bool accumulate) {
  using C = Compute<S>;
  SharedMemory shared;
  C* scratch = shared.take<C>(GatV2Traits::kThreads);
  const int hidden = static_cast<int>(p.hidden), steps = static_cast<int>(p.steps);
  const int node = static_cast<int>(blockIdx.x);
  const int64_t instances = p.graph.copies * p.steps, values = instances * hidden;
  for (int entry = p.graph.rowptr[node]; entry < p.graph.rowptr[node + 1]; ++entry) {
    const C edge_weight = load(p.edge_weight + entry);
    const bool loop = kMasked && entry == p.graph.rowptr[node + 1] - 1;
    C sum = C(0);
    for (int64_t i = threadIdx.x; i < (loop ? 0 : values); i += GatV2Traits::kThreads) {
      const int64_t instance = i / hidden;
      const int c = static_cast<int>(i - instance * hidden);
      const int64_t copy = instance / steps,
                    row = copy * p.graph.num_nodes * steps + (instance - copy * steps);
      const C projected = load(p.weights.lin_edge_weight + c);
      const C z =
          memory.x_l[(row + static_cast<int64_t>(p.graph.col[entry]) * steps) * hidden + c] +
          (memory.x_r[(row + static_cast<int64_t>(node) * steps) * hidden + c] + edge_weight * projected);
      sum += memory.edges[entry * instances + instance].d_score * load(p.weights.att + c) * projected *
             (z > C(0) ? C(1) : C(kAttentionSlope));
      if (kMasked && c == 0 && p.present[row + static_cast<int64_t>(p.graph.col[entry]) * steps]) {
        sum += memory.loops[row + static_cast<int64_t>(node) * steps].d_weight;
      }
    }
    sum = block_sum(sum, scratch);
    if (threadIdx.x == 0) d_edge_weight[entry] = accumulate ? d_edge_weight[entry] + sum : sum;
  }
}

template <class C>
bool wants_vectors(const GatV2Grads<C>& g) {
  return g.att != nullptr || g.lin_edge_weight != nullptr || g.bias != nullptr;
}
template <class C>
bool wants_matrices(const GatV2Grads<C>& g) {
  return g.lin_l_weight != nullptr || g.lin_l_bias != nullptr || g.lin_r_weight != nullptr ||
         g.lin_r_bias != nullptr;
}

// Launches the target, edge weight and source kernels.
template <class S>
cudaError_t edge_gradients(const GatV2ConvBackward<S, Compute<S>>& p,
                           const BackwardMemory<Compute<S>>& memory, bool accumulate_edge_weight,
                           int64_t rows, cudaStream_t stream) {
  using C = Compute<S>;
  const GatV2ConvForward<S>& f = p.forward;
  return dispatch_hidden<S>(f.hidden, [&](auto hidden) {
    return dispatch_masked(f.present, [&](auto masked) {
      constexpr int kHidden = decltype(hidden)::value;
      constexpr bool kMasked = decltype(masked)::value;
      const int64_t groups = groups_per_block<kHidden>(f.hidden, GatV2Traits::kThreads);
      const int64_t tiles = ceil_div(rows, groups);
      const int64_t blocks = RowChunks(tiles, GatV2Traits::kMaxTargetBlocks, 1).count;
      HIERMT_CUDA_RETURN_IF_ERROR(
          launch(gatv2_conv_bwd_target_kernel<S, kHidden, kMasked>, dim3(static_cast<unsigned>(blocks)),
                 dim3(GatV2Traits::kThreads), padded_bytes<C>(static_cast<size_t>(groups) * 3 * f.hidden),
                 stream, f, p.d_out, memory, static_cast<int>(rows), static_cast<int>(tiles)));
      if (wants_vectors(p.grads)) {
        const VectorGrads<C> out{p.grads, static_cast<int>(f.hidden)};
        HIERMT_CUDA_RETURN_IF_ERROR(
            ordered_sum(stream, sum_of<C>(memory.partial, blocks, 3 * f.hidden, out)));
      }
      if (p.d_edge_weight != nullptr) {
        HIERMT_CUDA_RETURN_IF_ERROR(launch(
            gatv2_conv_bwd_edge_weight_kernel<S, kMasked>, dim3(static_cast<unsigned>(f.graph.num_nodes)),
            dim3(GatV2Traits::kThreads), padded_bytes<C>(GatV2Traits::kThreads), stream, f, memory,
            p.d_edge_weight, accumulate_edge_weight));
      }
      if (p.d_x == nullptr && !wants_matrices(p.grads)) return cudaSuccess;
      return launch(gatv2_conv_bwd_source_kernel<S, kHidden, kMasked>, dim3(static_cast<unsigned>(tiles)),
                    dim3(GatV2Traits::kThreads), 0, stream, f, memory, static_cast<int>(rows));
    });
  });
}

}  // namespace

template <class S>
size_t gatv2_conv_backward_workspace(const GatV2ConvBackward<S, Compute<S>>& p) {
  const CsrGraph& graph = p.forward.graph;
  return BackwardMemory<Compute<S>>(nullptr, p, graph.copies * graph.num_nodes * p.forward.steps)
      .memory.bytes();
}

template <class S>
int gatv2_conv_backward(const GatV2ConvBackward<S, Compute<S>>& p, Accumulate accumulate, void* workspace,
                        void* stream_) {
  using C = Compute<S>;
  const cudaStream_t stream = static_cast<cudaStream_t>(stream_);
  const GatV2ConvForward<S>& f = p.forward;
  const int64_t nodes = f.graph.copies * f.graph.num_nodes, rows = nodes * f.steps;
  const int hidden = static_cast<int>(f.hidden), channels = static_cast<int>(f.x.channels);
  if (!supported(nodes, f.steps, f.hidden)) return cudaErrorInvalidValue;
  const BackwardMemory<C> memory(workspace, p, rows);

  if (p.d_edge_weight != nullptr && !accumulate.edge_weight) {
    HIERMT_CUDA_RETURN_IF_ERROR(clear_padding(f.graph, rows == 0, p.d_edge_weight, stream));
  }
  if (rows > 0) {
    HIERMT_CUDA_RETURN_IF_ERROR(project_pair(f, memory.x_l, memory.x_r, stream));
    HIERMT_CUDA_RETURN_IF_ERROR(edge_gradients(p, memory, accumulate.edge_weight, rows, stream));
  } else if (wants_vectors(p.grads)) {
    HIERMT_CUDA_RETURN_IF_ERROR(
        ordered_sum(stream, sum_of<C>(memory.partial, 0, 3 * f.hidden, VectorGrads<C>{p.grads, hidden})));
  }
  const auto rounded = rounds_operands<S>(f.tf32);
  const DenseRows<C, 2> d_projections{memory.x_l, hidden, f.hidden, memory.d_x_r - memory.x_l};
  if (wants_matrices(p.grads)) {
    HIERMT_CUDA_RETURN_IF_ERROR(weight_grad(d_projections, SequenceRows<S>::of(f), rows, memory.partial,
                                            MatrixGrads<C>{p.grads, hidden, channels}, stream, rounded));
  }
  if (p.d_x == nullptr) return cudaSuccess;
  return linear<C, 1>(d_projections, Transposed<PairWeights<S>>{{f.weights, channels}, hidden},
                      DenseOut<S>{p.d_x, channels, channels, 0, accumulate.d_x}, rows, channels, stream,
                      rounded);
}

#define HIERMT_INSTANTIATE(S)                                                                \
  template size_t gatv2_conv_backward_workspace<S>(const GatV2ConvBackward<S, Compute<S>>&); \
  template int gatv2_conv_backward<S>(const GatV2ConvBackward<S, Compute<S>>&, Accumulate, void*, void*);
HIERMT_FOR_EACH_STORAGE(HIERMT_INSTANTIATE)
#undef HIERMT_INSTANTIATE

}  // namespace hiermt::cuda
