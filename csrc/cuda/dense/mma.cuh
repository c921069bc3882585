// Matrix products of a warp on tensor cores: operands in TF32 (8-bit exponent, 10-bit mantissa), sums in float32.
//
// A float32 operand is split into a TF32 number, its head, and the rest, which TF32 holds but for its last bit.
// Three products then keep float32's error; that of two rests is below it. TF32 represents bfloat16 and half
// exactly, and the caller may allow float32 to be rounded: one product.
#pragma once

#include <type_traits>

#include "cuda/support/device.cuh"

namespace hiermt::cuda {

enum class Products {
  kExact,    // without tensor cores: float64, and float32 where the split would turn Inf into NaN
  kSplit,    // float32
  kRounded,  // operands that TF32 represents, or that may be rounded
};

// How products of tensors whose compute type is C are computed.
template <class C, bool kRounded>
constexpr Products kProductsOf = std::is_same_v<C, double> ? Products::kExact
                                 : kRounded                ? Products::kRounded
                                                           : Products::kSplit;

// Whether operands of type S are rounded to TF32: always if it represents them, float32 if `tf32` allows it.
// A constant where the type decides, so that no other kernel is compiled.
template <class S>
constexpr auto rounds_operands(bool tf32) {
  if constexpr (std::is_same_v<S, float>) {
    return tf32;
  } else {
    (void)tf32;
    return std::bool_constant<sizeof(S) == 2>{};
  }
}

// Calls f with the result of rounds_operands as a constant.
template <class Rounded, class F>
auto dispatch_rounded(Rounded rounded, F&& f) {
  if constexpr (std::is_same_v<Rounded, bool>) {
    return rounded ? f(std::true_type{}) : f(std::false_type{});
  } else {
    return f(rounded);
  }
}

__device__ __forceinline__ float round_to_tf32(float x) {
#ifdef HIERMT_SIMT
  const unsigned bits = __float_as_uint(x);
  if ((bits & 0x7f800000u) == 0x7f800000u) return x;  // Inf and NaN
  return __uint_as_float((bits + 0x1000u) & ~0x1fffu);
#else
  unsigned bits;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(x));
  return __uint_as_float(bits);
#endif
}

// The n elements of an operand that a lane holds.
template <class C, Products kHow, int n>
struct Operand {
  C head[n], rest[kHow == Products::kSplit ? n : 1] = {};

  Operand() = default;
  __device__ __forceinline__ explicit Operand(const C (&values)[n]) {
#pragma unroll
    for (int i = 0; i < n; ++i) {
      if constexpr (kHow == Products::kExact) {
        head[i] = values[i];
      } else {
        head[i] = round_to_tf32(values[i]);
        if constexpr (kHow == Products::kSplit) rest[i] = values[i] - head[i];
      }
    }
  }
};

// An operand of weights in shared memory: heads, then rests.
template <class C, Products kHow>
struct StoredOperand {
  static constexpr int kValues = kHow == Products::kSplit ? 4 : 2;
  Pack<C, kValues> pack;

  __device__ __forceinline__ void store(const C (&values)[2]) {
    const Operand<C, kHow, 2> operand(values);
#pragma unroll
    for (int k = 0; k < kValues; ++k) pack.values[k] = k < 2 ? operand.head[k] : operand.rest[k % 2];
  }
  __device__ __forceinline__ Operand<C, kHow, 2> load() const {
    const Pack<C, kValues> read = pack;
    Operand<C, kHow, 2> operand;
#pragma unroll
    for (int k = 0; k < kValues; ++k) (k < 2 ? operand.head[k] : operand.rest[k % 2]) = read.values[k];
    return operand;
  }
};

// d [16, 8] += a [16, 8] b [8, 8], by a whole warp. Lane 4 g + m holds the elements
//   a   (g, m), (g + 8, m), (g, m + 4), (g + 8, m + 4)
//   b   (m, g), (m + 4, g)
//   d   (g, 2m), (g, 2m + 1), (g + 8, 2m), (g + 8, 2m + 1)
template <class C>
__device__ __forceinline__ void multiply_by_hand(C (&d)[4], const C (&a)[4], const C (&b)[2]) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp, row = lane / 4 * 4, column = lane % 4 * 8;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
#pragma unroll 1
    for (int member = 0; member < 4; ++member) {
      const C low = __shfl_sync(kFullMask, a[2 * half], row + member);
      const C high = __shfl_sync(kFullMask, a[2 * half + 1], row + member);
      const C left = __shfl_sync(kFullMask, b[half], column + member);
      const C right = __shfl_sync(kFullMask, b[half], column + 4 + member);
      d[0] += low * left, d[1] += low * right, d[2] += high * left, d[3] += high * right;
    }
  }
}

// The same on a tensor core, which ignores the bits that TF32 has no room for.
__device__ __forceinline__ void multiply_tf32(float (&d)[4], const float (&a)[4], const float (&b)[2]) {
#ifdef HIERMT_SIMT
  simt::multiply_tf32(d, a, b);
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

// sum += the products a[0] b[0] + a[1] b[1] + ... A tensor core rounds towards zero, so it adds up few of them, the
// small ones first, and what it found is added to the sum as any float is.
template <class C, Products kHow, int n>
__device__ __forceinline__ void multiply(C (&sum)[4], const Operand<C, kHow, 4> (&a)[n],
                                         const Operand<C, kHow, 2> (&b)[n]) {
  if constexpr (kHow == Products::kExact) {
#pragma unroll
    for (int i = 0; i < n; ++i) multiply_by_hand(sum, a[i].head, b[i].head);
  } else {
    float d[4] = {};
    if constexpr (kHow == Products::kSplit) {
#pragma unroll
      for (int i = 0; i < n; ++i) {
        multiply_tf32(d, a[i].rest, b[i].head);
        multiply_tf32(d, a[i].head, b[i].rest);
      }
    }
#pragma unroll
    for (int i = 0; i < n; ++i) multiply_tf32(d, a[i].head, b[i].head);
#pragma unroll
    for (int i = 0; i < 4; ++i) sum[i] += d[i];
  }
}

}  // namespace hiermt::cuda
