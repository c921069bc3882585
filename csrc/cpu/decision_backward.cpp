// Cotangents of the logits to those of the hidden state, the output linear and the heads.
//
// With G [N, 4] the cotangents, W = heads * out the folded weight, M = G^T h [4, H] and s = G^T 1 [4]:
//   d_h = G W,  d_heads = M out^T + s out_bias^T,  d_out = heads^T M,  d_out_bias = heads^T s
// so one pass over the rows gives d_h, M and s, and the rest does not depend on N.
#include "cpu/decision_literal.h"
#include "cpu/support/kernels.h"
#include "cpu/support/parallel.h"

namespace hiermt {
namespace cpu {
namespace HIERMT_ISA {

namespace {

// The partial sums over rows belong to ranges that depend on N alone, so the thread count changes no bit.
constexpr int64_t kRowsPerPartial = 512;

template <class S, class C>
HIERMT_INLINE void load_cotangent(const DecisionBackward<S, C>& p, int64_t row, C (&g)[kLogits]) {
  for (int j = 0; j < kLogits; ++j) {
    const S* grad = j < 2 ? p.d_signal_logits : p.d_direction_logits;
    g[j] = grad == nullptr ? C(0) : to_compute(grad[2 * row + j % 2]);
  }
}

template <class S, class C>
HIERMT_INLINE void hidden_gradient(const DecisionBackward<S, C>& p, const C* weight, int64_t row,
                                   const C (&g)[kLogits]) {
  constexpr int L = kLanes<C>;
  for (int64_t c = 0; c < p.hidden; c += L) {
    const int n = static_cast<int>(p.hidden - c < L ? p.hidden - c : L);
    Vec<C> sum = zero<C>();
    for (int j = 0; j < kLogits; ++j) {
      sum = fma(broadcast(g[j]), load_n(weight + j * p.hidden + c, n), sum);
    }
    const C probe = reduce_add(sum - sum);
    if (__builtin_expect(probe != C(0), 0)) {
      for (int l = 0; l < n; ++l) {
        const C value = sum[l];
        sum[l] = is_finite(value) ? value : literal_hidden_gradient<S>(p, row, c + l);
      }
    }
    store_n(p.d_h + row * p.hidden + c, sum, n);
  }
}

// moment[j][c] += g[j] * h[c] over the rows of one range; the last channel of each row j counts the bias.
template <class S, class C>
HIERMT_INLINE void accumulate(const DecisionBackward<S, C>& p, int64_t row, const C (&g)[kLogits],
                              C* moment) {
  constexpr int L = kLanes<C>;
  const int64_t width = p.hidden + 1;
  const S* h = p.h + row * p.stride_row;
  for (int64_t c = 0; c < p.hidden; c += L) {
    const int n = static_cast<int>(p.hidden - c < L ? p.hidden - c : L);
    const Vec<C> state = load_n(h + c, n);
    for (int j = 0; j < kLogits; ++j) {
      C* at = moment + j * width + c;
      store_n(at, fma(broadcast(g[j]), state, load_n(at, n)), n);
    }
  }
  for (int j = 0; j < kLogits; ++j) moment[j * width + p.hidden] += g[j];
}

template <class S, class C>
void parameter_gradients(const DecisionBackward<S, C>& p, const C* moment) {
  const int64_t width = p.hidden + 1;
  for (int64_t k = 0; k < p.features; ++k) {
    C* d_out = p.grads.out_weight + k * p.hidden;
    for (int64_t c = 0; c < p.hidden; ++c) d_out[c] = C(0);
    p.grads.out_bias[k] = C(0);
  }
  for (int j = 0; j < kLogits; ++j) {
    const C* m = moment + j * width;
    const S* head = head_row(p.weights, p.features, j);
    C* d_head = (j < 2 ? p.grads.signal_weight : p.grads.direction_weight) + (j % 2) * p.features;
    for (int64_t k = 0; k < p.features; ++k) {
      const S* out = p.weights.out_weight + k * p.hidden;
      C* d_out = p.grads.out_weight + k * p.hidden;
      const C factor = is_used<S>(p, j) ? to_compute(head[k]) : C(0);
      C sum = m[p.hidden] * to_compute(p.weights.out_bias[k]);
      for (int64_t c = 0; c < p.hidden; ++c) {
        sum += m[c] * to_compute(out[c]);
        d_out[c] += factor * m[c];
      }
      d_head[k] = sum;
      p.grads.out_bias[k] += factor * m[p.hidden];
    }
    C* d_bias = j < 2 ? p.grads.signal_bias : p.grads.direction_bias;
    d_bias[j % 2] = m[p.hidden];
  }
}

// Computes again what is not finite, and leaves nothing in the gradients of a head that was not used.
template <class S, class C>
void mend_parameter_gradients(const DecisionBackward<S, C>& p) {
  for (int64_t k = 0; k < p.features; ++k) {
    C* d_out = p.grads.out_weight + k * p.hidden;
    for (int64_t c = 0; c < p.hidden; ++c) {
      if (!is_finite(d_out[c])) d_out[c] = literal_out_gradient<S>(p, k, c);
    }
    if (!is_finite(p.grads.out_bias[k])) p.grads.out_bias[k] = literal_out_gradient<S>(p, k, p.hidden);
    for (int j = 0; j < kLogits; ++j) {
      C& grad = (j < 2 ? p.grads.signal_weight : p.grads.direction_weight)[(j % 2) * p.features + k];
      if (!is_used<S>(p, j)) grad = C(0);
      if (!is_finite(grad)) grad = literal_head_gradient<S>(p, j, k);
    }
  }
}

}  // namespace

template <class S>
void decision_backward(const DecisionBackward<S, Compute<S>>& p) {
  using C = Compute<S>;
  ScratchFrame frame;
  const FoldedHeads<C> heads = fold_heads(frame, p.weights, p.features, p.hidden);
  // 0 * NaN, where the weights of a head that was not used are NaN.
  for (int j = 0; j < kLogits; ++j) {
    for (int64_t c = 0; c < (is_used<S>(p, j) ? 0 : p.hidden); ++c) heads.weight[j * p.hidden + c] = C(0);
  }
  const int64_t ranges = (p.rows + kRowsPerPartial - 1) / kRowsPerPartial;
  const int64_t size = kLogits * (p.hidden + 1);
  C* moments = p.need_params ? frame.take<C>((ranges + 1) * size) : nullptr;

  parallel_for(ranges, [&](int64_t range) {
    C* moment = p.need_params ? moments + range * size : nullptr;
    for (int64_t i = 0; p.need_params && i < size; ++i) moment[i] = C(0);
    const int64_t end = (range + 1) * kRowsPerPartial < p.rows ? (range + 1) * kRowsPerPartial : p.rows;
    for (int64_t row = range * kRowsPerPartial; row < end; ++row) {
      C g[kLogits];
      load_cotangent(p, row, g);
      if (p.d_h != nullptr) hidden_gradient(p, heads.weight, row, g);
      if (p.need_params) accumulate(p, row, g, moment);
    }
  });

  if (!p.need_params) return;
  C* total = moments + ranges * size;
  for (int64_t i = 0; i < size; ++i) total[i] = C(0);
  for (int64_t range = 0; range < ranges; ++range) {
    for (int64_t i = 0; i < size; ++i) total[i] += moments[range * size + i];
  }
  parameter_gradients(p, total);
  mend_parameter_gradients(p);
}

HIERMT_INSTANTIATE(decision_backward)

}  // namespace HIERMT_ISA
}  // namespace cpu
}  // namespace hiermt
