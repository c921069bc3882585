// A product on tensor cores, put together from the operands of all lanes of a warp.
#include "tensor_core.h"

#include "simt.h"

namespace simt {

void multiply_tf32(float (&d)[4], const float (&a)[4], const float (&b)[2], int line) {
  float left[16][8], right[8][8];  // right[column][k]
  const auto gather = [&](float first, float second, auto&& put) {
    const float pair[2] = {ptx::tf32(first), ptx::tf32(second)};
    uint64_t bits;
    std::memcpy(&bits, pair, sizeof(bits));
    const uint64_t* all = meet(Collective::kShuffle, ~0u, bits, line);
    for (int of = 0; of < 32; ++of) {
      float values[2];
      std::memcpy(values, all + of, sizeof(values));
      put(of / 4, of % 4, values);
    }
  };
  for (int half = 0; half < 2; ++half) {
    gather(a[2 * half], a[2 * half + 1], [&](int row, int k, const float* values) {
      left[row][k + 4 * half] = values[0], left[row + 8][k + 4 * half] = values[1];
    });
  }
  gather(b[0], b[1], [&](int column, int k, const float* values) {
    right[column][k] = values[0], right[column][k + 4] = values[1];
  });
  for (int i = 0; i < 4; ++i) {
    d[i] = ptx::tensor_core_sum(d[i], left[lane() / 4 + 8 * (i / 2)], 1, right[2 * (lane() % 4) + i % 2], 1);
  }
}

}  // namespace simt
