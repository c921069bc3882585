// Loads and stores that convert between a storage type S and vectors or scalars of Compute<S>. Rounding to
// bfloat16 is to nearest even: a NaN stays NaN, and a value past the largest finite one becomes infinite.
#pragma once

#include <type_traits>

#include "cpu/simd/simd.h"

namespace hiermt::cpu::HIERMT_ISA {

namespace detail {

using Bits16 = VectorTypes<float>::Bits16;
using Bits32 = UIntVec<float>;

HIERMT_INLINE VecF from_bits(Bits16 bits) {
  return (VecF)(__builtin_convertvector(bits, Bits32) << 16);
}
HIERMT_INLINE Bits16 to_bits(VecF v) {
  const Bits32 bits = (Bits32)v;
  const Bits32 rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  const Bits32 quiet_nan = (bits >> 16) | 0x40;
  return __builtin_convertvector((v == v) ? rounded : quiet_nan, Bits16);
}

}  // namespace detail

// load, store, load_n and store_n of float and double are in simd.h.
HIERMT_INLINE VecF load(const BFloat16* from) {
  return detail::from_bits(*reinterpret_cast<const VectorTypes<float>::UnalignedBits16*>(from));
}
HIERMT_INLINE void store(BFloat16* to, VecF v) {
  *reinterpret_cast<VectorTypes<float>::UnalignedBits16*>(to) = detail::to_bits(v);
}
HIERMT_INLINE VecF load_n(const BFloat16* from, int n) {
  BFloat16 lanes[kLanes<float>] = {};
  for (int i = 0; i < n; ++i) lanes[i] = from[i];
  return load(lanes);
}
HIERMT_INLINE void store_n(BFloat16* to, VecF v, int n) {
  BFloat16 lanes[kLanes<float>];
  store(lanes, v);
  for (int i = 0; i < n; ++i) to[i] = lanes[i];
}

HIERMT_INLINE float to_compute(BFloat16 value) {
  return detail::from_bits(detail::Bits16{} + value.bits)[0];
}
HIERMT_INLINE void from_compute(BFloat16& to, float value) {
  to.bits = detail::to_bits(broadcast(value))[0];
}
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

// v rounded to the storage type.
template <class S>
HIERMT_INLINE Vec<Compute<S>> round_to(Vec<Compute<S>> v) {
  if constexpr (std::is_same_v<S, BFloat16>) {
    return detail::from_bits(detail::to_bits(v));
  } else {
    return v;
  }
}

// Prefetches the cache lines of a row that is about to be read or written.
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

// A row of `channels` elements as vectors, of which the last may be partial: their number, the lanes of
// vector v that hold a channel, and vector v itself.
template <class C>
HIERMT_INLINE int64_t vectors_for(int64_t channels) {
  return (channels + kLanes<C> - 1) / kLanes<C>;
}
template <class C>
HIERMT_INLINE int lanes_of(int64_t channels, int64_t v) {
  const int64_t rest = channels - v * kLanes<C>;
  return rest < kLanes<C> ? static_cast<int>(rest) : kLanes<C>;
}

template <class S>
HIERMT_INLINE Vec<Compute<S>> load_lanes(const S* row, int64_t channels, int64_t v) {
  constexpr int L = kLanes<Compute<S>>;
  const int lanes = lanes_of<Compute<S>>(channels, v);
  return lanes == L ? load(row + v * L) : load_n(row + v * L, lanes);
}
template <class S>
HIERMT_INLINE void store_lanes(S* row, int64_t channels, int64_t v, Vec<Compute<S>> value) {
  constexpr int L = kLanes<Compute<S>>;
  const int lanes = lanes_of<Compute<S>>(channels, v);
  if (lanes == L) {
    store(row + v * L, value);
  } else {
    store_n(row + v * L, value, lanes);
  }
}

// to[k] = from[k * stride] for k < channels. With stride 1 the last store may run over by less than a vector.
template <class S>
HIERMT_INLINE void copy_row(Compute<S>* to, const S* from, int64_t stride, int64_t channels) {
  constexpr int L = kLanes<Compute<S>>;
  if (stride == 1) {
    for (int64_t v = 0; v * L < channels; ++v) store(to + v * L, load_lanes(from, channels, v));
  } else {
    for (int64_t k = 0; k < channels; ++k) to[k] = to_compute(from[k * stride]);
  }
}

}  // namespace hiermt::cpu::HIERMT_ISA
