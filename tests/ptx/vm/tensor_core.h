// mma.m16n8k8 of a tensor core on TF32 operands, as measured (arXiv 2203.03341): the products are exact, the sum is
// rounded towards zero.
#pragma once

#include <cmath>
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

// d = a b + c of 16 x 8 and 8 x 8: the eight products of each element are summed in their order.
inline void tensor_core_product(float (&d)[16][8], const float (&a)[16][8], const float (&b)[8][8]) {
  for (int row = 0; row < 16; ++row) {
    double sums[8];
    for (int column = 0; column < 8; ++column) sums[column] = d[row][column];
    for (int k = 0; k < 8; ++k) {
      for (int column = 0; column < 8; ++column) sums[column] += double{a[row][k]} * b[k][column];
    }
    for (int column = 0; column < 8; ++column) {
      float nearest = static_cast<float>(sums[column]);
      if (std::fabs(double{nearest}) > std::fabs(sums[column]) && !std::isinf(nearest)) {
        // The next one towards zero, which std::nextafter takes ten times as long to say.
        uint32_t bits;
        std::memcpy(&bits, &nearest, sizeof(bits));
        --bits;
        std::memcpy(&nearest, &bits, sizeof(bits));
      }
      d[row][column] = nearest;
    }
  }
}

}  // namespace ptx
