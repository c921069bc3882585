// Matrix products on tensor cores: operands in TF32 (8-bit exponent, 10-bit mantissa), sums in float32. TF32
// represents bfloat16 and half exactly; float32 is rounded.
#pragma once

#include "cuda/support/launch.cuh"

namespace hiermt::cuda {

#if defined(HIERMT_SIMT) || (defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800)
#define HIERMT_MMA_BY_HAND
#endif

// Rounds to the nearest TF32 number.
__device__ __forceinline__ float round_to_tf32(float x) {
#ifdef HIERMT_MMA_BY_HAND
  const unsigned bits = __float_as_uint(x);
  if ((bits & 0x7f800000u) == 0x7f800000u) return x;  // Inf and NaN
  return __uint_as_float((bits + 0x1000u) & ~0x1fffu);
#else
  unsigned bits;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(x));
  return __uint_as_float(bits);
#endif
}

// d [16, 8] += a [16, 8] b [8, 8], by a whole warp. Lane 4 g + m holds the elements
//   a   (g, m), (g + 8, m), (g, m + 4), (g + 8, m + 4)
//   b   (m, g), (m + 4, g)
//   d   (g, 2m), (g, 2m + 1), (g + 8, 2m), (g + 8, 2m + 1)
__device__ __forceinline__ void mma_tf32(float (&d)[4], const float (&a)[4], const float (&b)[2]) {
#ifdef HIERMT_MMA_BY_HAND
  const int lane = static_cast<int>(threadIdx.x) % kWarp, row = lane / 4 * 4, column = lane % 4 * 8;
  for (int k = 0; k < 8; ++k) {
    const int half = k / 4, member = k % 4;
    const float low = __shfl_sync(kFullMask, a[2 * half], row + member);
    const float high = __shfl_sync(kFullMask, a[2 * half + 1], row + member);
    const float left = __shfl_sync(kFullMask, b[half], column + member);
    const float right = __shfl_sync(kFullMask, b[half], column + 4 + member);
    d[0] += low * left, d[1] += low * right, d[2] += high * left, d[3] += high * right;
  }
#else
  // Volatile, so that the compiler does not move it into divergent code.
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(__float_as_uint(a[0])), "r"(__float_as_uint(a[1])), "r"(__float_as_uint(a[2])),
        "r"(__float_as_uint(a[3])), "r"(__float_as_uint(b[0])), "r"(__float_as_uint(b[1])));
#endif
}

}  // namespace hiermt::cuda
