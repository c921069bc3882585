// The arithmetic of a tensor core on TF32 operands, as measured (arXiv 2203.03341): the products are exact, the sum
// is rounded towards zero.
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

// c + sum_k a[k * stride_a] b[k * stride_b] of eight products.
inline float tensor_core_sum(float c, const float* a, int stride_a, const float* b, int stride_b) {
  double sum = c;
  for (int k = 0; k < 8; ++k) sum += double{a[k * stride_a]} * b[k * stride_b];
  float nearest = static_cast<float>(sum);
  if (std::fabs(double{nearest}) > std::fabs(sum) && !std::isinf(nearest)) {
    // The next one towards zero, which std::nextafter takes ten times as long to say.
    uint32_t bits;
    std::memcpy(&bits, &nearest, sizeof(bits));
    --bits;
    std::memcpy(&nearest, &bits, sizeof(bits));
  }
  return nearest;
}

}  // namespace ptx
