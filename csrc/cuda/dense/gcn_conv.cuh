// Parts of the GCN convolution for forward and backward. A group of lanes owns a row (node, step) and sums over the
// entries of its node.
//
// With kMasked the norm of an entry depends on the step: norm_ij = s_j w_ij s_i, where s = d^-1/2 and d_i is the sum
// of w_ij over the sources that are there. A negative s marks a row whose node is not: the sums leave it out.
//
//   d_w_ij = s_j s_i d_norm_ij + d_d_i
//   d_d_i  = -s_i^3 / 2 (d_y[i] . sum_j s_j w_ij W x_j + W x_i . sum_k w_ki s_k d_y[k])
#pragma once

#include "cuda/dense/gcn_conv.h"
#include "cuda/support/device.cuh"

namespace hiermt::cuda {

struct GcnTraits {
  static constexpr int kThreads = 128;  // small blocks: a block lasts as long as its node of highest degree
  static constexpr int kMinBlocks = 8;  // per multiprocessor: hides the latency of the gathers
  static constexpr int64_t kMaxBiasBlocks = 512;  // each with a partial sum of the gradient of the bias
  static_assert(kThreads % kWarp == 0);
};

// The row of a group of lanes, and the first channel of this lane.
template <int kHidden>
struct GroupRow {
  ChannelSplit<kHidden> split;
  int first;
  int64_t row;

