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

// launcher(void* stream) -> cudaError_t as int
template <class Launcher>
void call_cuda(const char* op, const Tensor& tensor, Launcher&& launcher) {
  const CudaScope scope(op, tensor);
  scope.check(static_cast<int>(launcher(scope.stream())));
}

}  // namespace hiermt
