// How a host entry calls the kernels of the device that holds its tensors.
#pragma once

#include "cpu/dispatch.h"
#include "cuda_call.h"
#include "tensors.h"

namespace hiermt {

// on_cpu(table of the CPU kernels for S) or on_cuda(stream) -> cudaError_t as int, whichever holds `tensor`.
template <class S, class OnCpu, class OnCuda>
void run_native(const char* op, const char* argument, const Tensor& tensor, OnCpu&& on_cpu,
                OnCuda&& on_cuda) {
  if (tensor.is_cpu()) {
    if constexpr (std::is_same_v<S, Half>) {
      fail(op, argument, "the CPU kernels take Float, Double and BFloat16, got Half");
    } else {
      on_cpu(cpu::kernels_of<S>());
    }
  } else if constexpr (kWithCuda) {
    call_cuda(op, tensor, on_cuda);
  }
}

// Scratch memory for a CUDA launcher, from torch's allocator: free again in the order of the stream.
inline Tensor workspace_of(size_t bytes, const Tensor& like) {
  return empty({static_cast<int64_t>(bytes)}, ScalarType::Byte, like);
}

}  // namespace hiermt
