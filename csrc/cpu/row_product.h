// Products of a few rows with a packed matrix: lanes are output channels, inputs are broadcast.
#pragma once

#include "simd.h"

namespace hiermt {
namespace cpu {
namespace HIERMT_ISA {

// Rows in a tile: enough independent chains to keep two FMA units with a latency of four cycles busy.
constexpr int kTileRows = 8;
// How many of them fit into the registers beside three vectors of weights and one broadcast input.
constexpr int kBlockRows = kRegisters >= 32 ? 8 : 4;
static_assert(kTileRows % kBlockRows == 0, "a tile is a whole number of register blocks");

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

// acc[v][i] += sum over k of rows[i][k] * weights[k][v], for v < kVectors.
template <int kVectors, class V, int kAll, int kRows>
HIERMT_INLINE void add_product(V (&acc)[kAll][kRows], const Lane<V>* const* rows, int64_t count,
                               const Lane<V>* weights) {
  using C = Lane<V>;
  static_assert(kVectors <= kAll, "no more products than accumulators");
  for (int64_t k = 0; k < count; ++k) {
    V w[kVectors];
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) w[v] = load(weights + v * kLanes<C>);
#pragma GCC unroll 8
    for (int i = 0; i < kRows; ++i) {
      const V input = broadcast(rows[i][k]);
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) acc[v][i] = fma(input, w[v], acc[v][i]);
    }
    weights += kVectors * kLanes<C>;
  }
}

}  // namespace HIERMT_ISA
}  // namespace cpu
}  // namespace hiermt
