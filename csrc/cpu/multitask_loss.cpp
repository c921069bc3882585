// Cross entropy of two heads of two classes, the second one over masked rows. Rows lie on the lanes.
//
// With a the logit of the target and b that of the other class, d = b - a:
//   loss = log(exp(a) + exp(b)) - a = max(d, 0) + log(1 + exp(-|d|)),  d loss / d b = sigmoid(d) = -d loss /
//   d a
#include "kernels.h"
#include "memory.h"
#include "parallel.h"
#include "scratch.h"
#include "vmath.h"

namespace hiermt {
namespace cpu {
namespace HIERMT_ISA {

namespace {

// The partial sums over rows belong to ranges that depend on N alone, so the thread count changes no bit.
constexpr int64_t kRowsPerPartial = 512;

template <class C>
struct Partial {
  C signal, direction;
  int64_t count;
};

// log(1 + e) for 0 <= e <= 1 by the series of the area hyperbolic tangent: 2 atanh(s) with s = e / (2 + e),
// which is at most 1/3.
template <class V>
HIERMT_INLINE V log_one_plus(V e) {
  using C = Lane<V>;
  constexpr int kTerms = sizeof(C) == 4 ? 8 : 17;
  const V s = e / (broadcast(C(2)) + e);
  const V square = s * s;
  V sum = broadcast(C(1) / C(2 * kTerms - 1));
  for (int k = kTerms - 2; k >= 0; --k) sum = fma(sum, square, broadcast(C(1) / C(2 * k + 1)));
  return (s + s) * sum;
}

// d of kLanes rows from `row` on. Rows that do not count get 0, so that nothing they hold can spread; a label
// that is no class gives NaN. An infinite logit gives NaN where log_softmax does.
template <class S, class C>
HIERMT_INLINE Vec<C> differences(const S* logits, const int64_t* targets, const bool* mask, int64_t row,
                                 int64_t rows, Vec<C>& counted) {
  C d[kLanes<C>], weight[kLanes<C>];
  for (int l = 0; l < kLanes<C>; ++l) {
    const bool counts = l < rows && (mask == nullptr || mask[row + l]);
    weight[l] = counts ? C(1) : C(0);
    d[l] = C(0);
    if (!counts) continue;
    const C first = to_compute(logits[2 * (row + l)]), second = to_compute(logits[2 * (row + l) + 1]);
    const int64_t target = targets[row + l];
    const C top = second > first ? second : first;
    d[l] = (target == 1 ? first - second : second - first) + (top - top);
    if (target != 0 && target != 1) d[l] = __builtin_nan("");
  }
  counted = load(weight);
  return load(d);
}

template <class V>
HIERMT_INLINE V cross_entropy(V d) {
  return max(d, V{}) + log_one_plus(exp_nonpositive(negative_abs(d)));
}

template <class C>
HIERMT_INLINE Vec<C> only(Vec<C> counted, Vec<C> value) {
  return select(counted > zero<C>(), value, zero<C>());
}

// grad = scale * (softmax - onehot); rows that do not count get 0.
template <class S, class C>
HIERMT_INLINE void gradient(const S* logits, const int64_t* targets, const bool* mask, C scale, S* grad,
                            int64_t begin, int64_t end) {
  constexpr int L = kLanes<C>;
  for (int64_t row = begin; row < end; row += L) {
    const int64_t rows = end - row < L ? end - row : L;
    Vec<C> counted;
    const Vec<C> d = differences<S, C>(logits, targets, mask, row, rows, counted);
    C other[L];
    store(other, only<C>(counted, broadcast(scale) * sigmoid(d)));
    for (int64_t l = 0; l < rows; ++l) {
      const bool second = targets[row + l] == 1;
      from_compute(grad[2 * (row + l)], second ? other[l] : -other[l]);
      from_compute(grad[2 * (row + l) + 1], second ? -other[l] : other[l]);
    }
  }
}

int64_t ranges_of(int64_t rows) {
  return (rows + kRowsPerPartial - 1) / kRowsPerPartial;
}

template <class S>
Compute<S> value_or_zero(const S* at) {
  return at == nullptr ? Compute<S>(0) : to_compute(*at);
}

}  // namespace

template <class S>
void multitask_loss_forward(const MultitaskLossForward<S>& p) {
  using C = Compute<S>;
  constexpr int L = kLanes<C>;
  ScratchFrame frame;
  const int64_t ranges = ranges_of(p.rows);
  Partial<C>* partials = frame.take<Partial<C>>(ranges);
  parallel_for(ranges, [&](int64_t range) {
    const int64_t end = (range + 1) * kRowsPerPartial < p.rows ? (range + 1) * kRowsPerPartial : p.rows;
    Vec<C> signal = zero<C>(), direction = zero<C>(), count = zero<C>();
    for (int64_t row = range * kRowsPerPartial; row < end; row += L) {
      const int64_t rows = end - row < L ? end - row : L;
      Vec<C> counted;
      const Vec<C> s = differences<S, C>(p.signal_logits, p.signal_targets, nullptr, row, rows, counted);
      signal += only<C>(counted, cross_entropy(s));
      const Vec<C> d = differences<S, C>(p.direction_logits, p.direction_targets, p.mask, row, rows, counted);
      direction += only<C>(counted, cross_entropy(d));
      count += counted;
    }
    partials[range] = {reduce_add(signal), reduce_add(direction), static_cast<int64_t>(reduce_add(count))};
  });
  Partial<C> sum{C(0), C(0), 0};
  for (int64_t range = 0; range < ranges; ++range) {
    sum.signal += partials[range].signal;
    sum.direction += partials[range].direction;
    sum.count += partials[range].count;
  }
  // No row at all gives NaN, as the mean of nothing does; no row in the mask gives zero.
  const C signal = sum.signal / static_cast<C>(p.rows);
  const bool none = p.masked && sum.count == 0;
  const C direction = none ? C(0) : sum.direction / static_cast<C>(sum.count);
  from_compute(*p.signal, signal);
  from_compute(*p.direction, direction);
  from_compute(*p.total, signal + static_cast<C>(p.lambda_direction) * direction);
  *p.count = sum.count;
}

template <class S>
void multitask_loss_backward(const MultitaskLossBackward<S>& p) {
  using C = Compute<S>;
  const MultitaskLossForward<S>& f = p.forward;
  const C total = value_or_zero(p.grad_total);
  const C signal = (total + value_or_zero(p.grad_signal)) / static_cast<C>(f.rows);
  const int64_t count = *f.count > 0 ? *f.count : 1;
  const C direction =
      (static_cast<C>(f.lambda_direction) * total + value_or_zero(p.grad_direction)) / static_cast<C>(count);
  parallel_for(ranges_of(f.rows), [&](int64_t range) {
    const int64_t begin = range * kRowsPerPartial;
    const int64_t end = begin + kRowsPerPartial < f.rows ? begin + kRowsPerPartial : f.rows;
    if (p.grad_signal_logits != nullptr) {
      gradient(f.signal_logits, f.signal_targets, nullptr, signal, p.grad_signal_logits, begin, end);
    }
    if (p.grad_direction_logits != nullptr) {
      gradient(f.direction_logits, f.direction_targets, f.mask, direction, p.grad_direction_logits, begin,
               end);
    }
  });
}

HIERMT_INSTANTIATE(multitask_loss_forward)
HIERMT_INSTANTIATE(multitask_loss_backward)

}  // namespace HIERMT_ISA
}  // namespace cpu
}  // namespace hiermt
