// The CUDA vocabulary of csrc/cuda on the host. The threads of a block are fibers; blocks run one after
// another.
//
// A fault of a kernel ends the process with one line on stderr:
//   divergence     a thread exits or waits elsewhere while others wait at a barrier or a warp function
//   shared memory  more is taken than the launch provides, or the layout differs between threads
//   launch bounds  a block has more threads than __launch_bounds__ allows its kernel
//   grid           a grid, a block or its shared memory exceeds what every GPU allows
//   out of bounds  AddressSanitizer: each piece of shared memory is a separate allocation
// Shared memory is initialised with NaN, which is also an index out of range, so that a read before the write
// shows in the result. HIERMT_SIMT_ORDER=<seed> permutes threads and blocks: a result that depends on it is a
// race.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <tuple>
#include <vector>

#include "argument.h"

// Static: entries of a section below must not be those of a function that the linker drops.
#define __global__ static
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
// The bound stays in the program as so many bytes of padding before the kernel, of which the compiler keeps a
// list: a function type cannot carry it.
#define __launch_bounds__(...) \
  __attribute__((noinline,     \
                 patchable_function_entry(simt::max_threads(__VA_ARGS__), simt::max_threads(__VA_ARGS__))))
#define __align__(n) alignas(n)
// __shared__ and __constant__ are missing on purpose: kernels use SharedMemory.

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
struct uint3 {
  unsigned x, y, z;
};
struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};

struct CUstream_st;
using cudaStream_t = CUstream_st*;
enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidValue = 1, cudaErrorInvalidConfiguration = 9 };
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize = 8 };
enum cudaDeviceAttr { cudaDevAttrMultiProcessorCount = 16, cudaDevAttrMaxSharedMemoryPerBlockOptin = 97 };

inline cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device);
inline cudaError_t cudaGetLastError() {
  return cudaSuccess;
}

extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;

namespace simt {

// Of the arguments of __launch_bounds__, the one that a launch must keep.
constexpr int max_threads(int threads, int = 0) {
  return threads;
}

enum class Collective : int { kBarrier, kSyncWarp, kShuffle, kVote, kReduce };

// Kernels launched so far.
int64_t launches();
// Appends the place of a kernel in the program, once, to the file that HIERMT_SIMT_LAUNCHES names.
void record_launch(const void* kernel);
// Lets `kernel` have so much shared memory; an error if the device has less.
cudaError_t allow_shared(const void* kernel, size_t bytes);
// Runs `body` once for each thread of a launch of `kernel` or, where HIERMT_SIMT_PTX is set, what nvcc made of the
// kernel.
cudaError_t launch(const void* kernel, dim3 grid, dim3 block, size_t shared_bytes,
                   const std::function<void()>& body, const std::vector<ptx::Argument>& arguments);
template <class... Parameters, class... Arguments>
cudaError_t launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared_bytes,
                   const Arguments&... arguments) {
  const std::tuple<Parameters...> held(arguments...);
  const auto list = std::apply(
      [](const auto&... one) {
        return std::vector<ptx::Argument>{{static_cast<const void*>(&one), sizeof(one)}...};
      },
      held);
  return launch(
      reinterpret_cast<const void*>(kernel), grid, block, shared_bytes, [&] { std::apply(kernel, held); },
      list);
}

void* shared(size_t begin, size_t bytes);
[[noreturn]] void fail(const char* detector, const char* format, ...);

// Waits until every lane of `mask` has called the same function at the same line. Returns the value of each
// lane.
const uint64_t* meet(Collective kind, unsigned mask, uint64_t value, int line);
int lane();

template <class T>
uint64_t pack(T value) {
  static_assert(sizeof(T) <= sizeof(uint64_t));
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  return bits;
}
template <class T>
T unpack(uint64_t bits) {
  T value;
  std::memcpy(&value, &bits, sizeof(T));
  return value;
}

template <class T>
T read_lane(unsigned mask, T value, int source, int line) {
  const uint64_t* all = meet(Collective::kShuffle, mask, pack(value), line);
  if (source < 0 || source >= 32) return value;
  if (!(mask >> source & 1))
    fail("divergence", "line %d: shuffle reads lane %d outside its mask", line, source);
  return unpack<T>(all[source]);
}

