// A kernel with one deliberate fault per detector of the harness. Each fault must end the process or change
// the output.
#include "cuda/support/launch.cuh"
#include "faults.h"

namespace hiermt::cuda {
namespace {

enum Fault {
  kNone,
  kBarrierDivergence,
  kEarlyExit,
  kShuffleDivergence,
  kShuffleMask,
  kSharedOutOfBounds,
  kGlobalOutOfBounds,
  kUninitialisedShared,
  kRace,
  kOverflow,
  kSharedTooSmall,
  kGridTooTall,
  kBlockTooLarge,
  kBlockAboveItsBound,
  kSharedNotAllowed,
  kBlockWithinItsBound,  // no fault
  kSharedOfOneLaunch,
};

constexpr int kBound = 96;

__global__ void __launch_bounds__(kBound, 2) bounded_kernel(float* out) {
  out[threadIdx.x] = 1;
}

__global__ void fault_kernel(int fault, const float* in, float* out, int n) {
  SharedMemory memory;
  float* tile = memory.take<float>(n);
  const int i = static_cast<int>(threadIdx.x);
  if (fault == kBarrierDivergence && i == 3) {
    __syncthreads();
  }
  if (fault == kEarlyExit && i == 5) return;
  if (fault != kUninitialisedShared || i != 2) tile[i] = in[i];
  if (fault == kSharedOutOfBounds && i == 0) tile[n] = 1;
  if (fault != kRace) __syncthreads();
  float value = tile[(i + 1) % n];
  if (fault == kShuffleDivergence) {
    if (i % 2 == 0) value += __shfl_xor_sync(kFullMask, value, 1);
  } else if (fault == kShuffleMask) {
    value += __shfl_xor_sync(0x0000ffffu, value, 1);
  } else {
    value += __shfl_xor_sync(kFullMask, value, 1);
  }
  if (fault == kOverflow) {
    int big = 0x7fffffff - i;
    big += 2 * i + 1;
    value += static_cast<float>(big);
  }
  out[fault == kGlobalOutOfBounds && i == n - 1 ? n : i] = value;
}

}  // namespace

cudaError_t run_fault(int fault, const float* in, float* out, int n, cudaStream_t stream) {
  if (fault == kGridTooTall) return launch(bounded_kernel, dim3(1, 65536), dim3(1), 0, stream, out);
  if (fault == kBlockTooLarge) return launch(fault_kernel, dim3(1), dim3(1056), 0, stream, fault, in, out, n);
  if (fault == kBlockWithinItsBound) return launch(bounded_kernel, dim3(1), dim3(n), 0, stream, out);
  if (fault == kBlockAboveItsBound) return launch(bounded_kernel, dim3(1), dim3(n + 64), 0, stream, out);
  if (fault == kSharedOfOneLaunch) {
    return cudaFuncSetAttribute(bounded_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                static_cast<int>(kDefaultSharedBytes) + 1);
  }
#ifdef HIERMT_SIMT
  if (fault == kSharedNotAllowed)
    return simt::launch(bounded_kernel, dim3(1), dim3(1), kDefaultSharedBytes + 1, out);
#endif
  const size_t bytes = fault == kSharedTooSmall ? padded_bytes<float>(n - 8) : padded_bytes<float>(n);
  return launch(fault_kernel, dim3(1), dim3(n), bytes, stream, fault, in, out, n);
}

}  // namespace hiermt::cuda
