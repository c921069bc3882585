// How a host entry calls a CUDA launcher: on the tensor's device, on torch's current stream, with its error
// turned into an exception.
#pragma once

#include "host/checks.h"

namespace hiermt {

#ifdef HIERMT_WITH_CUDA
constexpr bool kWithCuda = true;
#else
constexpr bool kWithCuda = false;
#endif

// Makes the device of `tensor` current until the end of the scope, and knows torch's current stream on it.
class CudaScope {
 public:
  CudaScope(const char* op, const Tensor& tensor);
  ~CudaScope();
  CudaScope(const CudaScope&) = delete;
  CudaScope& operator=(const CudaScope&) = delete;

  void* stream() const { return stream_; }  // a cudaStream_t
  void check(int error) const;              // a cudaError_t

 private:
  const char* op_;
  void* guard_ = nullptr;
  void* stream_ = nullptr;
};

}  // namespace hiermt
