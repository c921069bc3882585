// mma.m16n8k8 of a tensor core on TF32 operands, as measured (arXiv 2203.03341): the products are exact, the sum is
// rounded towards zero.
#pragma once

#include <cstdint>
#include <cstring>

namespace ptx {

// What TF32 has room for.
inline float tf32(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof(bits));
  bits &= ~0x1fffu;
  std::memcpy(&x, &bits, sizeof(bits));
  return x;
}

using Floats __attribute__((vector_size(32))) = float;
using Doubles __attribute__((vector_size(64))) = double;
using Bits __attribute__((vector_size(32))) = int32_t;
using WideBits __attribute__((vector_size(64))) = int64_t;

// d = a b + c of 16 x 8 and 8 x 8: the eight products of each element are summed in their order. In vectors, because
// the compiler leaves the loops as they are, and most of the time of a launch is here.
inline void tensor_core_product(float (&d)[16][8], const float (&a)[16][8], const float (&b)[8][8]) {
  Floats narrow;
  Doubles rows[8];
  for (int k = 0; k < 8; ++k) {
    std::memcpy(&narrow, b[k], sizeof(narrow));
    rows[k] = __builtin_convertvector(narrow, Doubles);
  }
  for (int row = 0; row < 16; ++row) {
    std::memcpy(&narrow, d[row], sizeof(narrow));
    Doubles sums = __builtin_convertvector(narrow, Doubles);
    for (int k = 0; k < 8; ++k) sums += double{a[row][k]} * rows[k];
    const Floats nearest = __builtin_convertvector(sums, Floats);
    // Without their signs, doubles are ordered as their bits are.
    constexpr int64_t kMagnitude = INT64_MAX, kInfinity = 0x7ff0000000000000;
    const auto rounded = reinterpret_cast<WideBits>(__builtin_convertvector(nearest, Doubles)) & kMagnitude;
    const WideBits beyond =
        (rounded > (reinterpret_cast<WideBits>(sums) & kMagnitude)) & (rounded < kInfinity);
    // The next one towards zero where the nearest is beyond the sum: a comparison that holds is -1.
    const Bits found = reinterpret_cast<Bits>(nearest) + __builtin_convertvector(beyond, Bits);
    std::memcpy(d[row], &found, sizeof(found));
  }
}

}  // namespace ptx
