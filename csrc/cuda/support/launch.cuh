// Launch of a kernel and its dynamic shared memory.
//
// Under HIERMT_SIMT the host compiler compiles the same sources and tests/simt/shim supplies the CUDA
// vocabulary. Kernels therefore use only blockIdx, threadIdx, gridDim, blockDim, __syncthreads, __syncwarp,
// the *_sync warp functions, integer atomics, and shared memory from SharedMemory.
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

#include "cuda/support/stream.h"

namespace hiermt::cuda {

constexpr int kWarp = 32;
constexpr unsigned kFullMask = 0xffffffffu;

// Dynamic shared memory of a block without an opt-in.
constexpr size_t kDefaultSharedBytes = 48 * 1024;

template <class I>
__host__ __device__ constexpr I ceil_div(I a, I b) {
  return (a + b - 1) / b;
}

// Dynamic shared memory of a block of the current device with the opt-in.
inline size_t shared_memory_limit() {
  int device = 0, limit = 0;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&limit, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  return static_cast<size_t>(limit);
}

// Bytes of `count` values in SharedMemory.
template <class T>
__host__ __device__ constexpr size_t padded_bytes(size_t count) {
  constexpr size_t alignment = 16;
  return (count * sizeof(T) + alignment - 1) / alignment * alignment;
}

// Allocates from the dynamic shared memory of a block. Every thread makes the same calls in the same order.
class SharedMemory {
 public:
  SharedMemory() = default;
  // From `offset` bytes on.
  __device__ explicit SharedMemory(size_t offset) : offset_(offset) {}
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

// Returns the error of the launch. An empty grid or block is not launched.
template <class... Parameters, class... Arguments>
cudaError_t launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared_bytes,
                   cudaStream_t stream, const Arguments&... arguments) {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0 || block.x == 0 || block.y == 0 || block.z == 0)
    return cudaSuccess;
  if (shared_bytes > kDefaultSharedBytes) {
    // Always the most that a block can have. The attribute belongs to the kernel: with the size of this launch, another
    // host thread could lower it between here and the launch. No kernel has static shared memory beside it.
    const cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                                   static_cast<int>(shared_memory_limit()));
    if (error != cudaSuccess) {
      cudaGetLastError();  // clears it: the next launch would report it
      return error;
    }
  }
#ifdef HIERMT_SIMT
  (void)stream;
  return simt::launch(kernel, grid, block, shared_bytes, arguments...);
#else
  kernel<<<grid, block, shared_bytes, stream>>>(arguments...);
  return cudaGetLastError();
#endif
}

// Blocks of a grid.
struct Grid {
  dim3 blocks;

  Grid(int64_t x, int64_t y = 1, int64_t z = 1)
      : blocks(static_cast<unsigned>(x), static_cast<unsigned>(y), static_cast<unsigned>(z)) {}
};

// The arguments become what the kernel takes.
template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), const Grid& grid, int64_t threads, size_t shared_bytes, Stream& on,
            const Arguments&... arguments) {
  on.run([&](void* stream) {
    return launch(kernel, grid.blocks, dim3(static_cast<unsigned>(threads)), shared_bytes,
                  static_cast<cudaStream_t>(stream), static_cast<Parameters>(arguments)...);
  });
}

}  // namespace hiermt::cuda
