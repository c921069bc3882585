// Loads and stores that convert between a storage type S and vectors or scalars of Compute<S>.
// Narrowing rounds to nearest even and keeps NaN a NaN; a value past the largest finite one becomes infinite.
#pragma once

#include "cpu/simd/simd.h"

namespace hiermt {
namespace cpu {
namespace HIERMT_ISA {

namespace detail {

using Narrow = VectorTypes<float>::Narrow;
using UnalignedNarrow = VectorTypes<float>::UnalignedNarrow;
using Bits = UIntVec<float>;

HIERMT_INLINE Narrow load_narrow(const void* from) {
  return *static_cast<const UnalignedNarrow*>(from);
}
HIERMT_INLINE void store_narrow(void* to, Narrow v) {
  *static_cast<UnalignedNarrow*>(to) = v;
}

HIERMT_INLINE Narrow load_narrow_n(const void* from, int n) {
  uint16_t lanes[kLanes<float>] = {};
  for (int i = 0; i < n; ++i) lanes[i] = static_cast<const uint16_t*>(from)[i];
  return load_narrow(lanes);
}
HIERMT_INLINE void store_narrow_n(void* to, Narrow v, int n) {
  uint16_t lanes[kLanes<float>];
  store_narrow(lanes, v);
  for (int i = 0; i < n; ++i) static_cast<uint16_t*>(to)[i] = lanes[i];
}

HIERMT_INLINE VecF widen(BFloat16, Narrow bits) {
  return (VecF)(__builtin_convertvector(bits, Bits) << 16);
}

HIERMT_INLINE Narrow narrow(BFloat16, VecF v) {
  const Bits bits = (Bits)v;
  const Bits rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  const Bits quiet_nan = (bits >> 16) | 0x40;
  return __builtin_convertvector((v == v) ? rounded : quiet_nan, Narrow);
}

HIERMT_INLINE VecF widen(Half, Narrow bits) {
#if defined(HIERMT_HARDWARE_HALF)
  return half_to_float(bits);
#else
  // Shifted into place, the exponent lacks 127 - 15; subnormals come out right from an exact subtraction.
  const Bits wide = __builtin_convertvector(bits, Bits);
  const Bits magnitude = (wide & 0x7fff) << 13;
  const Bits normal = magnitude + (112u << 23);
  const Bits infinite_or_nan = magnitude + (224u << 23);
  const VecF subnormal = (VecF)(magnitude + (113u << 23)) - broadcast(6.103515625e-05f);
  const Bits exponent = magnitude & 0x0f800000;
  Bits result = (exponent == 0x0f800000) ? infinite_or_nan : normal;
  result = (exponent == 0) ? (Bits)subnormal : result;
  return (VecF)(result | ((wide & 0x8000) << 16));
#endif
}

HIERMT_INLINE Narrow narrow(Half, VecF v) {
#if defined(HIERMT_HARDWARE_HALF)
  return float_to_half(v);
#else
  const Bits bits = (Bits)v;
  const Bits sign = (bits >> 16) & 0x8000;
  const Bits magnitude = bits & 0x7fffffff;
  const Bits normal = (magnitude - (112u << 23) + 0xfff + ((magnitude >> 13) & 1)) >> 13;
  // Adding 0.5 leaves a subnormal half in the low bits, rounded by the addition itself.
  const Bits subnormal = (Bits)((VecF)magnitude + broadcast(0.5f)) - 0x3f000000;
  Bits result = (magnitude < (113u << 23)) ? subnormal : normal;
  result = (magnitude >= (143u << 23)) ? Bits{} + 0x7c00 : result;
  result = (magnitude > 0x7f800000) ? ((magnitude >> 13) & 0x3ff) | 0x7e00 : result;
  return __builtin_convertvector(result | sign, Narrow);
#endif
}

}  // namespace detail

// load, store, load_n, store_n of float and double themselves are in simd.h.
#define HIERMT_NARROW_MEMORY(S)                                  \
  HIERMT_INLINE VecF load(const S* from) {                       \
    return detail::widen(S{}, detail::load_narrow(from));        \
  }                                                              \
  HIERMT_INLINE VecF load_n(const S* from, int n) {              \
    return detail::widen(S{}, detail::load_narrow_n(from, n));   \
  }                                                              \
  HIERMT_INLINE void store(S* to, VecF v) {                      \
    detail::store_narrow(to, detail::narrow(S{}, v));            \
  }                                                              \
  HIERMT_INLINE void store_n(S* to, VecF v, int n) {             \
    detail::store_narrow_n(to, detail::narrow(S{}, v), n);       \
  }                                                              \
  HIERMT_INLINE float to_compute(S value) {                      \
    return detail::widen(S{}, detail::Narrow{} + value.bits)[0]; \
  }                                                              \
  HIERMT_INLINE void from_compute(S& to, float value) {          \
    to.bits = detail::narrow(S{}, broadcast(value))[0];          \
  }

HIERMT_NARROW_MEMORY(BFloat16)
HIERMT_NARROW_MEMORY(Half)
#undef HIERMT_NARROW_MEMORY

HIERMT_INLINE float to_compute(float value) {
  return value;
}
HIERMT_INLINE double to_compute(double value) {
  return value;
}
HIERMT_INLINE void from_compute(float& to, float value) {
  to = value;
}
HIERMT_INLINE void from_compute(double& to, double value) {
  to = value;
}

// Asks for the cache lines of a row that is about to be read or written.
template <class S>
HIERMT_INLINE void prefetch(const S* row, int64_t count) {
  const char* byte = reinterpret_cast<const char*>(row);
  for (int64_t i = 0; i < count * static_cast<int64_t>(sizeof(S)); i += 64) __builtin_prefetch(byte + i, 0);
}
template <class S>
HIERMT_INLINE void prefetch_to_write(S* row, int64_t count) {
  char* byte = reinterpret_cast<char*>(row);
  for (int64_t i = 0; i < count * static_cast<int64_t>(sizeof(S)); i += 64) __builtin_prefetch(byte + i, 1);
}

// A row of `channels` elements as vectors: how many, and vector v of it. The last one may be partial.
template <class C>
HIERMT_INLINE int64_t vectors_for(int64_t channels) {
  return (channels + kLanes<C> - 1) / kLanes<C>;
}

// Lanes of vector v that hold one of `channels` channels.
template <class C>
HIERMT_INLINE int lanes_of(int64_t channels, int64_t v) {
  const int64_t rest = channels - v * kLanes<C>;
  return rest < kLanes<C> ? static_cast<int>(rest) : kLanes<C>;
}

template <class S>
HIERMT_INLINE Vec<Compute<S>> load_lanes(const S* row, int64_t channels, int64_t v) {
  constexpr int kL = kLanes<Compute<S>>;
  const int lanes = lanes_of<Compute<S>>(channels, v);
  return lanes == kL ? load(row + v * kL) : load_n(row + v * kL, lanes);
}
template <class S>
HIERMT_INLINE void store_lanes(S* row, int64_t channels, int64_t v, Vec<Compute<S>> value) {
  constexpr int kL = kLanes<Compute<S>>;
  const int lanes = lanes_of<Compute<S>>(channels, v);
  if (lanes == kL) {
    store(row + v * kL, value);
  } else {
    store_n(row + v * kL, value, lanes);
  }
}

}  // namespace HIERMT_ISA
}  // namespace cpu
}  // namespace hiermt
