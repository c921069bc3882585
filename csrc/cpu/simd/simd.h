// Vectors of the widest width that the compile flags allow, on the vector extensions of GCC and Clang.
// This file alone names instruction sets. Each kernel source is compiled once per instruction set, with its
// own HIERMT_ISA. All code of a kernel, inline or not, is in namespace hiermt::cpu::HIERMT_ISA: a function
// shared between the copies, such as std::min, could be linked in the version of the wrong set.
//
// Vec<C> is a vector of C = float or double; arithmetic, comparison and `mask ? a : b` are the compiler's
// own. Nothing here contracts or reorders arithmetic: fma() rounds once where the hardware can.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "types.h"

#ifndef HIERMT_ISA
#define HIERMT_ISA native
#endif

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512DQ__) && defined(__AVX512VL__)
#define HIERMT_AVX512 1
#elif defined(__AVX2__) && defined(__FMA__)
#define HIERMT_AVX2 1
#elif defined(__aarch64__)
#define HIERMT_NEON 1
#endif

#if defined(HIERMT_AVX512) || defined(HIERMT_AVX2)
#include <immintrin.h>
#elif defined(HIERMT_NEON)
#include <arm_neon.h>
#endif

#define HIERMT_INLINE inline __attribute__((always_inline))
#define HIERMT_NOINLINE __attribute__((noinline))

namespace hiermt::cpu::HIERMT_ISA {

#if defined(HIERMT_AVX512)
constexpr int kVectorBytes = 64;
constexpr int kRegisters = 32;
#elif defined(HIERMT_AVX2)
constexpr int kVectorBytes = 32;
constexpr int kRegisters = 16;
#elif defined(HIERMT_NEON)
constexpr int kVectorBytes = 16;
constexpr int kRegisters = 32;
#else
constexpr int kVectorBytes = 16;
constexpr int kRegisters = 16;
#endif

template <class C>
constexpr int kLanes = kVectorBytes / static_cast<int>(sizeof(C));

HIERMT_INLINE int64_t min(int64_t a, int64_t b) {
  return a < b ? a : b;
}

template <class C>
struct VectorTypes;

template <>
struct VectorTypes<float> {
  typedef float Value __attribute__((vector_size(kVectorBytes)));
  typedef int32_t Int __attribute__((vector_size(kVectorBytes)));
  typedef uint32_t UInt __attribute__((vector_size(kVectorBytes)));
  typedef uint16_t Bits16 __attribute__((vector_size(kVectorBytes / 2)));
  typedef float Unaligned __attribute__((vector_size(kVectorBytes), aligned(4), may_alias));
  typedef uint16_t UnalignedBits16 __attribute__((vector_size(kVectorBytes / 2), aligned(2), may_alias));
};

template <>
struct VectorTypes<double> {
  typedef double Value __attribute__((vector_size(kVectorBytes)));
  typedef int64_t Int __attribute__((vector_size(kVectorBytes)));
  typedef uint64_t UInt __attribute__((vector_size(kVectorBytes)));
  typedef double Unaligned __attribute__((vector_size(kVectorBytes), aligned(8), may_alias));
};

template <class C>
using Vec = typename VectorTypes<C>::Value;
template <class C>
using IntVec = typename VectorTypes<C>::Int;
template <class C>
using UIntVec = typename VectorTypes<C>::UInt;

using VecF = Vec<float>;
using VecD = Vec<double>;

// The element type of a vector, for functions that deduce the vector type V.
template <class V>
struct LaneOf;
template <>
struct LaneOf<VecF> {
  using type = float;
};
template <>
struct LaneOf<VecD> {
  using type = double;
};
template <class V>
using Lane = typename LaneOf<V>::type;

// ---------------------------------------------------------------- construction, bits

HIERMT_INLINE VecF broadcast(float value) {
#if defined(HIERMT_AVX512)
  return (VecF)_mm512_set1_ps(value);
#elif defined(HIERMT_AVX2)
  return (VecF)_mm256_set1_ps(value);
#else
  return VecF{value, value, value, value};
#endif
}
HIERMT_INLINE VecD broadcast(double value) {
#if defined(HIERMT_AVX512)
  return (VecD)_mm512_set1_pd(value);
#elif defined(HIERMT_AVX2)
  return (VecD)_mm256_set1_pd(value);
#else
  return VecD{value, value};
#endif
}

template <class C>
HIERMT_INLINE Vec<C> zero() {
  return Vec<C>{};
}

template <class V>
HIERMT_INLINE IntVec<Lane<V>> as_int(V v) {
  return (IntVec<Lane<V>>)v;
}
template <class C>
HIERMT_INLINE Vec<C> as_real(IntVec<C> v) {
  return (Vec<C>)v;
}

// ---------------------------------------------------------------- memory

template <class C>
HIERMT_INLINE Vec<C> load(const C* from) {
  return *reinterpret_cast<const typename VectorTypes<C>::Unaligned*>(from);
}
template <class C>
HIERMT_INLINE void store(C* to, Vec<C> v) {
  *reinterpret_cast<typename VectorTypes<C>::Unaligned*>(to) = v;
}

// The first n lanes, 0 <= n <= kLanes<C>. No other address is touched; the other lanes load as zero.
HIERMT_INLINE VecF load_n(const float* from, int n) {
#if defined(HIERMT_AVX512)
  return (VecF)_mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << n) - 1), from);
