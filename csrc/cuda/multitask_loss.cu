// Cross entropy of two heads of two classes, the second one over masked rows.
//
// With a the logit of the target and b that of the other class, d = b - a:
//   loss = max(d, 0) + log(1 + exp(-|d|)),  d loss / d b = sigmoid(d) = -d loss / d a
// Each block sums its rows, one more block adds the sums in order, so that no bit depends on the schedule.
#include "device.cuh"
#include "multitask_loss.h"

namespace hiermt::cuda {
namespace {

constexpr int kThreads = 256;

__device__ __forceinline__ float log_one_plus(float e) {
  return log1pf(e);
}
__device__ __forceinline__ double log_one_plus(double e) {
  return log1p(e);
}

// A label that is no class gives NaN, and so does an infinite logit where log_softmax does.
template <class S, class C = Compute<S>>
__device__ __forceinline__ C difference(const S* logits, int64_t target, int64_t row) {
  const C first = load(logits + 2 * row), second = load(logits + 2 * row + 1);
  const C top = second > first ? second : first;
  const C d = (target == 1 ? first - second : second - first) + (top - top);
  return target == 0 || target == 1 ? d : d + C(NAN);
}

template <class C>
__device__ __forceinline__ C cross_entropy(C d) {
  return (d < C(0) ? C(0) : d) + log_one_plus(exponential(d < C(0) ? d : -d));
}

template <class S>
__device__ __forceinline__ bool counts(const MultitaskLossForward<S>& p, int64_t row) {
  return p.mask == nullptr || p.mask[row];
}

// sums[block] = {signal, direction}, counts[block] = rows of the mask
template <class S>
__global__ void __launch_bounds__(kThreads)
    multitask_loss_sum_kernel(MultitaskLossForward<S> p, Compute<S>* sums, int64_t* row_counts) {
  using C = Compute<S>;
  SharedMemory shared;
  C* scratch = shared.take<C>(kThreads);
  int* count_scratch = shared.take<int>(kThreads);
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  C signal = C(0), direction = C(0);
  int count = 0;
  if (row < p.rows) {
    signal = cross_entropy(difference(p.signal_logits, p.signal_targets[row], row));
    if (counts(p, row)) {
      direction = cross_entropy(difference(p.direction_logits, p.direction_targets[row], row));
      count = 1;
    }
  }
  signal = block_sum(signal, scratch);
  direction = block_sum(direction, scratch);
  count = block_sum(count, count_scratch);
  if (threadIdx.x == 0) {
    sums[2 * blockIdx.x] = signal;
    sums[2 * blockIdx.x + 1] = direction;
    row_counts[blockIdx.x] = count;
  }
}

template <class S>
__global__ void __launch_bounds__(kThreads)
    multitask_loss_finish_kernel(MultitaskLossForward<S> p, int64_t blocks, const Compute<S>* sums,
                                 const int64_t* row_counts) {
  using C = Compute<S>;
  SharedMemory shared;
  C* scratch = shared.take<C>(kThreads);
  int64_t* count_scratch = shared.take<int64_t>(kThreads);
  C signal = C(0), direction = C(0);
  int64_t count = 0;
  for (int64_t block = threadIdx.x; block < blocks; block += kThreads) {
    signal += sums[2 * block];
    direction += sums[2 * block + 1];
    count += row_counts[block];
  }
  signal = block_sum(signal, scratch);
  direction = block_sum(direction, scratch);
  count = block_sum(count, count_scratch);
  if (threadIdx.x != 0) return;
  // No row at all gives NaN, as the mean of nothing does; no row in the mask gives zero.
  signal = signal / static_cast<C>(p.rows);
  direction = p.masked && count == 0 ? C(0) : direction / static_cast<C>(count);
  store(p.signal, signal);
  store(p.direction, direction);
  store(p.total, signal + static_cast<C>(p.lambda_direction) * direction);
  *p.count = count;
}

template <class S>
__device__ __forceinline__ Compute<S> value_or_zero(const S* at) {
  return at == nullptr ? Compute<S>(0) : load(at);
}

// scale * (softmax - onehot)
template <class S, class C>
__device__ __forceinline__ void gradient(const S* logits, int64_t target, bool counted, C scale, S* grad,
                                         int64_t row) {
  const C other = counted ? scale * sigmoid(difference(logits, target, row)) : C(0);
  store(grad + 2 * row, target == 1 ? other : -other);
  store(grad + 2 * row + 1, target == 1 ? -other : other);
}

template <class S>
__global__ void __launch_bounds__(kThreads) multitask_loss_bwd_kernel(MultitaskLossBackward<S> p) {
  using C = Compute<S>;
  const MultitaskLossForward<S>& f = p.forward;
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (row >= f.rows) return;
  const C total = value_or_zero(p.grad_total);
  if (p.grad_signal_logits != nullptr) {
    const C scale = (total + value_or_zero(p.grad_signal)) / static_cast<C>(f.rows);
    gradient(f.signal_logits, f.signal_targets[row], true, scale, p.grad_signal_logits, row);
  }
  if (p.grad_direction_logits != nullptr) {
    const int64_t count = *f.count > 0 ? *f.count : 1;
    const C scale = (static_cast<C>(f.lambda_direction) * total + value_or_zero(p.grad_direction)) /
                    static_cast<C>(count);
    gradient(f.direction_logits, f.direction_targets[row], counts(f, row), scale, p.grad_direction_logits,
             row);
  }
}

template <class S>
struct Sums {
  int64_t blocks;
  Compute<S>* sums;
  int64_t* counts;
  size_t bytes;

