// Cross entropy of two heads of two classes over rows that count, fewer of them for the second head. Rows are
// on the lanes.
// With a the logit of the target, b that of the other class and d = b - a:
//
//   loss = log(exp(a) + exp(b)) - a = max(d, 0) + log(1 + exp(-|d|))
//   d loss / d b = sigmoid(d) = -d loss / d a
#include "cpu/simd/memory.h"
#include "cpu/simd/vmath.h"
#include "cpu/support/kernels.h"
#include "cpu/support/parallel.h"
#include "cpu/support/scratch.h"

namespace hiermt::cpu::HIERMT_ISA {

namespace {

// Sums over the rows of one task.
template <class C>
struct Partial {
  C signal, direction;
  double signal_norm, direction_norm;
};

// log(1 + e) = 2 atanh(s) with s = e / (2 + e), for 0 <= e <= 1: s <= 1/3, and the series of atanh converges
// quickly. The number of terms is that of the precision.
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

template <class V>
HIERMT_INLINE V cross_entropy(V d) {
  return max(d, V{}) + log_one_plus(exp_nonpositive(negative_abs(d)));
}

template <class C>
HIERMT_INLINE Vec<C> only(Vec<C> counted, Vec<C> value) {
  return select(counted > zero<C>(), value, zero<C>());
}

// The arguments of one head. With q = sigmoid(d) = 1 - p of the target, a row's loss is
//   q^gamma * (own * -log p + other * -log q)
// where own = (1 - smoothing / 2) * weight of the target, other = smoothing / 2 * weight of the other class.
template <class S>
struct Head {
  using C = Compute<S>;
  const S* logits;
  const int64_t* targets;
  const bool *mask, *row_mask;
  C weight[2], own[2], other[2];  // by target
  C smoothing, gamma;

  Head(const S* logits, const int64_t* targets, const bool* mask, const bool* row_mask, const double* weights,
       const LossOptions& options)
      : logits(logits),
        targets(targets),
        mask(mask),
        row_mask(row_mask),
        smoothing(static_cast<C>(options.label_smoothing)),
        gamma(static_cast<C>(options.focal_gamma)) {
    const double half = options.label_smoothing / 2;
    for (int target = 0; target < 2; ++target) {
      const double of_target = weights == nullptr ? 1 : weights[target];
      const double of_other = weights == nullptr ? 1 : weights[1 - target];
      weight[target] = static_cast<C>(of_target);
      own[target] = static_cast<C>((1 - half) * of_target);
      other[target] = static_cast<C>(half * of_other);
    }
  }

  bool counts(int64_t row) const {
    return (mask == nullptr || mask[row]) && (row_mask == nullptr || row_mask[row]);
  }
};

template <class S>
Head<S> signal_head(const MultitaskLossForward<S>& p) {
  return {p.signal_logits, p.signal_targets, nullptr, p.row_mask, p.options.signal_weight, p.options};
}

template <class S>
Head<S> direction_head(const MultitaskLossForward<S>& p) {
  return {p.direction_logits, p.direction_targets, p.mask, p.row_mask, p.options.direction_weight, p.options};
}

// d of kLanes rows from `row` on; counted is 1 for the rows that count. Rows that do not count get 0,
// whatever they hold. A label outside 0 and 1 gives NaN, and so does an infinite logit where log_softmax
// does.
template <class S, class C = Compute<S>>
HIERMT_INLINE Vec<C> differences(const Head<S>& head, int64_t row, int64_t rows, Vec<C>& counted) {
  C d[kLanes<C>], weight[kLanes<C>];
  for (int l = 0; l < kLanes<C>; ++l) {
    const bool counts = l < rows && head.counts(row + l);
    weight[l] = counts ? C(1) : C(0);
    d[l] = C(0);
    if (!counts) continue;
    const C first = to_compute(head.logits[2 * (row + l)]),
            second = to_compute(head.logits[2 * (row + l) + 1]);
    const int64_t target = head.targets[row + l];
    const C largest = second > first ? second : first;
    d[l] = (target == 1 ? first - second : second - first) + (largest - largest);
    if (target != 0 && target != 1) d[l] = __builtin_nan("");
  }
  counted = load(weight);
  return load(d);
}

// The factors of a head in kLanes rows from `row` on.
template <class S, class C = Compute<S>>
struct Factors {
  Vec<C> weight, own, other;

