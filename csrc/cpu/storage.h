// The 16-bit element types as plain bits, and the type each storage type computes in.
// Conversions live in simd.h: they are compiled once per instruction set.
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

}  // namespace hiermt
