// How a host entry calls the kernels of the device that holds its tensors.
#pragma once

#include "cpu/support/dispatch.h"
#include "cpu/support/scratch.h"
#include "cuda/support/limits.h"
#include "cuda/support/stream.h"
#include "host/cuda_call.h"
#include "host/tensors.h"

namespace hiermt {

// Calls launcher(cuda::Stream&) on the device of `tensor`. Its memory is from torch's allocator: free again in the order
// of the stream.
template <class Launcher>
void call_cuda(const char* op, const Tensor& tensor, Launcher&& launcher) {
  const CudaScope scope(op, tensor);
  cuda::Stream counted;
  launcher(counted);
  const auto bytes = static_cast<int64_t>(counted.bytes());
  std::optional<Tensor> memory;
  if (bytes > 0) memory = empty({bytes}, ScalarType::Byte, tensor);
  cuda::Stream on(scope.stream(), memory ? memory->mutable_data_ptr() : nullptr);
  launcher(on);
  scope.check(on.error());
}

// on_cpu(table of the CPU kernels for S) or on_cuda(cuda::Stream&), whichever holds `tensor`.
template <class S, class OnCpu, class OnCuda>
void run_native(const char* op, const char* argument, const Tensor& tensor, OnCpu&& on_cpu,
                OnCuda&& on_cuda) {
  if (tensor.is_cpu()) {
    if constexpr (std::is_same_v<S, Half>) {
      fail(op, argument, "the CPU kernels take Float, Double and BFloat16, got Half");
    } else {
      const cpu::ScratchCall call;
      on_cpu(cpu::kernels_of<S>());
    }
  } else if constexpr (kWithCuda) {
    call_cuda(op, tensor, on_cuda);
  }
}

// What a GPU cannot count is refused before anything is launched.
inline void check_cuda_limits(const char* op, const Tensor& x, int64_t nodes, int64_t steps, int64_t hidden) {
  if (x.is_cpu()) return;
  if (hidden < 1 || hidden > cuda::kMaxHidden) {
    fail(op, "x", "the CUDA kernels take 1 to ", cuda::kMaxHidden, " hidden channels, got ", hidden,
         "; backend='reference' takes any");
  }
  if (x.size(2) > cuda::kMaxChannels) {
    fail(op, "x", "the CUDA kernels take up to ", cuda::kMaxChannels, " channels, got ", x.size(2),
         "; backend='reference' takes any");
  }
  if (nodes > 0 && steps > cuda::kMaxRows / nodes) {
    fail(op, "x", "the CUDA kernels take up to ", cuda::kMaxRows, " rows (N * T), got ", nodes, " * ", steps,
         "; split the batch");
  }
}
// x [N, T, ...]
inline void check_cuda_limits(const char* op, const Tensor& x, int64_t hidden) {
  check_cuda_limits(op, x, x.size(0), x.size(1), hidden);
}

}  // namespace hiermt
