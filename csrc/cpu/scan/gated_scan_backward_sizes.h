// Sizes of the scan's backward: rows and chunks of a tile, and groups of tasks with sums of their own.
#pragma once

#include <type_traits>

#include "cpu/scan/gated_scan.h"

namespace hiermt::cpu::HIERMT_ISA {

// Steps of a chunk: the rows of a tile stay in the first-level cache.
constexpr int64_t kChunkSteps = 8;
// Steps of a chunk from kLargeVectors vectors of H on: the rows leave that cache anyway, and more of them
// amortise the traffic of the sums.
constexpr int64_t kLargeChunkSteps = 16;
constexpr int64_t kLargeVectors = 4;
// Groups of tasks with sums of parameter gradients of their own: kMostGroups, enough for many cores, halved
// down to kFewestGroups while the sums of all groups take more than kMostSums elements.
constexpr int64_t kMostGroups = 64;
constexpr int64_t kFewestGroups = 8;
constexpr int64_t kMostSums = int64_t{1} << 20;

template <class C>
struct ScanLengths {
  ScanLengths(int64_t inputs_, int64_t hidden)
      : vectors(vectors_for<C>(hidden)),
        padded(vectors * kLanes<C>),
        inputs(1 + inputs_),
        gates(odd_vectors(3 * padded)),
        chunk_steps(vectors < kLargeVectors ? kChunkSteps : kLargeChunkSteps) {}
  // Length of a row of `channels` channels, with room for the last store to run over.
  static int64_t row(int64_t channels) { return odd_vectors(channels + 2 * kLanes<C> - 1); }
  // An odd number of whole vectors, which spreads a column over all sets of the cache.
  static int64_t odd_vectors(int64_t count) { return (count / kLanes<C> | 1) * kLanes<C>; }
  int64_t vectors;
  int64_t padded;  // vectors L
  int64_t inputs;  // of the row [1, x, g]
  int64_t gates;   // of the row [d_z_u, d_z_r, d_z_c]
  int64_t chunk_steps;
};

// run(2, v) for pairs of vectors, run(1, v) for an odd last one.
template <class Run>
HIERMT_INLINE void in_pairs(int64_t vectors, Run&& run) {
  for (int64_t v = 0; v + 1 < vectors; v += 2) run(std::integral_constant<int, 2>{}, v);
  if (vectors % 2 != 0) run(std::integral_constant<int, 1>{}, vectors - 1);
}

// The number of groups for `sums` elements each. It depends on the problem alone, not on the number of
// threads.
HIERMT_INLINE int64_t sum_groups(int64_t tasks, int64_t sums) {
  int64_t groups = kMostGroups;
  while (groups > kFewestGroups && groups * sums > kMostSums) groups /= 2;
  return min(tasks, groups);
}

}  // namespace hiermt::cpu::HIERMT_ISA
