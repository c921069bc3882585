// A product on tensor cores, put together from the operands of all lanes of a warp.
#include "tensor_core.h"

#include "scheduler.h"

namespace simt {
namespace {

// What a lane holds.
struct Operands {
  float* d;
  const float *a, *b;
};

void multiply(const uint64_t* lanes) {
  float d[16][8], a[16][8], b[8][8];
  // Calls `each` with where an element of d is and the place that a lane has for it.
  const auto for_each_result = [&](auto&& each) {
    for (int lane = 0; lane < 32; ++lane) {
      float* const of_lane = reinterpret_cast<const Operands*>(lanes[lane])->d;
      for (int i = 0; i < 4; ++i) each(d[lane / 4 + 8 * (i / 2)][2 * (lane % 4) + i % 2], of_lane[i]);
    }
  };
  for (int lane = 0; lane < 32; ++lane) {
    const auto& of = *reinterpret_cast<const Operands*>(lanes[lane]);
    for (int i = 0; i < 4; ++i) a[lane / 4 + 8 * (i % 2)][lane % 4 + 4 * (i / 2)] = ptx::tf32(of.a[i]);
    for (int i = 0; i < 2; ++i) b[lane % 4 + 4 * i][lane / 4] = ptx::tf32(of.b[i]);
  }
  for_each_result([](float& to, float from) { to = from; });
  ptx::tensor_core_product(d, a, b);
  for_each_result([](float from, float& to) { to = from; });
}

}  // namespace

void multiply_tf32(float (&d)[4], const float (&a)[4], const float (&b)[2], int line) {
  const Operands mine{d, a, b};
  meet(Collective::kSyncWarp, ~0u, reinterpret_cast<uint64_t>(&mine), line, multiply);
}

}  // namespace simt