  Sums(const MultitaskLossForward<S>& p, void* base) : blocks(ceil_div(p.rows, int64_t{kThreads})) {
    Workspace workspace(base);
    sums = workspace.take<Compute<S>>(2 * blocks);
    counts = workspace.take<int64_t>(blocks);
    bytes = workspace.bytes();
  }
};

}  // namespace

template <class S>
size_t multitask_loss_workspace(const MultitaskLossForward<S>& p) {
  return Sums<S>(p, nullptr).bytes;
}

template <class S>
int multitask_loss_forward(const MultitaskLossForward<S>& p, void* workspace, void* stream) {
  const auto on = static_cast<cudaStream_t>(stream);
  const Sums<S> part(p, workspace);
  const size_t shared = padded_bytes<Compute<S>>(kThreads) + padded_bytes<int64_t>(kThreads);
  HIERMT_CUDA_RETURN_IF_ERROR(launch(multitask_loss_sum_kernel<S>, dim3(static_cast<unsigned>(part.blocks)),
                                     dim3(kThreads), shared, on, p, part.sums, part.counts));
  return launch(multitask_loss_finish_kernel<S>, dim3(1), dim3(kThreads), shared, on, p, part.blocks,
                static_cast<const Compute<S>*>(part.sums), static_cast<const int64_t*>(part.counts));
}

template <class S>
int multitask_loss_backward(const MultitaskLossBackward<S>& p, void* stream) {
  const dim3 grid(static_cast<unsigned>(ceil_div(p.forward.rows, int64_t{kThreads})));
  return launch(multitask_loss_bwd_kernel<S>, grid, dim3(kThreads), 0, static_cast<cudaStream_t>(stream), p);
}

#define HIERMT_INSTANTIATE(S)                                                           \
  template size_t multitask_loss_workspace<S>(const MultitaskLossForward<S>&);          \
  template int multitask_loss_forward<S>(const MultitaskLossForward<S>&, void*, void*); \
  template int multitask_loss_backward<S>(const MultitaskLossBackward<S>&, void*);
HIERMT_FOR_EACH_STORAGE(HIERMT_INSTANTIATE)
#undef HIERMT_INSTANTIATE

}  // namespace hiermt::cuda
