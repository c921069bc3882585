// Cross entropy of two heads of two classes over rows that count, fewer of them for the second head.
//
// With a the logit of the target, b that of the other class and d = b - a:
//
//   loss = max(d, 0) + log(1 + exp(-|d|))     d loss / d b = sigmoid(d) = -d loss / d a
//
// Each block sums its rows; another launch adds the sums of the blocks in a fixed order.
#include "cuda/operators.h"
#include "cuda/support/device.cuh"

namespace hiermt::cuda {
namespace {

constexpr int kThreads = 256;  // a power of two, as block_sum requires

__device__ __forceinline__ float log_one_plus(float e) {
  return log1pf(e);
}
__device__ __forceinline__ double log_one_plus(double e) {
  return log1p(e);
}

// Returns d. It is NaN for a label that is not a class, and for infinite logits as in log_softmax.
template <class S, class C = Compute<S>>
__device__ __forceinline__ C difference(const S* logits, int64_t target, int64_t row) {
  const C first = load(logits + 2 * row), second = load(logits + 2 * row + 1);
  const C max = second > first ? second : first;
  const C d = (target == 1 ? first - second : second - first) + (max - max);
  return target == 0 || target == 1 ? d : d + C(NAN);
}

template <class C>
__device__ __forceinline__ C cross_entropy(C d) {
  return (d < C(0) ? C(0) : d) + log_one_plus(exp(d < C(0) ? d : -d));
}

// The arguments of one head. With p the probability of the target and q = 1 - p = sigmoid(d), the loss of a
// row is
//   q^gamma * (own * -log p + other * -log q)
// where own = (1 - smoothing / 2) * weight of the target, other = smoothing / 2 * weight of the other class.
template <class S>
struct Head {
  using C = Compute<S>;
  const S* logits;
  const int64_t* targets;
  const bool *mask, *row_mask;
  const double* weights;
  double smoothing, gamma;

  __device__ __forceinline__ bool counts(int64_t row) const {
    return (mask == nullptr || mask[row]) && (row_mask == nullptr || row_mask[row]);
  }
  __device__ __forceinline__ C weight(int64_t row) const {
    return static_cast<C>(weight_of(targets[row] == 1));
  }
  __device__ __forceinline__ C own(int64_t row) const {
    return static_cast<C>((1 - smoothing / 2) * weight_of(targets[row] == 1));
  }
  __device__ __forceinline__ C other(int64_t row) const {
    return static_cast<C>(smoothing / 2 * weight_of(targets[row] != 1));
  }