#elif defined(HIERMT_AVX2)
  const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  return (VecF)_mm256_maskload_ps(from, _mm256_cmpgt_epi32(_mm256_set1_epi32(n), lane));
#else
  VecF v{};
  for (int i = 0; i < n; ++i) v[i] = from[i];
  return v;
#endif
}
HIERMT_INLINE void store_n(float* to, VecF v, int n) {
#if defined(HIERMT_AVX512)
  _mm512_mask_storeu_ps(to, static_cast<__mmask16>((1u << n) - 1), (__m512)v);
#elif defined(HIERMT_AVX2)
  const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  _mm256_maskstore_ps(to, _mm256_cmpgt_epi32(_mm256_set1_epi32(n), lane), (__m256)v);
#else
  for (int i = 0; i < n; ++i) to[i] = v[i];
#endif
}
HIERMT_INLINE VecD load_n(const double* from, int n) {
#if defined(HIERMT_AVX512)
  return (VecD)_mm512_maskz_loadu_pd(static_cast<__mmask8>((1u << n) - 1), from);
#else
  VecD v{};
  for (int i = 0; i < n; ++i) v[i] = from[i];
  return v;
#endif
}
HIERMT_INLINE void store_n(double* to, VecD v, int n) {
#if defined(HIERMT_AVX512)
  _mm512_mask_storeu_pd(to, static_cast<__mmask8>((1u << n) - 1), (__m512d)v);
#else
  for (int i = 0; i < n; ++i) to[i] = v[i];
#endif
}

// ---------------------------------------------------------------- arithmetic

// a * b + c
HIERMT_INLINE VecF fma(VecF a, VecF b, VecF c) {
#if defined(HIERMT_AVX512)
  return (VecF)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(HIERMT_AVX2)
  return (VecF)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#elif defined(HIERMT_NEON)
  return (VecF)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
#else
  return a * b + c;
#endif
}
HIERMT_INLINE VecD fma(VecD a, VecD b, VecD c) {
#if defined(HIERMT_AVX512)
  return (VecD)_mm512_fmadd_pd((__m512d)a, (__m512d)b, (__m512d)c);
#elif defined(HIERMT_AVX2)
  return (VecD)_mm256_fmadd_pd((__m256d)a, (__m256d)b, (__m256d)c);
#elif defined(HIERMT_NEON)
  return (VecD)vfmaq_f64((float64x2_t)c, (float64x2_t)a, (float64x2_t)b);
#else
  return a * b + c;
#endif
}

// The larger and the smaller of two lanes; b where a or b is NaN, so max(limit, x) keeps a NaN x. Zero-masked
// intrinsics compile to the plain instructions; GCC 12 warns about its own unmasked ones.
HIERMT_INLINE VecF max(VecF a, VecF b) {
#if defined(HIERMT_AVX512)
  return (VecF)_mm512_maskz_max_ps(static_cast<__mmask16>(-1), (__m512)a, (__m512)b);
#elif defined(HIERMT_AVX2)
  return (VecF)_mm256_max_ps((__m256)a, (__m256)b);
#else
  return a > b ? a : b;
#endif
}
HIERMT_INLINE VecD max(VecD a, VecD b) {
#if defined(HIERMT_AVX512)
  return (VecD)_mm512_maskz_max_pd(static_cast<__mmask8>(-1), (__m512d)a, (__m512d)b);
#elif defined(HIERMT_AVX2)
  return (VecD)_mm256_max_pd((__m256d)a, (__m256d)b);
#else
  return a > b ? a : b;
#endif
}
HIERMT_INLINE VecF min(VecF a, VecF b) {
#if defined(HIERMT_AVX512)
  return (VecF)_mm512_maskz_min_ps(static_cast<__mmask16>(-1), (__m512)a, (__m512)b);
#elif defined(HIERMT_AVX2)
  return (VecF)_mm256_min_ps((__m256)a, (__m256)b);
#else
  return a < b ? a : b;
#endif
}
HIERMT_INLINE VecD min(VecD a, VecD b) {
#if defined(HIERMT_AVX512)
  return (VecD)_mm512_maskz_min_pd(static_cast<__mmask8>(-1), (__m512d)a, (__m512d)b);
#elif defined(HIERMT_AVX2)
  return (VecD)_mm256_min_pd((__m256d)a, (__m256d)b);
#else
  return a < b ? a : b;
#endif
}

