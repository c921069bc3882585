// Backward of the decision's logits to h, the output linear and the heads.
//
// With G [N, 4] the cotangents of the logits, W = heads W_out, M = G^T h [4, H] and s = G^T 1 [4]:
//
//   d_h = G W     d_heads = M W_out^T + s b_out^T     d_W_out = heads^T M     d_b_out = heads^T s
//
// The first kernel writes d_h and the sums of M and s over the rows of a block. The second adds the blocks in
// order and derives the gradients of the parameters, which needs no pass over the rows.
#include "cuda/decision.cuh"
#include "cuda/operators.h"

namespace hiermt::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kRowSlots = kThreads / kWarp;  // rows of a block at once: one per warp
constexpr int64_t kRowsPerBlock = 256;       // at least: amortises folding the heads
constexpr int64_t kMaxBlocks = 1024;         // bounds the partial sums that the second kernel reads
static_assert(kRowSlots >= kLogits);

// Columns of M and s together: column c < H is a channel of h, column H is ones.
__host__ __device__ inline int64_t columns(int64_t hidden) {
  return hidden + 1;
}

// Cotangent of logit j of a row; zero for a head that was not used.
template <class S>
__device__ __forceinline__ Compute<S> cotangent(const DecisionBackward<S, Compute<S>>& p, int64_t row,
                                                int j) {
  const S* d_logits = j < 2 ? p.d_signal_logits : p.d_direction_logits;
  return d_logits == nullptr ? Compute<S>(0) : load(d_logits + 2 * row + j % 2);
}

template <class S>
__device__ __forceinline__ bool is_used(const DecisionBackward<S, Compute<S>>& p, int j) {
  return (j < 2 ? p.d_signal_logits : p.d_direction_logits) != nullptr;
}

// The cotangent of channel k of the output linear, for one row.
template <class S, class C = Compute<S>>
__device__ __forceinline__ C feature_cotangent(const DecisionBackward<S, C>& p, int64_t row, int64_t k) {
  C sum = C(0);
  for (int j = 0; j < kLogits; ++j) {
    if (is_used<S>(p, j))
      sum = fma(cotangent<S>(p, row, j), C(load(head_row(p.weights, p.features, j) + k)), sum);
  }
  return sum;
}

// The gradients without folding. The kernels below fold the two linears and sum over the rows first, through
// which infinite values propagate differently, so results that are not finite are recomputed with these.
template <class S, class C = Compute<S>>
__device__ __forceinline__ C literal_hidden_gradient(const DecisionBackward<S, C>& p, int64_t row,
                                                     int64_t c) {
  C sum = C(0);
#pragma unroll 1
  for (int64_t k = 0; k < p.features; ++k) {
    sum = fma(feature_cotangent<S>(p, row, k), C(load(p.weights.out_weight + k * p.hidden + c)), sum);
  }
  return sum;
}

// The sum of left(row) right(row) over all rows.
template <class C, class Left, class Right>
__device__ __forceinline__ C sum_over_rows(int64_t rows, Left&& left, Right&& right) {
  C sum = C(0);
#pragma unroll 1
  for (int64_t row = 0; row < rows; ++row) sum = fma(left(row), right(row), sum);
  return sum;
}

// Column c of a row: of h, or for c == H of ones.
template <class S, class C = Compute<S>>
__device__ __forceinline__ C state_at(const DecisionBackward<S, C>& p, int64_t row, int64_t c) {
  return c < p.hidden ? C(load(p.h + row * p.stride_row + c)) : C(1);
}

template <class S>
__global__ void __launch_bounds__(kThreads)
    decision_bwd_rows_kernel(DecisionBackward<S, Compute<S>> p, Compute<S>* moments, int64_t rows_per_block) {
  using C = Compute<S>;
  SharedMemory shared;
  C* weight = shared.take<C>(kLogits * p.hidden);
  C* sums = shared.take<C>(kLogits * kThreads);
  fold_heads<S, C>(p.weights, p.features, p.hidden, weight, nullptr);

  const int lane = threadIdx.x % kWarp, slot = threadIdx.x / kWarp;
  const int64_t begin = blockIdx.x * rows_per_block;
  const int64_t end = begin + rows_per_block < p.rows ? begin + rows_per_block : p.rows;
  const int64_t width = columns(p.hidden);
  for (int64_t base = 0; base < width; base += kWarp) {
    const int64_t c = base + lane;
    C sum[kLogits] = {};
    for (int64_t row = begin + slot; row < end && c < width; row += kRowSlots) {
      C g[kLogits], d_h = C(0);
      for (int j = 0; j < kLogits; ++j) {
        g[j] = cotangent<S>(p, row, j);
      }
      const C state = state_at<S>(p, row, c);
      for (int j = 0; j < kLogits; ++j) {
        sum[j] = fma(g[j], state, sum[j]);
        if (c < p.hidden) d_h = fma(g[j], weight[j * p.hidden + c], d_h);
      }
      if (p.d_h != nullptr && c < p.hidden) {
        if (!is_finite(d_h)) d_h = literal_hidden_gradient<S>(p, row, c);
        store(p.d_h + row * p.hidden + c, d_h);
      }
    }
    if (!p.need_params) continue;
    __syncthreads();
    for (int j = 0; j < kLogits; ++j) sums[j * kThreads + threadIdx.x] = sum[j];
    __syncthreads();
    if (slot < kLogits && c < width) {
      C total = C(0);
      for (int s = 0; s < kRowSlots; ++s) total += sums[slot * kThreads + s * kWarp + lane];
      moments[(blockIdx.x * kLogits + slot) * width + c] = total;
    }
  }
}

