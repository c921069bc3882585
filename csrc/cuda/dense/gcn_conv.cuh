// Parts of the GCN convolution for forward and backward.
//
// With kMasked the norm of an entry depends on the step: norm_ij = s_j w_ij s_i, where s = d^-1/2 and d_i is the sum
// of w_ij over the sources that are there. A negative s marks a row whose node is not: the sums leave it out.
//
//   d_w_ij = s_j s_i d_norm_ij + d_d_i
//   d_d_i  = -s_i^3 / 2 (d_y[i] . sum_j s_j w_ij W x_j + W x_i . sum_k w_ki s_k d_y[k])
#pragma once

#include "cuda/dense/conv_rows.cuh"

namespace hiermt::cuda {

constexpr int kGcnBlocks = 8;  // per multiprocessor: hides the latency of the gathers

// sum += norm * values of each neighbour at the group's step: the sources of its node, or if kTransposed its
// targets. With kMasked without the factor s of the group's own row.
template <bool kTransposed, bool kMasked, class S, int kHidden, int kChannels>
__device__ __forceinline__ void sum_neighbours(const GcnForward<S>& p, const GroupRow<kHidden>& group,
                                               const Compute<S>* scales, const Compute<S>* values,
                                               Compute<S> (&sum)[kChannels]) {
  using C = Compute<S>;
  const CsrGraph& graph = p.graph;
  const int hidden = group.split.hidden, steps = static_cast<int>(p.steps);
  const RowIndex at(group.row, static_cast<int>(graph.num_nodes), steps);
  const int64_t step_row = static_cast<int64_t>(at.copy) * graph.num_nodes * steps + at.step;
  const int end = (kTransposed ? graph.colptr : graph.rowptr)[at.node + 1];
  for (int k = (kTransposed ? graph.colptr : graph.rowptr)[at.node]; k < end; ++k) {
    C norm = load(p.edge_weight + (kTransposed ? graph.csr2csc[k] : k));
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
__global__ void __launch_bounds__(ConvTraits::kThreads)
    gcn_conv_scale_kernel(GcnForward<S> p, Compute<S>* scales, int rows) {
  using C = Compute<S>;
  const int64_t row = static_cast<int64_t>(blockIdx.x) * ConvTraits::kThreads + static_cast<int>(threadIdx.x);
  if (row >= rows) return;
  const int steps = static_cast<int>(p.steps);
  const RowIndex at(static_cast<int>(row), static_cast<int>(p.graph.num_nodes), steps);
  const int64_t step_row = static_cast<int64_t>(at.copy) * p.graph.num_nodes * steps + at.step;
  C degree = C(0);
  for (int k = p.graph.rowptr[at.node]; k < p.graph.rowptr[at.node + 1]; ++k) {
    if (p.present[step_row + static_cast<int64_t>(p.graph.col[k]) * steps]) degree += load(p.edge_weight + k);
  }
  scales[row] = !p.present[row] ? C(-1) : degree == C(0) ? C(0) : C(1) / sqrt(degree);
}

// d_degree[row] = d_d of each row whose node is there.
template <class S, int kHidden>
__global__ void __launch_bounds__(ConvTraits::kThreads)
    gcn_conv_bwd_degree_kernel(GcnForward<S> p, const Compute<S>* scales, const Compute<S>* d_y,
                               const Compute<S>* projected, Compute<S>* d_degree, int rows) {
  using C = Compute<S>;
  // All lanes of a warp take part in its sums.
  const GroupRow<kHidden> group(p.hidden, static_cast<int>(blockIdx.x), rows);
  constexpr int kChannels = group.kChannels;
  C from_sources[kChannels] = {}, from_targets[kChannels] = {}, d_y_i[kChannels], x_i[kChannels];
  sum_neighbours<false, true>(p, group, scales, projected, from_sources);
  sum_neighbours<true, true>(p, group, scales, d_y, from_targets);
  group.split.load_aligned(d_y + group.offset(), group.first, d_y_i);
  group.split.load_aligned(projected + group.offset(), group.first, x_i);
  C sum = C(0);
#pragma unroll
  for (int v = 0; v < kChannels; ++v) sum += d_y_i[v] * from_sources[v] + x_i[v] * from_targets[v];
  sum = group_sum(sum, group.split.lanes);
  const C scale = scales[group.row];
  if (group.inside && group.first == 0) d_degree[group.row] = C(-0.5) * scale * scale * scale * sum;
}

// A term of the gradient of the weight, or without a mask of the norm, of an entry.
template <class C>
struct EntryWeightTerm {
  const C *scales, *d_degree;  // nullptr without a mask
  const C *d_y, *projected;
  int hidden;

  __device__ __forceinline__ C operator()(int, int, int64_t source, int64_t target, int c) const {
    const C product = d_y[target * hidden + c] * projected[source * hidden + c];
    if (scales == nullptr) return product;
    const C s_i = scales[target], s_j = scales[source];
    if (s_i < C(0) || s_j < C(0)) return C(0);
    return s_j * s_i * product + (c == 0 ? d_degree[target] : C(0));
  }
};

// Without a mask there are none.
template <class S>
void find_scales(const GcnForward<S>& p, Compute<S>* scales, Stream& on) {
  if (p.present == nullptr) return;
  launch(gcn_conv_scale_kernel<S>, ceil_div<int64_t>(p.rows(), ConvTraits::kThreads), ConvTraits::kThreads, 0,
         on, p, scales, p.rows());
}

}  // namespace hiermt::cuda
