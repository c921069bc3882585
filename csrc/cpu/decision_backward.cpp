// The decision, backward. With G [N, 4] the cotangents of the logits, W = heads out the folded weight,
// M = G^T h [4, H] and s = G^T 1 [4]:
//
//   d_h = G W,  d_heads = M out^T + s out_bias^T,  d_out = heads^T M,  d_out_bias = heads^T s
//
// One pass over the rows gives d_h, M and s; the rest does not depend on N.
#include "cpu/decision_literal.h"
#include "cpu/support/kernels.h"
#include "cpu/support/parallel.h"

namespace hiermt::cpu::HIERMT_ISA {

namespace {

template <class S, class C>
HIERMT_INLINE void hidden_gradient(const DecisionBackward<S, C>& p, const C* weight, int64_t row,
                                   const C (&g)[kLogits]) {
  constexpr int L = kLanes<C>;
  for (int64_t c = 0; c < p.hidden; c += L) {
    const int n = static_cast<int>(min(p.hidden - c, L));
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

// moment[j] += g[j] * h and sum[j] += g[j]: M and s. The few sums of s cost nothing in float64.
template <class S, class C>
HIERMT_INLINE void accumulate(const DecisionBackward<S, C>& p, int64_t row, const C (&g)[kLogits], C* moment,
                              double* sum) {
  constexpr int L = kLanes<C>;
  const S* h = p.h + row * p.stride_row;
  for (int64_t c = 0; c < p.hidden; c += L) {
    const int n = static_cast<int>(min(p.hidden - c, L));
    const Vec<C> state = load_n(h + c, n);
    for (int j = 0; j < kLogits; ++j) {
      C* at = moment + j * p.hidden + c;
      store_n(at, fma(broadcast(g[j]), state, load_n(at, n)), n);
    }
  }
  for (int j = 0; j < kLogits; ++j) sum[j] += g[j];
}

// From moment [4, H + 1], whose last column is s. In float64, as the terms of a head's gradient cancel where
// the outputs are small.
template <class S, class C>
void parameter_gradients(const DecisionBackward<S, C>& p, const double* moment) {
  const int64_t width = p.hidden + 1;
  for (int64_t k = 0; k < p.features; ++k) {
    const S* out = p.weights.out_weight + k * p.hidden;
    double factor[kLogits];
    for (int j = 0; j < kLogits; ++j) {
      const double* m = moment + j * width;
      factor[j] = is_used<S>(p, j) ? to_compute(head_row(p.weights, p.features, j)[k]) : 0;
      double sum = m[p.hidden] * to_compute(p.weights.out_bias[k]);
      for (int64_t c = 0; c < p.hidden; ++c) sum += m[c] * to_compute(out[c]);
      C* d_head = j < 2 ? p.grads.signal_weight : p.grads.direction_weight;
      d_head[(j % 2) * p.features + k] = static_cast<C>(sum);
    }
    for (int64_t c = 0; c < width; ++c) {
      double sum = 0;
      for (int j = 0; j < kLogits; ++j) sum += factor[j] * moment[j * width + c];
      (c < p.hidden ? p.grads.out_weight[k * p.hidden + c] : p.grads.out_bias[k]) = static_cast<C>(sum);
    }
  }
  for (int j = 0; j < kLogits; ++j) {
    C* d_bias = j < 2 ? p.grads.signal_bias : p.grads.direction_bias;
    d_bias[j % 2] = static_cast<C>(moment[j * width + p.hidden]);
  }
}

// Recomputes the gradients that are not finite and clears those of a head that was not used.
template <class S, class C>
void recompute_nonfinite(const DecisionBackward<S, C>& p) {
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
  // The cotangents of an unused head are zero, but 0 * NaN is NaN: its weights are cleared.
  for (int j = 0; j < kLogits; ++j) {
    for (int64_t c = 0; c < (is_used<S>(p, j) ? 0 : p.hidden); ++c) heads.weight[j * p.hidden + c] = C(0);
  }
  const int64_t tasks = row_tasks(p.rows), size = kLogits * p.hidden;
  C* moments = p.need_params ? frame.take<C>(tasks * size) : nullptr;
  double* sums = p.need_params ? frame.take<double>(tasks * kLogits) : nullptr;

  parallel_for(tasks, [&](int64_t task) {
    C* moment = p.need_params ? moments + task * size : nullptr;
    double sum[kLogits] = {};
    for (int64_t i = 0; p.need_params && i < size; ++i) moment[i] = C(0);
    const Range range = rows_of(task, p.rows);
    for (int64_t row = range.begin; row < range.end; ++row) {
      C g[kLogits];
      for (int j = 0; j < kLogits; ++j) g[j] = logit_cotangent<S>(p, row, j);
      if (p.d_h != nullptr) hidden_gradient(p, heads.weight, row, g);
      if (p.need_params) accumulate(p, row, g, moment, sum);
    }
    for (int j = 0; p.need_params && j < kLogits; ++j) sums[task * kLogits + j] = sum[j];
  });

  if (!p.need_params) return;
  const int64_t width = p.hidden + 1;
  double* total = frame.take<double>(kLogits * width);
  for (int64_t i = 0; i < kLogits * width; ++i) total[i] = 0;
  for (int64_t task = 0; task < tasks; ++task) {
    for (int j = 0; j < kLogits; ++j) {
      const C* moment = moments + task * size + j * p.hidden;
      for (int64_t c = 0; c < p.hidden; ++c) total[j * width + c] += moment[c];
      total[j * width + p.hidden] += sums[task * kLogits + j];
    }
  }
  parameter_gradients(p, total);
  recompute_nonfinite(p);
}

HIERMT_INSTANTIATE(decision_backward)

}  // namespace hiermt::cpu::HIERMT_ISA