  HIERMT_INLINE Factors(const Head<S>& head, int64_t row, int64_t rows) {
    C of[3][kLanes<C>];
    for (int l = 0; l < kLanes<C>; ++l) {
      const int target = l < rows && head.targets[row + l] == 1;
      of[0][l] = head.weight[target];
      of[1][l] = head.own[target];
      of[2][l] = head.other[target];
    }
    weight = load(of[0]);
    own = load(of[1]);
    other = load(of[2]);
  }
};

// own * -log p + other * -log q. Without smoothing the second term is left out, as 0 * inf is NaN.
template <class S, class V>
HIERMT_INLINE V smoothed(const Head<S>& head, const Factors<S>& factors, V d) {
  const V of_target = factors.own * cross_entropy(d);
  return head.smoothing > 0 ? of_target + factors.other * cross_entropy(-d) : of_target;
}

// q^gamma
template <class S, class V>
HIERMT_INLINE V focal(const Head<S>& head, V d) {
  return exp_nonpositive(broadcast(-head.gamma) * cross_entropy(-d));
}

// Adds the losses of kLanes rows from `row` on to `sum`, and their weights to `norm`.
template <bool kPlain, class S, class C = Compute<S>>
HIERMT_INLINE void add_rows(const Head<S>& head, int64_t row, int64_t rows, Vec<C>& sum, Vec<C>& norm) {
  Vec<C> counted;
  const Vec<C> d = differences(head, row, rows, counted);
  if constexpr (kPlain) {
    sum += only<C>(counted, cross_entropy(d));
    norm += counted;
  } else {
    const Factors<S> factors(head, row, rows);
    Vec<C> loss = smoothed(head, factors, d);
    if (head.gamma > 0) loss = loss * focal(head, d);
    sum += only<C>(counted, loss);
    norm += only<C>(counted, factors.weight);
  }
}

// d loss / d b of kLanes rows:
//   q^gamma * (own * q - other * p + gamma * p * (own * -log p + other * -log q))
template <bool kPlain, class S, class C = Compute<S>>
HIERMT_INLINE Vec<C> slope(const Head<S>& head, int64_t row, int64_t rows, Vec<C> d) {
  if constexpr (kPlain) {
    return sigmoid(d);
  } else {
    const Factors<S> factors(head, row, rows);
    Vec<C> value = factors.own * sigmoid(d);
    if (head.smoothing > 0) value -= factors.other * sigmoid(-d);
    if (head.gamma > 0) {
      value = focal(head, d) * (value + broadcast(head.gamma) * sigmoid(-d) * smoothed(head, factors, d));
    }
    return value;
  }
}

// d_logits = scale * d loss / d logits; rows that do not count get 0.
template <bool kPlain, class S, class C = Compute<S>>
HIERMT_INLINE void gradient(const Head<S>& head, C scale, S* d_logits, const Range& range) {
  constexpr int L = kLanes<C>;
  for (int64_t row = range.begin; row < range.end; row += L) {
    const int64_t rows = min(range.end - row, L);
    Vec<C> counted;
    const Vec<C> d = differences(head, row, rows, counted);
    C other[L];
    store(other, only<C>(counted, broadcast(scale) * slope<kPlain>(head, row, rows, d)));
    for (int64_t l = 0; l < rows; ++l) {
      const bool second = head.targets[row + l] == 1;
      from_compute(d_logits[2 * (row + l)], second ? other[l] : -other[l]);
      from_compute(d_logits[2 * (row + l) + 1], second ? -other[l] : other[l]);
    }
  }
}

template <class S>
Compute<S> value_or_zero(const S* at) {
  return at == nullptr ? Compute<S>(0) : to_compute(*at);
}

template <bool kPlain, class S>
void forward(const MultitaskLossForward<S>& p) {
  using C = Compute<S>;
  constexpr int L = kLanes<C>;
  const Head<S> signal_part = signal_head(p), direction_part = direction_head(p);
  ScratchFrame frame;
  const int64_t tasks = row_tasks(p.rows);
  Partial<C>* partials = frame.take<Partial<C>>(tasks);
  parallel_for(tasks, [&](int64_t task) {
    const Range range = rows_of(task, p.rows);
    Vec<C> signal = zero<C>(), direction = zero<C>(), signal_norm = zero<C>(), direction_norm = zero<C>();
    for (int64_t row = range.begin; row < range.end; row += L) {
      const int64_t rows = min(range.end - row, L);
      add_rows<kPlain>(signal_part, row, rows, signal, signal_norm);
      add_rows<kPlain>(direction_part, row, rows, direction, direction_norm);
    }
    partials[task] = {reduce_add(signal), reduce_add(direction), reduce_add(signal_norm),
                      reduce_add(direction_norm)};
  });
  Partial<C> sum{C(0), C(0), 0, 0};
  for (int64_t task = 0; task < tasks; ++task) {
    sum.signal += partials[task].signal;
    sum.direction += partials[task].direction;
    sum.signal_norm += partials[task].signal_norm;
    sum.direction_norm += partials[task].direction_norm;
  }
  // The mean over an empty batch is NaN. Rows, but none in the mask or none with a weight, give zero.
  const auto mean = [](C value, double norm, bool may_be_empty) {
    return may_be_empty && norm == 0 ? C(0) : value / static_cast<C>(norm);
  };
  const C signal = mean(sum.signal, sum.signal_norm, !kPlain || p.row_masked);
  const C direction = mean(sum.direction, sum.direction_norm, !kPlain || p.masked || p.row_masked);
  from_compute(*p.signal, signal);
  from_compute(*p.direction, direction);
  from_compute(*p.total, signal + static_cast<C>(p.lambda_direction) * direction);
  p.norms[0] = sum.signal_norm;
  p.norms[1] = sum.direction_norm;
}

// The gradient of a head is zero when no row counts for it.
template <class C>
C normalised(C cotangent, double norm) {
  return norm > 0 ? cotangent / static_cast<C>(norm) : C(0);
}

template <bool kPlain, class S>
void backward(const MultitaskLossBackward<S>& p) {
  using C = Compute<S>;
  const MultitaskLossForward<S>& f = p.forward;
  const Head<S> signal_part = signal_head(f), direction_part = direction_head(f);
  const C total = value_or_zero(p.d_total);
  const C signal = normalised(total + value_or_zero(p.d_signal), f.norms[0]);
  const C direction =
      normalised(static_cast<C>(f.lambda_direction) * total + value_or_zero(p.d_direction), f.norms[1]);
  parallel_for(row_tasks(f.rows), [&](int64_t task) {
    const Range range = rows_of(task, f.rows);
    if (p.d_signal_logits != nullptr) gradient<kPlain>(signal_part, signal, p.d_signal_logits, range);
    if (p.d_direction_logits != nullptr) {
      gradient<kPlain>(direction_part, direction, p.d_direction_logits, range);
    }
  });
}

}  // namespace

template <class S>
void multitask_loss_forward(const MultitaskLossForward<S>& p) {
  p.options.none() ? forward<true>(p) : forward<false>(p);
}

template <class S>
void multitask_loss_backward(const MultitaskLossBackward<S>& p) {
  p.forward.options.none() ? backward<true>(p) : backward<false>(p);
}

HIERMT_INSTANTIATE(multitask_loss_forward)
HIERMT_INSTANTIATE(multitask_loss_backward)

}  // namespace hiermt::cpu::HIERMT_ISA
