// The hierarchical decision in one pass over the rows, which are on the lanes:
//
//   logits [4] = heads (out h + out_bias) + head biases        noise, signal | down, up
//   P = softmax of each pair; Neutral unless P(signal) > threshold, else Up if P(up) > P(down), else Down
#include "cpu/decision_literal.h"
#include "cpu/simd/vmath.h"
#include "cpu/support/kernels.h"
#include "cpu/support/parallel.h"

namespace hiermt::cpu::HIERMT_ISA {

namespace {

template <class S, class V>
HIERMT_INLINE void store_up_to(S* to, V v, int64_t count) {
  constexpr int n = sizeof(V) / sizeof(Lane<V>);
  if (count >= n) {
    store(to, v);
  } else if (count > 0) {
    store_n(to, v, static_cast<int>(count));
  }
}

// to[2 * row + class] = the value of the class.
template <class S, class V>
HIERMT_INLINE void store_pairs(S* to, V first, V second, int64_t rows) {
  constexpr int n = sizeof(V) / sizeof(Lane<V>);
  const Interleaved<V> both = interleave(first, second);
  store_up_to(to, both.low, 2 * rows);
  store_up_to(to + n, both.high, 2 * rows - n);
}

// Softmax of two logits, rounded to the storage type. A maximum of +inf gives NaN, as in torch.softmax.
template <class S, class C>
HIERMT_INLINE void softmax(Vec<C> a, Vec<C> b, Vec<C>& p_a, Vec<C>& p_b) {
  const Vec<C> largest = max(a, b);
  const Vec<C> e = exp_nonpositive(negative_abs(b - a)) + (largest - largest);
  const Vec<C> larger = reciprocal(broadcast(C(1)) + e);
  const Vec<C> smaller = e * larger;
  p_a = round_to<S>(select(b > a, smaller, larger));
  p_b = round_to<S>(select(b > a, larger, smaller));
}

// Everything after the logits, for `rows` rows from `row` on.
template <class S, class C>
HIERMT_INLINE void decide(const Vec<C> (&logits)[kLogits], C threshold, const DecisionOutputs<S>& outputs,
                          int64_t row, int64_t rows) {
  constexpr int L = kLanes<C>;
  Vec<C> noise, signal, down, up;
  softmax<S, C>(logits[0], logits[1], noise, signal);
  softmax<S, C>(logits[2], logits[3], down, up);
  // The rounded probabilities decide, so that outputs.predictions agrees with outputs.probabilities.
  const IntVec<C> is_signal = signal > broadcast(threshold);
  const IntVec<C> is_up = up > down;
  if (outputs.probabilities != nullptr) {
    S* to = outputs.probabilities + row * kLogits;
    const Interleaved<Vec<C>> even = interleave(noise, down);
    const Interleaved<Vec<C>> odd = interleave(signal, up);
    store_pairs(to, even.low, odd.low, 2 * rows);
    store_pairs(to + 2 * L, even.high, odd.high, 2 * rows - L);
  }
  if (outputs.predictions != nullptr) {
    const IntVec<C> one = IntVec<C>{} + 1;
    const IntVec<C> classes = is_signal ? (is_up ? one + one : IntVec<C>{}) : one;
    for (int l = 0; l < rows; ++l) outputs.predictions[row + l] = classes[l];
  }
  if (outputs.confidences != nullptr) {
    store_up_to(outputs.confidences + row, select(is_signal, max(down, up), max(noise, signal)), rows);
  }
}

// The threshold in the dtype of the tensor, as torch compares it.
template <class S, class C = Compute<S>>
C comparable(double threshold) {
  return round_to<S>(broadcast(static_cast<C>(threshold)))[0];
}

// Recomputes the rows that are not finite, and no other row: results do not depend on the neighbours.
template <class S, class C>
HIERMT_NOINLINE void recompute_nonfinite(const DecisionForward<S>& p, int64_t row, int64_t rows,
                                         Vec<C> (&logits)[kLogits]) {
  for (int64_t l = 0; l < rows; ++l) {
    if (is_finite((logits[0][l] + logits[1][l]) + (logits[2][l] + logits[3][l]))) continue;
    C of_row[kLogits];
    literal_logits(p.weights, p.h + (row + l) * p.stride_row, p.hidden, p.features, of_row);
    for (int j = 0; j < kLogits; ++j) logits[j][l] = of_row[j];
  }
}

// Logits of kLanes rows of h through the folded heads. Rows past the end repeat the last one.
template <class S, class C>
HIERMT_INLINE void product(const DecisionForward<S>& p, const FoldedHeads<C>& heads, int64_t row,
                           int64_t rows, Vec<C> (&logits)[kLogits]) {
  constexpr int L = kLanes<C>;
  for (int j = 0; j < kLogits; ++j) logits[j] = zero<C>();
  const S* at[L];
  for (int l = 0; l < L; ++l) at[l] = p.h + (row + (l < rows ? l : rows - 1)) * p.stride_row;
  for (int64_t c = 0; c < p.hidden; c += L) {
    const int n = static_cast<int>(min(p.hidden - c, L));
    Vec<C> block[L];
    for (int l = 0; l < L; ++l) block[l] = n == L ? load(at[l] + c) : load_n(at[l] + c, n);
    transpose(block);
    for (int k = 0; k < L; ++k) {
      if (k == n) break;
      for (int j = 0; j < kLogits; ++j) {
        logits[j] = fma(broadcast(heads.weight[j * p.hidden + c + k]), block[k], logits[j]);
      }
    }
  }
  // The bias is added last: every step of a sum that starts from it would round at its magnitude.
  for (int j = 0; j < kLogits; ++j) logits[j] += broadcast(heads.bias[j]);
  const Vec<C> sum = (logits[0] + logits[1]) + (logits[2] + logits[3]);
  const C probe = reduce_add(sum - sum);
  if (__builtin_expect(probe != C(0), 0)) recompute_nonfinite<S, C>(p, row, rows, logits);
  for (int j = 0; j < kLogits; ++j) logits[j] = round_to<S>(logits[j]);
}

template <class Body>
HIERMT_INLINE void for_row_tiles(int64_t rows, int lanes, Body&& body) {
  parallel_for(row_tasks(rows), [&](int64_t task) {
    const Range range = rows_of(task, rows);
    for (int64_t row = range.begin; row < range.end; row += lanes) body(row, min(range.end - row, lanes));
  });
}

}  // namespace

template <class S>
void decision_forward(const DecisionForward<S>& p) {
  using C = Compute<S>;
  ScratchFrame frame;
  const FoldedHeads<C> heads = fold_heads(frame, p.weights, p.features, p.hidden);
  const C threshold = comparable<S>(p.threshold);
  for_row_tiles(p.rows, kLanes<C>, [&](int64_t row, int64_t rows) {
    Vec<C> logits[kLogits];
    product(p, heads, row, rows, logits);
    if (p.signal_logits != nullptr) store_pairs(p.signal_logits + 2 * row, logits[0], logits[1], rows);
    if (p.direction_logits != nullptr) store_pairs(p.direction_logits + 2 * row, logits[2], logits[3], rows);
    decide<S, C>(logits, threshold, p.outputs, row, rows);
  });
}

template <class S>
void decision_from_logits(const DecisionFromLogits<S>& p) {
  using C = Compute<S>;
  const C threshold = comparable<S>(p.threshold);
  for_row_tiles(p.rows, kLanes<C>, [&](int64_t row, int64_t rows) {
    C columns[kLogits][kLanes<C>] = {};
    for (int64_t l = 0; l < rows; ++l) {
      for (int j = 0; j < 2; ++j) {
        columns[j][l] = to_compute(p.signal_logits[2 * (row + l) + j]);
        columns[2 + j][l] = to_compute(p.direction_logits[2 * (row + l) + j]);
      }
    }
    Vec<C> logits[kLogits];
    for (int j = 0; j < kLogits; ++j) logits[j] = load(columns[j]);
    decide<S, C>(logits, threshold, p.outputs, row, rows);
  });
}

HIERMT_INSTANTIATE(decision_forward)
HIERMT_INSTANTIATE(decision_from_logits)

}  // namespace hiermt::cpu::HIERMT_ISA