template <class V>
HIERMT_INLINE V abs(V a) {
  using I = IntVec<Lane<V>>;
  constexpr int sign_bit = static_cast<int>(sizeof(Lane<V>)) * 8 - 1;
  return (V)((I)a & ~((I{} + 1) << sign_bit));
}

// -|a|
template <class V>
HIERMT_INLINE V negative_abs(V a) {
  using I = IntVec<Lane<V>>;
  constexpr int sign_bit = static_cast<int>(sizeof(Lane<V>)) * 8 - 1;
  return (V)((I)a | ((I{} + 1) << sign_bit));
}

// magnitude >= 0 with the sign of x
template <class V>
HIERMT_INLINE V with_sign_of(V x, V magnitude) {
  using I = IntVec<Lane<V>>;
  constexpr int sign_bit = static_cast<int>(sizeof(Lane<V>)) * 8 - 1;
  return (V)(((I)x & ((I{} + 1) << sign_bit)) | (I)magnitude);
}

// mask ? a : b, with mask the result of a comparison
template <class M, class V>
HIERMT_INLINE V select(M mask, V a, V b) {
  return mask ? a : b;
}

// 1 / d for 1 <= d < 2^100, to one ulp.
HIERMT_INLINE VecF reciprocal(VecF d) {
#if defined(HIERMT_AVX512)
  const VecF estimate = (VecF)_mm512_maskz_rcp14_ps(static_cast<__mmask16>(-1), (__m512)d);
  return fma(estimate, fma(-d, estimate, broadcast(1.0f)), estimate);
#else
  return broadcast(1.0f) / d;
#endif
}
HIERMT_INLINE VecD reciprocal(VecD d) {
  return broadcast(1.0) / d;
}

// n / d for |n| <= d and 1 <= d < 2^100, to a little more than half an ulp.
HIERMT_INLINE VecF divide(VecF n, VecF d) {
#if defined(HIERMT_AVX512)
  const VecF r = reciprocal(d);
  const VecF q = n * r;
  return fma(r, fma(-q, d, n), q);
#else
  return n / d;
#endif
}
HIERMT_INLINE VecD divide(VecD n, VecD d) {
  return n / d;
}

// p * 2^n for 0.5 < p < 2 and integral n <= 0; underflows like one multiplication, as the first of two is exact.
// `biased` is n plus 1.5 * 2^(mantissa bits), whose low bits hold n in two's complement.
HIERMT_INLINE VecF scale_by_power_of_two(VecF p, VecF n, VecF biased) {
#if defined(HIERMT_AVX512)
  (void)biased;
  return (VecF)_mm512_maskz_scalef_ps(static_cast<__mmask16>(-1), (__m512)p, (__m512)n);
#else
  (void)n;
  return p * as_real<float>((as_int(biased) + (127 + 64)) << 23) * broadcast(0x1p-64f);
#endif
}
HIERMT_INLINE VecD scale_by_power_of_two(VecD p, VecD n, VecD biased) {
#if defined(HIERMT_AVX512)
  (void)biased;
  return (VecD)_mm512_maskz_scalef_pd(static_cast<__mmask8>(-1), (__m512d)p, (__m512d)n);
#else
  (void)n;
  return p * as_real<double>((as_int(biased) + (1023 + 512)) << 52) * broadcast(0x1p-512);
#endif
}

// 2^n for integral n within the range of normal numbers.
HIERMT_INLINE VecF power_of_two(VecF biased) {
  return as_real<float>((as_int(biased) << 23) + 0x3f800000);
}
HIERMT_INLINE VecD power_of_two(VecD biased) {
  return as_real<double>((as_int(biased) << 52) + 0x3ff0000000000000);
}

}  // namespace hiermt::cpu::HIERMT_ISA

#include "cpu/simd/lanes.h"
