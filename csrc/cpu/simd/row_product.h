// Products of a few rows with a packed matrix. Lanes are output channels; inputs are broadcast.
#pragma once

#include "cpu/simd/simd.h"

namespace hiermt::cpu::HIERMT_ISA {

// Rows of a tile: enough independent chains to saturate two FMA units with a latency of four cycles.
constexpr int kTileRows = 8;
// Rows whose three sums fit into the registers beside three vectors of weights and one broadcast input.
constexpr int kBlockRows = kRegisters >= 32 ? 8 : 4;
// Rows are prefetched this many steps ahead: a tile has more streams than the hardware prefetcher follows.
constexpr int64_t kPrefetchSteps = 2;
// Rows whose two sums fit beside two vectors of weights and an input, where any number of rows comes together.
constexpr int kPairRows = kRegisters >= 32 ? 12 : 6;
static_assert(kTileRows % kBlockRows == 0, "a tile is a whole number of register blocks");

// acc[v][i] += sum over k < count of rows[i * row_stride + k] * weights[k][v], for v < kVectors. The sums are
// a local copy, which the compiler keeps in registers. Equally spaced rows need few address registers.
template <int kVectors, class V, int kAll, int kRows>
HIERMT_INLINE void add_product(V (&acc)[kAll][kRows], const Lane<V>* rows, int64_t row_stride, int64_t count,
                               const Lane<V>* weights) {
  using C = Lane<V>;
  static_assert(kVectors <= kAll, "no more products than accumulators");
  constexpr int kGroup = kRows % 4 == 0 ? 4 : 3;
  static_assert(kRows % kGroup == 0, "rows are addressed in fours or threes");
  V sum[kVectors][kRows];
#pragma GCC unroll 12
  for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) sum[v][i] = acc[v][i];
  }
  const C* group[kRows / kGroup];
#pragma GCC unroll 8
  for (int q = 0; q < kRows / kGroup; ++q) group[q] = rows + kGroup * q * row_stride;
  for (int64_t k = 0; k < count; ++k) {
    V w[kVectors];
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) w[v] = load(weights + v * kLanes<C>);
    weights += kVectors * kLanes<C>;
#pragma GCC unroll 12
    for (int i = 0; i < kRows; ++i) {
      const V input = broadcast(group[i / kGroup][i % kGroup * row_stride]);
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) sum[v][i] = fma(input, w[v], sum[v][i]);
    }
#pragma GCC unroll 8
    for (int q = 0; q < kRows / kGroup; ++q) ++group[q];
  }
#pragma GCC unroll 12
  for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) acc[v][i] = sum[v][i];
  }
}

// The largest number of inputs whose products with kVectors vectors fit into the registers.
template <int kVectors>
constexpr int kBlockInputs = kVectors == 1 ? 8 : kBlockRows;

namespace detail {

template <int kVectors, int kInputs, class C>
HIERMT_INLINE void add_outer_product_block(C* sums, int64_t sums_stride, const C* inputs,
                                           int64_t inputs_stride, const C* lanes, int64_t lanes_stride,
                                           int64_t vector_stride, int64_t rows) {
  Vec<C> acc[kVectors][kInputs] = {};
  for (int64_t row = 0; row < rows; ++row) {
    Vec<C> w[kVectors];
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) w[v] = load(lanes + v * vector_stride);
#pragma GCC unroll 8
    for (int k = 0; k < kInputs; ++k) {
      const Vec<C> input = broadcast(inputs[k]);
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) acc[v][k] = fma(input, w[v], acc[v][k]);
    }
    inputs += inputs_stride;
    lanes += lanes_stride;
  }
#pragma GCC unroll 8
  for (int k = 0; k < kInputs; ++k) {
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) {
      C* to = sums + k * sums_stride + v * vector_stride;
      store(to, load(to) + acc[v][k]);
    }
  }
}

}  // namespace detail

// sums[k][v] += sum over the rows, in order, of inputs[row][k] * lanes[row][v], for k < count and v <
// kVectors; vector v is at v * vector_stride. Strides count elements.
template <int kVectors, class C>
HIERMT_NOINLINE void add_outer_product(C* sums, int64_t sums_stride, const C* inputs, int64_t inputs_stride,
                                       int64_t count, const C* lanes, int64_t lanes_stride,
                                       int64_t vector_stride, int64_t rows) {
  constexpr int kMost = kBlockInputs<kVectors>;
  // Blocks of nearly equal size: a last block of one input would have too few independent sums.
  const int64_t blocks = (count + kMost - 1) / kMost;
  int64_t k = 0;
  for (int64_t block = 0; block < blocks; ++block) {
    const int64_t size = (count - k + blocks - block - 1) / (blocks - block);
    C* to = sums + k * sums_stride;
    const C* from = inputs + k;
#define HIERMT_CASE(kInputs)                                                                          \
  case kInputs:                                                                                       \
    if constexpr (kInputs <= kMost) {                                                                 \
      detail::add_outer_product_block<kVectors, kInputs>(to, sums_stride, from, inputs_stride, lanes, \
                                                         lanes_stride, vector_stride, rows);          \
    }                                                                                                 \
    break;
    switch (size) {
      HIERMT_CASE(1)
      HIERMT_CASE(2)
      HIERMT_CASE(3)
      HIERMT_CASE(4)
      HIERMT_CASE(5)
      HIERMT_CASE(6)
      HIERMT_CASE(7)
      HIERMT_CASE(8)
    }
#undef HIERMT_CASE
    k += size;
  }
}

}  // namespace hiermt::cpu::HIERMT_ISA