  __device__ explicit GroupRow(int64_t hidden) : split(kHidden != 0 ? kHidden : static_cast<int>(hidden)) {
    first = static_cast<int>(threadIdx.x) % split.lanes * ChannelSplit<kHidden>::kChannels;
    row = static_cast<int64_t>(blockIdx.x) * (GcnTraits::kThreads / split.lanes) +
          static_cast<int>(threadIdx.x) / split.lanes;
  }
};

// sum += norm * values of each neighbour at the group's step: the sources of its node, or if kTransposed its
// targets. With kMasked without the factor s of the group's own row.
template <bool kTransposed, bool kMasked, class S, int kHidden, int kChannels>
__device__ __forceinline__ void sum_neighbours(const GcnConvForward<S>& p, const GroupRow<kHidden>& group,
                                               const Compute<S>* scales, const Compute<S>* values,
                                               Compute<S> (&sum)[kChannels]) {
  using C = Compute<S>;
  const CsrGraph& graph = p.graph;
  const int hidden = group.split.hidden, steps = static_cast<int>(p.steps);
  const RowIndex at(static_cast<int>(group.row), static_cast<int>(graph.num_nodes), steps);
  const int64_t step_row = static_cast<int64_t>(at.copy) * graph.num_nodes * steps + at.step;
  const int end = (kTransposed ? graph.colptr : graph.rowptr)[at.node + 1];
  for (int k = (kTransposed ? graph.colptr : graph.rowptr)[at.node]; k < end; ++k) {
    C norm = load(p.norm + (kTransposed ? graph.csr2csc[k] : k));
    C value[kChannels];
    const int64_t neighbour = (kTransposed ? graph.row : graph.col)[k];
    if constexpr (kMasked) {
      const C scale = scales[step_row + neighbour * steps];
      if (scale < C(0)) continue;
      norm *= scale;
    }
    group.split.load_aligned(values + (step_row + neighbour * steps) * hidden, group.first, value);
#pragma unroll
    for (int v = 0; v < kChannels; ++v) sum[v] += norm * value[v];
  }
}

// sum *= s of the group's own row, with kMasked; zero where its node is not there.
template <bool kMasked, class C, int kChannels>
__device__ __forceinline__ void scale_row(const C* scales, int64_t row, C (&sum)[kChannels]) {
  if constexpr (kMasked) {
    const C scale = scales[row];
#pragma unroll
    for (int v = 0; v < kChannels; ++v) sum[v] = scale < C(0) ? C(0) : scale * sum[v];
  }
}

// scales[row] = s, a thread a row.
template <class S>
__global__ void __launch_bounds__(GcnTraits::kThreads)
    gcn_conv_scale_kernel(GcnConvForward<S> p, Compute<S>* scales, int rows) {
  using C = Compute<S>;
  const int64_t row = static_cast<int64_t>(blockIdx.x) * GcnTraits::kThreads + static_cast<int>(threadIdx.x);
  if (row >= rows) return;
  const int steps = static_cast<int>(p.steps);
  const RowIndex at(static_cast<int>(row), static_cast<int>(p.graph.num_nodes), steps);
  const int64_t step_row = static_cast<int64_t>(at.copy) * p.graph.num_nodes * steps + at.step;
  C degree = C(0);
  for (int k = p.graph.rowptr[at.node]; k < p.graph.rowptr[at.node + 1]; ++k) {
    if (p.present[step_row + static_cast<int64_t>(p.graph.col[k]) * steps]) degree += load(p.norm + k);
  }
  scales[row] = !p.present[row] ? C(-1) : degree == C(0) ? C(0) : C(1) / sqrt(degree);
}

// d_degree[row] = d_d of each row whose node is there.
template <class S, int kHidden>
__global__ void __launch_bounds__(GcnTraits::kThreads)
    gcn_conv_bwd_degree_kernel(GcnConvForward<S> p, const Compute<S>* scales, const Compute<S>* d_y,
                               const Compute<S>* projected, Compute<S>* d_degree, int rows) {
  using C = Compute<S>;
  constexpr int kChannels = ChannelSplit<kHidden>::kChannels;
  GroupRow<kHidden> group(p.hidden);
  // All lanes of a warp take part in its sums.
  const bool inside = group.row < rows;
  if (!inside) group.row = rows - 1;
  C from_sources[kChannels] = {}, from_targets[kChannels] = {}, d_y_i[kChannels], x_i[kChannels];
  sum_neighbours<false, true>(p, group, scales, projected, from_sources);
  sum_neighbours<true, true>(p, group, scales, d_y, from_targets);
  group.split.load_aligned(d_y + group.row * group.split.hidden, group.first, d_y_i);
  group.split.load_aligned(projected + group.row * group.split.hidden, group.first, x_i);
  C sum = C(0);
#pragma unroll
  for (int v = 0; v < kChannels; ++v) sum += d_y_i[v] * from_sources[v] + x_i[v] * from_targets[v];
  sum = group_sum(sum, group.split.lanes);
  const C scale = scales[group.row];
  if (inside && group.first == 0) d_degree[group.row] = C(-0.5) * scale * scale * scale * sum;
}

// d_w summed over copies and steps. One block per node of the template graph.
template <class S>
__global__ void __launch_bounds__(GcnTraits::kThreads)
    gcn_conv_bwd_weight_kernel(GcnConvForward<S> p, const Compute<S>* scales, const Compute<S>* d_degree,
                               const Compute<S>* d_y, const Compute<S>* projected, Compute<S>* d_weight,
                               bool accumulate) {
  using C = Compute<S>;
  SharedMemory shared;
  C* scratch = shared.take<C>(GcnTraits::kThreads);
  const int hidden = static_cast<int>(p.hidden), steps = static_cast<int>(p.steps);
  const int node = static_cast<int>(blockIdx.x);
  const int64_t values = p.graph.copies * steps * hidden;
  for (int entry = p.graph.rowptr[node]; entry < p.graph.rowptr[node + 1]; ++entry) {
    C sum = C(0);
    for (int64_t i = threadIdx.x; i < values; i += GcnTraits::kThreads) {
      const int instance = static_cast<int>(i / hidden), c = static_cast<int>(i - int64_t{instance} * hidden);
      const int copy = instance / steps, step = instance - copy * steps;
      const int64_t first = copy * p.graph.num_nodes;
      const int64_t target = (first + node) * steps + step,
                    source = (first + p.graph.col[entry]) * steps + step;
      const C s_i = scales[target], s_j = scales[source];
      if (s_i < C(0) || s_j < C(0)) continue;
      sum += s_j * s_i * (d_y[target * hidden + c] * projected[source * hidden + c]);
      if (c == 0) sum += d_degree[target];
    }
    sum = block_sum(sum, scratch);
    if (threadIdx.x == 0) d_weight[entry] = accumulate ? d_weight[entry] + sum : sum;
  }
}

template <class S>
cudaError_t find_scales(const GcnConvForward<S>& p, Compute<S>* scales, int64_t rows, cudaStream_t stream) {
  if (p.present == nullptr) return cudaSuccess;
  return launch(gcn_conv_scale_kernel<S>,
                dim3(static_cast<unsigned>(ceil_div<int64_t>(rows, GcnTraits::kThreads))),
                dim3(GcnTraits::kThreads), 0, stream, p, scales, static_cast<int>(rows));
}

// Gradient of the weights of the entries with a mask.
template <class S>
cudaError_t weight_gradient(const GcnConvForward<S>& p, const Compute<S>* scales, Compute<S>* d_degree,
                            const Compute<S>* d_y, const Compute<S>* projected, Compute<S>* d_weight,
                            bool accumulate, int64_t rows, cudaStream_t stream) {
  using C = Compute<S>;
  HIERMT_CUDA_RETURN_IF_ERROR(dispatch_hidden<S>(p.hidden, [&](auto hidden) {
    constexpr int kHidden = decltype(hidden)::value;
    const int64_t groups = groups_per_block<kHidden>(p.hidden, GcnTraits::kThreads);
    return launch(gcn_conv_bwd_degree_kernel<S, kHidden>, dim3(static_cast<unsigned>(ceil_div(rows, groups))),
                  dim3(GcnTraits::kThreads), 0, stream, p, scales, d_y, projected, d_degree,
                  static_cast<int>(rows));
  }));
  return launch(gcn_conv_bwd_weight_kernel<S>, dim3(static_cast<unsigned>(p.graph.num_nodes)),
                dim3(GcnTraits::kThreads), padded_bytes<C>(GcnTraits::kThreads), stream, p, scales, d_degree,
                d_y, projected, d_weight, accumulate);
}

}  // namespace hiermt::cuda
