// Nodes that come and go, on tiles [node][lane]: which are there in the instance of a lane, and what depends
// on it alone. An absent node is no source: of a GATv2 its score is -inf, of a GCN its scale is zero.
#pragma once

#include <cmath>

#include "cpu/conv/lane_product.h"
#include "cpu/conv/lane_tile.h"
#include "cpu/support/scratch.h"

namespace hiermt::cpu::HIERMT_ISA {

// Row 0 is the first node of the tile; all nullptr without a mask.
template <class C>
struct Presence {
  C* there;   // 1 or 0
  C* degree;  // GCN: sum of the weights that come in
  C* scale;   // GCN: degree^-1/2, and 0 of an absent node

  static constexpr int64_t vectors(bool gat) { return gat ? 1 : 3; }

  static Presence take(ScratchFrame& frame, int64_t nodes, bool gat) {
    const auto tile = [&] { return frame.take<C>(nodes * kLanes<C>); };
    return gat ? Presence{tile(), nullptr, nullptr} : Presence{tile(), tile(), tile()};
  }

  // The rows from `node` on.
  HIERMT_INLINE Presence from(int64_t node) const {
    const int64_t skipped = node * kLanes<C>;
    if (there == nullptr) return *this;
    if (scale == nullptr) return {there + skipped, nullptr, nullptr};
    return {there + skipped, degree + skipped, scale + skipped};
  }

  HIERMT_INLINE auto at(int64_t node) const { return load(there + node * kLanes<C>) > zero<C>(); }
  // Whether both ends of an edge are there.
  HIERMT_INLINE auto between(int64_t source, int64_t target) const { return at(source) & at(target); }
  HIERMT_INLINE Vec<C> scale_of(int64_t node) const { return load(scale + node * kLanes<C>); }
};

// there[n] of the nodes [begin, end), from a mask [N, T].
template <class C>
void gather_presence(const Presence<C>& p, const bool* present, int64_t num_nodes, int64_t steps,
                     const LaneChunk<C>& chunk, int64_t first, int64_t begin, int64_t end) {
  constexpr int L = kLanes<C>;
  const bool* row[L];
  for (int l = 0; l < L; ++l) row[l] = present + chunk.copy[l] * num_nodes * steps + chunk.time[l];
  for (int64_t n = begin; n < end; ++n) {
    C* there = p.there + (n - first) * L;
    for (int l = 0; l < L; ++l) there[l] = row[l][n * steps] ? C(1) : C(0);
  }
}

// degree[n] and scale[n] of the nodes [begin, end) of a GCN.
template <class C>
void set_scales(const Presence<C>& p, const int32_t* rowptr, const int32_t* col, const C* weight,
                int64_t first, int64_t begin, int64_t end) {
  constexpr int L = kLanes<C>;
  for (int64_t n = begin; n < end; ++n) {
    Vec<C> sum = zero<C>();
    for (int64_t e = rowptr[n]; e < rowptr[n + 1]; ++e) {
      sum += select(p.at(col[e] - first), broadcast(weight[e]), zero<C>());
    }
    const int64_t i = n - first;
    C* degree = p.degree + i * L;
    C* scale = p.scale + i * L;
    store(degree, sum);
    for (int l = 0; l < L; ++l) {
      scale[l] = p.there[i * L + l] > C(0) && degree[l] != C(0) ? C(1) / std::sqrt(degree[l]) : C(0);
    }
  }
}

// tile[n] = 0 in the lanes without node n, of the nodes [begin, end).
template <class C>
HIERMT_INLINE void clear_absent(const Presence<C>& p, const TileSpan<C>& tile, int64_t channels,
                                int64_t begin, int64_t end) {
  constexpr int L = kLanes<C>;
  for (int64_t n = begin; n < end; ++n) {
    const auto there = p.at(n);
    for (int64_t c = 0; c < channels; ++c) {
      C* value = tile.node(n) + c * L;
      store(value, select(there, load(value), zero<C>()));
    }
  }
}

// tile[n] *= scale[n], and 0 in the lanes without node n, of the nodes [begin, end).
template <class C>
HIERMT_INLINE void apply_scales(const Presence<C>& p, const TileSpan<C>& tile, int64_t channels,
                                int64_t begin, int64_t end) {
  constexpr int L = kLanes<C>;
  for (int64_t n = begin; n < end; ++n) {
    const auto there = p.at(n);
    const Vec<C> scale = p.scale_of(n);
    for (int64_t c = 0; c < channels; ++c) {
      C* value = tile.node(n) + c * L;
      store(value, select(there, load(value) * scale, zero<C>()));
    }
  }
}

// The weight of the loop of a GATv2, the last of the entries [begin, end): the mean of the others from nodes
// that are there, and their number, at least 1.
template <class C>
struct LoopWeight {
  Vec<C> mean, count;

  HIERMT_INLINE LoopWeight(const Presence<C>& p, const int32_t* col, const C* weight, int64_t first,
                           int64_t begin, int64_t end) {
    Vec<C> sum = zero<C>(), number = zero<C>();
    for (int64_t e = begin; e < end - 1; ++e) {
      const int64_t j = col[e] - first;
      sum += select(p.at(j), broadcast(weight[e]), zero<C>());
      number += load(p.there + j * kLanes<C>);
    }
    count = max(number, broadcast(C(1)));
    mean = sum / count;
  }
};

}  // namespace hiermt::cpu::HIERMT_ISA