template <class T, class F>
T fold(unsigned mask, T value, int line, F&& f) {
  const uint64_t* all = meet(Collective::kReduce, mask, pack(value), line);
  bool first = true;
  T result = value;
  for (int i = 0; i < 32; ++i) {
    if (!(mask >> i & 1)) continue;
    result = first ? unpack<T>(all[i]) : f(result, unpack<T>(all[i]));
    first = false;
  }
  return result;
}

}  // namespace simt

template <class... Parameters>
cudaError_t cudaFuncSetAttribute(void (*kernel)(Parameters...), cudaFuncAttribute, int bytes) {
  return simt::allow_shared(reinterpret_cast<const void*>(kernel), static_cast<size_t>(bytes));
}

inline void __syncthreads(int line = __builtin_LINE()) {
  simt::meet(simt::Collective::kBarrier, ~0u, 0, line);
}
inline void __syncwarp(unsigned mask = ~0u, int line = __builtin_LINE()) {
  simt::meet(simt::Collective::kSyncWarp, mask, 0, line);
}

template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32, int line = __builtin_LINE()) {
  return simt::read_lane(mask, value, simt::lane() / width * width + source % width, line);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int bits, int width = 32, int line = __builtin_LINE()) {
  const int source = simt::lane() ^ bits;
  return simt::read_lane(mask, value, source / width == simt::lane() / width ? source : simt::lane(), line);
}
inline unsigned __ballot_sync(unsigned mask, int predicate, int line = __builtin_LINE()) {
  const uint64_t* all = simt::meet(simt::Collective::kVote, mask, predicate != 0, line);
  unsigned result = 0;
  for (int i = 0; i < 32; ++i) result |= (mask >> i & 1 && all[i]) ? 1u << i : 0u;
  return result;
}
template <class T>
T __reduce_max_sync(unsigned mask, T value, int line = __builtin_LINE()) {
  return simt::fold(mask, value, line, [](T a, T b) { return a > b ? a : b; });
}

// Fibers switch only at barriers and warp functions, so a plain update is atomic.
template <class T>
T atomicAdd(T* at, T value) {
  static_assert(std::is_integral_v<T>,
                "a floating-point atomic would make the result depend on the order of threads");
  const T old = *at;
  *at += value;
  return old;
}
template <class T>
T atomicMax(T* at, T value) {
  const T old = *at;
  if (value > old) *at = value;
  return old;
}

namespace simt {
// What mma.m16n8k8 with operands in TF32 does, see csrc/cuda/dense/mma.cuh.
void multiply_tf32(float (&d)[4], const float (&a)[4], const float (&b)[2], int line = __builtin_LINE());
}  // namespace simt

inline int __ffs(int value) {
  return __builtin_ffs(value);
}
inline float __fdividef(float a, float b) {
  return a / b;
}
inline float __uint_as_float(unsigned bits) {
  return simt::unpack<float>(bits);
}
inline unsigned __float_as_uint(float value) {
  return static_cast<unsigned>(simt::pack(value));
}

struct __nv_bfloat16 {
  uint16_t bits;
};
inline __nv_bfloat16 __float2bfloat16_rn(float value) {
  const unsigned bits = __float_as_uint(value);
  if (value != value) return {0x7fff};
  return {static_cast<uint16_t>((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16)};
}
inline float __bfloat162float(__nv_bfloat16 value) {
  return __uint_as_float(static_cast<unsigned>(value.bits) << 16);
}
inline uint16_t __bfloat16_as_ushort(__nv_bfloat16 value) {
  return value.bits;
}

using __half = _Float16;
inline __half __float2half_rn(float value) {
  return static_cast<_Float16>(value);
}
inline float __half2float(__half value) {
  return static_cast<float>(value);
}
inline __half __ushort_as_half(uint16_t bits) {
  return simt::unpack<_Float16>(bits);
}
inline uint16_t __half_as_ushort(__half value) {
  return static_cast<uint16_t>(simt::pack(value));
}
