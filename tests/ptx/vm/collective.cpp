// What the lanes of a warp do together. All lanes that a mask names have to be there: a lane that has left the
// kernel, or is elsewhere, ends the process.
#include <unordered_map>

#include "tensor_core.h"
#include "warp.h"

namespace ptx {
namespace {

void check(const Warp& warp, const Instruction& i, const uint32_t* masks) {
  for (int lane = 0; lane < kLanes; ++lane) {
    if (!(warp.exec >> lane & 1)) continue;
    const uint32_t mask = masks[lane];
    if (!(mask >> lane & 1))
      fail("divergence", "line %d: lane %d is not in its mask %08x", i.line, lane, mask);
    if (mask & ~warp.exec) {
      fail("divergence", "line %d: of the mask %08x only the lanes %08x are there", i.line, mask, warp.exec);
    }
  }
}

enum class Mode { kUp, kDown, kButterfly, kIndex };

// Operands: d, p, a, b (lane), c (clamp and segment), mask.
template <Mode mode>
void shuffle(Warp& warp, const Instruction& i) {
  const uint32_t *a = warp.reg<uint32_t>(i.r[2]), *b = warp.reg<uint32_t>(i.r[3]),
                 *c = warp.reg<uint32_t>(i.r[4]);
  const uint32_t* masks = warp.reg<uint32_t>(i.r[5]);
  check(warp, i, masks);
  uint32_t held[kLanes], within = 0;
  std::memcpy(held, a, sizeof(held));
  uint32_t* d = warp.reg<uint32_t>(i.r[0]);
  for (int lane = 0; lane < kLanes; ++lane) {
    if (!(warp.exec >> lane & 1)) continue;
    const int by = static_cast<int>(b[lane] & 31), segment = static_cast<int>(c[lane] >> 8 & 31);
    const int clamp = static_cast<int>(c[lane] & 31), first = lane & segment;
    const int last = first | (clamp & ~segment);
    int source = mode == Mode::kUp          ? lane - by
                 : mode == Mode::kDown      ? lane + by
                 : mode == Mode::kButterfly ? (lane ^ by)
                                            : (first | (by & ~segment));
    const bool inside = mode == Mode::kUp ? source >= last : source <= last;
    if (!inside) source = lane;
    if (!(masks[lane] >> source & 1)) {
      fail("divergence", "line %d: lane %d reads lane %d, which is not in its mask", i.line, lane, source);
    }
    d[lane] = held[source];
    within |= static_cast<uint32_t>(inside) << lane;
  }
  uint32_t& flags = warp.predicate(i.r[1]);
  flags = (flags & ~warp.exec) | within;
}

// Operands: d, the predicate, mask.
void ballot(Warp& warp, const Instruction& i) {
  const uint32_t* masks = warp.reg<uint32_t>(i.r[2]);
  check(warp, i, masks);
  const uint32_t votes = warp.predicate(i.r[1]) & warp.exec;
  each_lane(warp, warp.reg<uint32_t>(i.r[0]), [&](int lane) { return votes & masks[lane]; });
}
template <bool all>
void vote(Warp& warp, const Instruction& i) {
  const uint32_t* masks = warp.reg<uint32_t>(i.r[2]);
  check(warp, i, masks);
  const uint32_t votes = warp.predicate(i.r[1]) & warp.exec;
  uint32_t result = 0;
  for (int lane = 0; lane < kLanes; ++lane) {
    const uint32_t mask = masks[lane], of_mask = votes & mask;
    if (warp.exec >> lane & 1 && (all ? of_mask == mask : of_mask != 0)) result |= 1u << lane;
  }
  uint32_t& target = warp.predicate(i.r[0]);
  target = (target & ~warp.exec) | result;
}

template <class T, T (*f)(T, T)>
void reduce(Warp& warp, const Instruction& i) {
  const T* a = warp.reg<T>(i.r[1]);
  const uint32_t* masks = warp.reg<uint32_t>(i.r[2]);
  check(warp, i, masks);
  T held[kLanes];
  std::memcpy(held, a, sizeof(held));
  each_lane(warp, warp.reg<T>(i.r[0]), [&](int lane) {
    const uint32_t mask = masks[lane];
    T result = held[__builtin_ctz(mask)];
    for (int other = __builtin_ctz(mask) + 1; other < kLanes; ++other) {
      if (mask >> other & 1) result = f(result, held[other]);
    }
    return result;
  });
}
template <class T>
T larger(T a, T b) {
  return a < b ? b : a;
}
template <class T>
T smaller(T a, T b) {
  return b < a ? b : a;
}
template <class T>
T sum(T a, T b) {
  return static_cast<T>(a + b);
}

void meet(Warp& warp, const Instruction& i) {
  check(warp, i, warp.reg<uint32_t>(i.r[0]));
}

// Operands: 4 of d, 4 of a, 2 of b, 4 of c.
void multiply_tf32(Warp& warp, const Instruction& i) {
  if (warp.exec != ~0u) fail("divergence", "line %d: mma with the lanes %08x", i.line, warp.exec);
  float a[16][8], b[8][8], d[16][8];
  const auto value = [&](int operand, int lane) { return warp.reg<float>(i.r[operand])[lane]; };
  const auto result = [&](int k, int lane) -> float& {
    return d[lane / 4 + 8 * (k / 2)][2 * (lane % 4) + k % 2];
  };
  for (int lane = 0; lane < kLanes; ++lane) {
    const int row = lane / 4, column = lane % 4;
    for (int k = 0; k < 4; ++k) a[row + 8 * (k % 2)][column + 4 * (k / 2)] = tf32(value(4 + k, lane));
    for (int k = 0; k < 2; ++k) b[column + 4 * k][row] = tf32(value(8 + k, lane));
    for (int k = 0; k < 4; ++k) result(k, lane) = value(10 + k, lane);
  }
  tensor_core_product(d, a, b);
  for (int k = 0; k < 4; ++k) {
    for (int lane = 0; lane < kLanes; ++lane) warp.reg<float>(i.r[k])[lane] = result(k, lane);
  }
}

}  // namespace

Handler collective(const std::string& opcode) {
  static const std::unordered_map<std::string, Handler> table = {
      {"shfl.sync.up.b32", shuffle<Mode::kUp>},
      {"shfl.sync.down.b32", shuffle<Mode::kDown>},
      {"shfl.sync.bfly.b32", shuffle<Mode::kButterfly>},
      {"shfl.sync.idx.b32", shuffle<Mode::kIndex>},
      {"vote.sync.ballot.b32", ballot},
      {"vote.sync.any.pred", vote<false>},
      {"vote.sync.all.pred", vote<true>},
      {"redux.sync.max.s32", reduce<int32_t, larger<int32_t>>},
      {"redux.sync.max.u32", reduce<uint32_t, larger<uint32_t>>},
      {"redux.sync.min.s32", reduce<int32_t, smaller<int32_t>>},
      {"redux.sync.min.u32", reduce<uint32_t, smaller<uint32_t>>},
      {"redux.sync.add.s32", reduce<uint32_t, sum<uint32_t>>},
      {"redux.sync.add.u32", reduce<uint32_t, sum<uint32_t>>},
      {"bar.warp.sync", meet},
      {"mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32", multiply_tf32},
  };
  const auto found = table.find(opcode);
  return found == table.end() ? nullptr : found->second;
}

}  // namespace ptx
