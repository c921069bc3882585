// The 16-bit element types as plain bits, and the type each storage type computes in.
// Conversions are in cpu/simd/memory.h and cuda/support/device.cuh.
#pragma once

#include <cstdint>

namespace hiermt {

struct BFloat16 {
  uint16_t bits;
};

struct Half {
  uint16_t bits;
};

template <class S>
struct ComputeOf {
  using type = float;
};
template <>
struct ComputeOf<double> {
  using type = double;
};

template <class S>
using Compute = typename ComputeOf<S>::type;

// The smallest number of a storage type above one half.
template <class S>
constexpr Compute<S> kAboveHalf = Compute<S>(0.5);
template <>
inline constexpr float kAboveHalf<float> = 0.5f + 0x1p-24f;
template <>
inline constexpr double kAboveHalf<double> = 0.5 + 0x1p-53;
template <>
inline constexpr float kAboveHalf<BFloat16> = 0.5f + 0x1p-8f;
template <>
inline constexpr float kAboveHalf<Half> = 0.5f + 0x1p-11f;

}  // namespace hiermt