template <class S>
__global__ void __launch_bounds__(kThreads)
    decision_bwd_params_kernel(DecisionBackward<S, Compute<S>> p, Compute<S>* moments, int64_t blocks) {
  using C = Compute<S>;
  const int64_t width = columns(p.hidden), size = kLogits * width;
  for (int64_t i = threadIdx.x; i < size; i += kThreads) {
    C total = C(0);
    for (int64_t block = 0; block < blocks; ++block) total += moments[block * size + i];
    moments[i] = total;
  }
  __syncthreads();
  for (int64_t i = threadIdx.x; i < p.features * width; i += kThreads) {
    const int64_t k = i / width, c = i % width;
    C sum = C(0);
    for (int j = 0; j < kLogits; ++j) {
      if (is_used<S>(p, j))
        sum = fma(C(load(head_row(p.weights, p.features, j) + k)), moments[j * width + c], sum);
    }
    if (!is_finite(sum)) {
      sum = sum_over_rows<C>(
          p.rows, [&](int64_t row) { return feature_cotangent<S>(p, row, k); },
          [&](int64_t row) { return state_at<S>(p, row, c); });
    }
    if (c < p.hidden) {
      p.grads.out_weight[k * p.hidden + c] = sum;
    } else {
      p.grads.out_bias[k] = sum;
    }
  }
  for (int64_t i = threadIdx.x; i < kLogits * p.features; i += kThreads) {
    const int j = static_cast<int>(i / p.features);
    const int64_t k = i % p.features;
    const C* moment = moments + j * width;
    C sum = moment[p.hidden] * C(load(p.weights.out_bias + k));
    for (int64_t c = 0; c < p.hidden; ++c)
      sum = fma(moment[c], C(load(p.weights.out_weight + k * p.hidden + c)), sum);
    if (!is_used<S>(p, j)) sum = C(0);
    if (!is_finite(sum)) {
      const DecisionWeights<S>& w = p.weights;
      sum = sum_over_rows<C>(
          p.rows, [&](int64_t row) { return cotangent<S>(p, row, j); },
          [&](int64_t row) {
            return literal_feature(p.h + row * p.stride_row, w.out_weight, w.out_bias, p.hidden, k);
          });
    }
    (j < 2 ? p.grads.signal_weight : p.grads.direction_weight)[(j % 2) * p.features + k] = sum;
  }
  if (threadIdx.x < kLogits) {
    const int j = static_cast<int>(threadIdx.x);
    (j < 2 ? p.grads.signal_bias : p.grads.direction_bias)[j % 2] = moments[j * width + p.hidden];
  }
}

}  // namespace

template <class S>
void decision_backward(const DecisionBackward<S, Compute<S>>& p, Stream& on) {
  using C = Compute<S>;
  const RowChunks chunks(p.rows, kMaxBlocks, kRowsPerBlock);
  // Of one block even without rows, for their zero sums.
  const int64_t blocks = chunks.count > 0 ? chunks.count : 1;
  C* const moments = p.need_params ? on.take<C>(blocks * kLogits * columns(p.hidden)) : nullptr;
  launch(decision_bwd_rows_kernel<S>, chunks.count, kThreads,
         padded_bytes<C>(kLogits * p.hidden) + padded_bytes<C>(kLogits * kThreads), on, p, moments,
         chunks.rows);
  if (p.need_params) launch(decision_bwd_params_kernel<S>, 1, kThreads, 0, on, p, moments, chunks.count);
}

#define HIERMT_INSTANTIATE(S) \
  template void decision_backward<S>(const DecisionBackward<S, Compute<S>>&, Stream&);
HIERMT_FOR_EACH_STORAGE(HIERMT_INSTANTIATE)
#undef HIERMT_INSTANTIATE

}  // namespace hiermt::cuda
