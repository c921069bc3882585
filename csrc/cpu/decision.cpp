// Logits, softmax and the hierarchical decision of a row in one pass. Rows lie on the lanes.
#include "cpu/decision_literal.h"
#include "cpu/simd/vmath.h"
#include "cpu/support/kernels.h"
#include "cpu/support/parallel.h"

namespace hiermt {
namespace cpu {
namespace HIERMT_ISA {

namespace {

constexpr int64_t kRowsPerTask = 512;

template <class S, class V>
HIERMT_INLINE void store_up_to(S* to, V v, int64_t count) {
  constexpr int n = sizeof(V) / sizeof(Lane<V>);
  if (count >= n) {
    store(to, v);
  } else if (count > 0) {
    store_n(to, v, static_cast<int>(count));
  }
}

// to[2 * row + class]
template <class S, class V>
HIERMT_INLINE void store_pairs(S* to, V first, V second, int64_t rows) {
  constexpr int n = sizeof(V) / sizeof(Lane<V>);
  const Interleaved<V> both = interleave(first, second);
  store_up_to(to, both.low, 2 * rows);
  store_up_to(to + n, both.high, 2 * rows - n);
}

// Softmax of two logits, rounded to the storage type. A maximum of +inf gives NaN as torch.softmax does.
template <class S, class C>
HIERMT_INLINE void softmax(Vec<C> a, Vec<C> b, Vec<C>& p_a, Vec<C>& p_b) {
  const Vec<C> top = max(a, b);
  const Vec<C> e = exp_nonpositive(negative_abs(b - a)) + (top - top);
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
  // The decision follows from the probabilities as they are handed out, so it can be checked against them.
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

// The threshold as torch compares it: a scalar takes the dtype of the tensor.
template <class S, class C = Compute<S>>
C comparable(double threshold) {
  return round_to<S>(broadcast(static_cast<C>(threshold)))[0];
}

// Computes the rows that are not finite again, and no other: a row does not depend on its neighbours.
template <class S, class C>
HIERMT_NOINLINE void make_literal(const DecisionForward<S>& p, int64_t row, int64_t rows,
                                  Vec<C> (&logits)[kLogits]) {
  for (int64_t l = 0; l < rows; ++l) {
    if (is_finite((logits[0][l] + logits[1][l]) + (logits[2][l] + logits[3][l]))) continue;
    C of_row[kLogits];
    literal_logits(p.weights, p.h + (row + l) * p.stride_row, p.hidden, p.features, of_row);
    for (int j = 0; j < kLogits; ++j) logits[j][l] = of_row[j];
  }
}

// kLanes rows of h times the folded heads; rows past the end repeat the last one.
template <class S, class C>
HIERMT_INLINE void product(const DecisionForward<S>& p, const FoldedHeads<C>& heads, int64_t row,
                           int64_t rows, Vec<C> (&logits)[kLogits]) {
  constexpr int L = kLanes<C>;
  for (int j = 0; j < kLogits; ++j) logits[j] = zero<C>();
  const S* at[L];
  for (int l = 0; l < L; ++l) at[l] = p.h + (row + (l < rows ? l : rows - 1)) * p.stride_row;
  for (int64_t c = 0; c < p.hidden; c += L) {
    const int n = static_cast<int>(p.hidden - c < L ? p.hidden - c : L);
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
  // The bias comes last: sums that start from it round at its magnitude at every step.
  for (int j = 0; j < kLogits; ++j) logits[j] += broadcast(heads.bias[j]);
  const Vec<C> together = (logits[0] + logits[1]) + (logits[2] + logits[3]);
  const C probe = reduce_add(together - together);
  if (__builtin_expect(probe != C(0), 0)) make_literal<S, C>(p, row, rows, logits);
  for (int j = 0; j < kLogits; ++j) logits[j] = round_to<S>(logits[j]);
}

template <class Body>
HIERMT_INLINE void for_row_tiles(int64_t rows, int lanes, Body&& body) {
  parallel_for((rows + kRowsPerTask - 1) / kRowsPerTask, [&](int64_t task) {
    const int64_t end = (task + 1) * kRowsPerTask < rows ? (task + 1) * kRowsPerTask : rows;
    for (int64_t row = task * kRowsPerTask; row < end; row += lanes) {
      body(row, end - row < lanes ? end - row : lanes);
    }
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

}  // namespace HIERMT_ISA
}  // namespace cpu
}  // namespace hiermt