 private:
  __device__ __forceinline__ double weight_of(int label) const {
    return weights == nullptr ? 1.0 : weights[label];
  }
};

template <class S>
__device__ __forceinline__ Head<S> signal_head(const MultitaskLossForward<S>& p) {
  const LossOptions& o = p.options;
  return {p.signal_logits, p.signal_targets,  nullptr,      p.row_mask,
          o.signal_weight, o.label_smoothing, o.focal_gamma};
}

template <class S>
__device__ __forceinline__ Head<S> direction_head(const MultitaskLossForward<S>& p) {
  const LossOptions& o = p.options;
  return {p.direction_logits, p.direction_targets, p.mask,       p.row_mask,
          o.direction_weight, o.label_smoothing,   o.focal_gamma};
}

// own * -log p + other * -log q. Without smoothing an infinite -log q is ignored.
template <class S, class C>
__device__ __forceinline__ C smoothed(const Head<S>& head, int64_t row, C d) {
  const C of_target = head.own(row) * cross_entropy(d);
  return head.smoothing > 0 ? of_target + head.other(row) * cross_entropy(-d) : of_target;
}

// q^gamma
template <class S, class C>
__device__ __forceinline__ C focal(const Head<S>& head, C d) {
  return exp(static_cast<C>(-head.gamma) * cross_entropy(-d));
}

// Loss of a row and its weight in the mean.
template <class S, class C>
__device__ __forceinline__ void add_row(const Head<S>& head, int64_t row, C& loss, C& weight) {
  const C d = difference(head.logits, head.targets[row], row);
  loss = smoothed(head, row, d);
  if (head.gamma > 0) loss *= focal(head, d);
  weight = head.weight(row);
}

// sums[block] = {signal, direction} losses, norms[block] = their total weights.
template <class S>
__global__ void __launch_bounds__(kThreads)
    multitask_loss_sum_kernel(MultitaskLossForward<S> p, Compute<S>* sums, double* norms) {
  using C = Compute<S>;
  SharedMemory shared;
  C* scratch = shared.take<C>(kThreads);
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  C values[4] = {};  // losses of the signal and the direction, and their weights
  if (row < p.rows) {
    const Head<S> signal = signal_head(p), direction = direction_head(p);
    if (signal.counts(row)) add_row(signal, row, values[0], values[2]);
    if (direction.counts(row)) add_row(direction, row, values[1], values[3]);
  }
  for (C& value : values) value = block_sum(value, scratch);
  if (threadIdx.x != 0) return;
  for (int i = 0; i < 2; ++i) {
    sums[2 * blockIdx.x + i] = values[i];
    norms[2 * blockIdx.x + i] = static_cast<double>(values[2 + i]);
  }
}

// NaN without rows, as in torch. Zero if no row is in the mask, or if the classes of all rows weigh zero.
template <class C>
__device__ __forceinline__ C mean(C sum, double norm, bool may_be_empty) {
  return may_be_empty && norm == 0 ? C(0) : sum / static_cast<C>(norm);
}

template <class S>
__global__ void __launch_bounds__(kThreads)
    multitask_loss_finish_kernel(MultitaskLossForward<S> p, int64_t blocks, const Compute<S>* sums,
                                 const double* norms) {
  using C = Compute<S>;
  SharedMemory shared;
  C* scratch = shared.take<C>(kThreads);
  double* norm_scratch = shared.take<double>(kThreads);
  C loss[2] = {};
  double norm[2] = {};
  for (int64_t block = threadIdx.x; block < blocks; block += kThreads) {
    for (int i = 0; i < 2; ++i) {
      loss[i] += sums[2 * block + i];
      norm[i] += norms[2 * block + i];
    }
  }
  const bool may_be_empty = p.row_masked || !p.options.none();
  for (int i = 0; i < 2; ++i) {
    norm[i] = block_sum(norm[i], norm_scratch);
    loss[i] = mean(block_sum(loss[i], scratch), norm[i], may_be_empty || (i == 1 && p.masked));
  }
  if (threadIdx.x != 0) return;
  store(p.signal, loss[0]);
  store(p.direction, loss[1]);
  store(p.total, loss[0] + static_cast<C>(p.lambda_direction) * loss[1]);
  p.norms[0] = norm[0];
  p.norms[1] = norm[1];
}

template <class S>
__device__ __forceinline__ Compute<S> value_or_zero(const S* at) {
  return at == nullptr ? Compute<S>(0) : load(at);
}

// The gradient is zero for a head without rows.
template <class C>
__device__ __forceinline__ C over(C cotangent, double norm) {
  return norm > 0 ? cotangent / static_cast<C>(norm) : C(0);
}

// d loss / d b:
//   q^gamma * (own * q - other * p + gamma * p * (own * -log p + other * -log q))
template <class S, class C>
__device__ __forceinline__ C slope(const Head<S>& head, int64_t row, C d) {
  C value = head.own(row) * sigmoid(d);
  if (head.smoothing > 0) value -= head.other(row) * sigmoid(-d);
  if (head.gamma > 0) {
    value = focal(head, d) * (value + static_cast<C>(head.gamma) * sigmoid(-d) * smoothed(head, row, d));
  }
  return value;
}

// scale * d loss / d logits
template <class S, class C>
__device__ __forceinline__ void gradient(const Head<S>& head, C scale, S* d_logits, int64_t row) {
  const int64_t target = head.targets[row];
  const C other = head.counts(row) ? scale * slope(head, row, difference(head.logits, target, row)) : C(0);
  store(d_logits + 2 * row, target == 1 ? other : -other);
  store(d_logits + 2 * row + 1, target == 1 ? -other : other);
}

template <class S>
__global__ void __launch_bounds__(kThreads) multitask_loss_bwd_kernel(MultitaskLossBackward<S> p) {
  using C = Compute<S>;
  const MultitaskLossForward<S>& f = p.forward;
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (row >= f.rows) return;
  const C total = value_or_zero(p.d_total);
  if (p.d_signal_logits != nullptr) {
    const C scale = over(total + value_or_zero(p.d_signal), f.norms[0]);
    gradient(signal_head(f), scale, p.d_signal_logits, row);
  }
  if (p.d_direction_logits != nullptr) {
    const C scale =
        over(static_cast<C>(f.lambda_direction) * total + value_or_zero(p.d_direction), f.norms[1]);
    gradient(direction_head(f), scale, p.d_direction_logits, row);
  }
}

}  // namespace

template <class S>
void multitask_loss_forward(const MultitaskLossForward<S>& p, Stream& on) {
  using C = Compute<S>;
  const int64_t blocks = ceil_div(p.rows, int64_t{kThreads});
  C* const sums = on.take<C>(2 * blocks);
  double* const norms = on.take<double>(2 * blocks);
  launch(multitask_loss_sum_kernel<S>, blocks, kThreads, padded_bytes<C>(kThreads), on, p, sums, norms);
  launch(multitask_loss_finish_kernel<S>, 1, kThreads,
         padded_bytes<C>(kThreads) + padded_bytes<double>(kThreads), on, p, blocks, sums, norms);
}

template <class S>
void multitask_loss_backward(const MultitaskLossBackward<S>& p, Stream& on) {
  launch(multitask_loss_bwd_kernel<S>, ceil_div(p.forward.rows, int64_t{kThreads}), kThreads, 0, on, p);
}

#define HIERMT_INSTANTIATE(S)                                                       \
  template void multitask_loss_forward<S>(const MultitaskLossForward<S>&, Stream&); \
  template void multitask_loss_backward<S>(const MultitaskLossBackward<S>&, Stream&);
HIERMT_FOR_EACH_STORAGE(HIERMT_INSTANTIATE)
#undef HIERMT_INSTANTIATE

}  // namespace hiermt::cuda
