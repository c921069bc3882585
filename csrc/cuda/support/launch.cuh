// How every kernel is launched, and the few words in which kernels speak to the hardware.
//
// Under HIERMT_SIMT the same sources are compiled by the host compiler and tests/simt/ supplies the
// vocabulary, so a kernel keeps to: blockIdx, threadIdx, gridDim, blockDim, __syncthreads, __syncwarp, the
// *_sync warp functions, integer atomics, and shared memory taken from a SharedMemory.
#pragma once

#include <cstddef>
#include <cstdint>

#ifdef HIERMT_SIMT
#include "simt.h"
#else
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#endif

namespace hiermt::cuda {

constexpr int kWarp = 32;
constexpr unsigned kFullMask = 0xffffffffu;

// What a block gets without asking.
constexpr size_t kDefaultSharedBytes = 48 * 1024;

template <class I>
__host__ __device__ constexpr I ceil_div(I a, I b) {
  return (a + b - 1) / b;
}

// What a block of the current device gets when it asks.
inline size_t shared_memory_limit() {
  int device = 0, limit = 0;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&limit, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  return static_cast<size_t>(limit);
}

// Bytes that `count` values take in a SharedMemory or in a workspace.
template <class T>
__host__ __device__ constexpr size_t padded_bytes(size_t count, size_t alignment = 16) {
  return (count * sizeof(T) + alignment - 1) / alignment * alignment;
}

// Hands out pieces of the dynamic shared memory of a block, in the same order in every thread.
class SharedMemory {
 public:
  template <class T>
  __device__ T* take(size_t count) {
    const size_t begin = offset_;
    offset_ += padded_bytes<T>(count);
#ifdef HIERMT_SIMT
    return static_cast<T*>(simt::shared(begin, count * sizeof(T)));
#else
    extern __shared__ __align__(16) unsigned char hiermt_shared[];
    return reinterpret_cast<T*>(hiermt_shared + begin);
#endif
  }

 private:
  size_t offset_ = 0;
};

// The same for a workspace in global memory; a null base only measures.
class Workspace {
 public:
  explicit Workspace(void* base) : base_(static_cast<unsigned char*>(base)) {}

  template <class T>
  T* take(size_t count) {
    unsigned char* at = base_ == nullptr ? nullptr : base_ + bytes_;
    bytes_ += padded_bytes<T>(count, 256);
    return reinterpret_cast<T*>(at);
  }
  size_t bytes() const { return bytes_; }

 private:
  unsigned char* base_;
  size_t bytes_ = 0;
};

// Returns the error of the launch; an empty grid or block launches nothing.
template <class... Parameters, class... Arguments>
cudaError_t launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared_bytes,
                   cudaStream_t stream, const Arguments&... arguments) {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0 || block.x == 0 || block.y == 0 || block.z == 0)
    return cudaSuccess;
#ifdef HIERMT_SIMT
  (void)stream;
  return simt::launch(grid, block, shared_bytes, [&] { kernel(arguments...); });
#else
  if (shared_bytes > kDefaultSharedBytes) {
    const cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                                   static_cast<int>(shared_bytes));
    if (error != cudaSuccess) {
      cudaGetLastError();  // or the next launch would find it
      return error;
    }
  }
  kernel<<<grid, block, shared_bytes, stream>>>(arguments...);
  return cudaGetLastError();
#endif
}

}  // namespace hiermt::cuda

// Leaves the enclosing launcher with the error of the first launch that failed.
#define HIERMT_CUDA_RETURN_IF_ERROR(expression)           \
  do {                                                    \
    const cudaError_t hiermt_error = (expression);        \
    if (hiermt_error != cudaSuccess) return hiermt_error; \
  } while (0)
