// GATv2, backward. Scores and attention are recomputed, so only x and the cotangent d_out of the output
// before the activation are read. With slope(z) the derivative of leaky_relu(z, 0.2):
//
//   d_alpha_e = d_out_i . x_l[j]               d_score_e = alpha_e (d_alpha_e - sum_k alpha_k d_alpha_k)
//   q_e = d_score_e slope(z_e)                 d_att = sum_e d_score_e leaky_relu(z_e) = sum_e q_e z_e
//   d_x_l[j] += alpha_e d_out_i + att q_e      d_x_r[i] = att sum_e q_e
//   d_W_e = att sum_e w_e q_e                  d_w_e = sum_c W_e att q_e
//
// With a mask the weight of a loop is the mean of the weights from nodes that are there, which get its gradient.
// An entry without both ends has no part in any sum: zero times what is not finite is not zero.
#pragma once

#include "cpu/conv/conv_gradients.h"
#include "cpu/conv/gatv2_block.h"

namespace hiermt::cpu::HIERMT_ISA {

// Scratch memory for the entries of one target, [degree][lane] each.
template <class C>
struct EntryScratch {
  C* score;          // the scores, then alpha
  C* d_score;        // d_alpha, then d_score
  C* d_edge_weight;  // used with kEdgeGradient only
};

namespace detail {

// score[e] = alpha_e, d_score[e] = d_score_e
template <bool kEdge, bool kMasked, class C>
HIERMT_INLINE void score_cotangents(const PackedConv<C>& p, const TileGraph<C>& g, int64_t i, int64_t begin,
                                    int64_t end, const C* x_r, const C* d_out,
                                    const EntryScratch<C>& scratch) {
  constexpr int L = kLanes<C>;
  const int64_t degree = end - begin;
  const Vec<C> inverse_sum = attention<kEdge, kMasked>(p, g, i, begin, end, x_r, scratch.score);
  for (int64_t c = 0; c < p.padded; c += kOutTile) {
    Vec<C> d[kOutTile];
    for (int k = 0; k < kOutTile; ++k) d[k] = load(d_out + (c + k) * L);
    for (int64_t e = begin; e < end; ++e) {
      const C* source = g.x_l.node(g.source(e)) + c * L;
      C* slot = scratch.d_score + (e - begin) * L;
      Vec<C> even = c > 0 ? load(slot) : zero<C>(), odd = zero<C>();
      for (int k = 0; k < kOutTile; k += 2) {
        even = fma(d[k], load(source + k * L), even);
        odd = fma(d[k + 1], load(source + (k + 1) * L), odd);
      }
      store(slot, even + odd);
    }
  }
  // Relative to d_alpha of the largest coefficient: the rounding of a difference is multiplied with one of the
  // others, which are small where the softmax is saturated and d_score with them. The coefficients add up to 1
  // but for a rounding, too, and that times a mean would stay in the sum of d_score, which is zero.
  Vec<C> largest = zero<C>(), pivot = zero<C>();
  for (int64_t e = 0; e < degree; ++e) {
    const Vec<C> alpha = load(scratch.score + e * L) * inverse_sum;
    store(scratch.score + e * L, alpha);
    pivot = select(alpha > largest, load(scratch.d_score + e * L), pivot);
    largest = max(largest, alpha);
  }
  pivot = select(pivot - pivot == zero<C>(), pivot, zero<C>());
  Vec<C> mean = zero<C>();
  for (int64_t e = 0; e < degree; ++e) {
    const Vec<C> above = load(scratch.d_score + e * L) - pivot;
    store(scratch.d_score + e * L, above);
    mean = fma(load(scratch.score + e * L), above, mean);
  }
  for (int64_t e = 0; e < degree; ++e) {
    C* slot = scratch.d_score + e * L;
    store(slot, load(scratch.score + e * L) * (load(slot) - mean));
    if constexpr (kMasked) {
      const auto there = g.presence.between(g.source(begin + e), i);
      store(slot, select(there, load(slot), zero<C>()));
      store(scratch.score + e * L, select(there, load(scratch.score + e * L), zero<C>()));
    }
  }
}

// Whether both ends of an entry are there; without a mask it is not asked.
template <bool kMasked, class C>
HIERMT_INLINE auto both_there([[maybe_unused]] const TileGraph<C>& g, [[maybe_unused]] int64_t source,
                              [[maybe_unused]] int64_t target) {
  if constexpr (kMasked) {
    return g.presence.between(source, target);
  } else {
    return true;
  }
}

}  // namespace detail

// The cotangents of one target: replaces x_r[i] by d_x_r[i], adds to d_x_l of the sources and to `sums`, and
// with kEdgeGradient the sum over the lanes of d_w_e to d_edge_weight[e].
template <bool kEdge, bool kEdgeGradient, bool kMasked, class C>
HIERMT_INLINE void attend_backward(const PackedConv<C>& p, const TileGraph<C>& graph, int64_t i,
                                   const C* d_out, C* x_r, const TileSpan<C>& d_x_l_tiles,
                                   const ConvSums<C>& sums, const EntryScratch<C>& entry_scratch,
                                   C* d_edge_weight) {
  constexpr int L = kLanes<C>;
  constexpr int kBlock = kOutTile / 2;
  // Local copies, which no store of the loops can alias and which therefore stay in registers.
  const TileGraph<C> g = graph;
  const TileSpan<C> d_x_l = d_x_l_tiles;
  const EntryScratch<C> scratch = entry_scratch;
  const int64_t begin = g.rowptr[g.first + i], end = g.rowptr[g.first + i + 1];
  detail::score_cotangents<kEdge, kMasked>(p, g, i, begin, end, x_r, d_out, scratch);
  const Vec<C> loop = detail::loop_weight<kEdge, kMasked>(g, begin, end);
  const Vec<C> slope = broadcast(C(kAttentionSlope));
  for (int64_t c = 0; c < p.padded; c += kBlock) {
    Vec<C> target[kBlock], d[kBlock], att[kBlock], edge[kBlock], sum_q[kBlock], sum_qz[kBlock],
        sum_wq[kBlock];
    for (int k = 0; k < kBlock; ++k) {
      target[k] = load(x_r + (c + k) * L);
      d[k] = load(d_out + (c + k) * L);
      att[k] = broadcast(p.att[c + k]);
      edge[k] = broadcast(p.lin_edge[c + k]);
      sum_q[k] = zero<C>();
      sum_qz[k] = zero<C>();
      sum_wq[k] = zero<C>();
    }
    for (int64_t e = begin; e < end; ++e) {
      const int64_t j = g.source(e);
      const C* source = g.x_l.node(j) + c * L;
      C* d_source = d_x_l.node(j) + c * L;
      const Vec<C> weight = detail::weight_of<kEdge, kMasked>(g, i, e, end, loop);
      const Vec<C> alpha = load(scratch.score + (e - begin) * L);
      const Vec<C> d_score = load(scratch.d_score + (e - begin) * L);
      const Vec<C> d_score_below = d_score * slope;
      [[maybe_unused]] const auto there = detail::both_there<kMasked>(g, j, i);
      Vec<C> dot = zero<C>();
      if (kEdgeGradient && c > 0) dot = load(scratch.d_edge_weight + (e - begin) * L);
      for (int k = 0; k < kBlock; ++k) {
        Vec<C> z = (kEdge ? fma(edge[k], weight, target[k]) : target[k]) + load(source + k * L);
        if constexpr (kMasked) z = select(there, z, zero<C>());
        const Vec<C> q = z > zero<C>() ? d_score : d_score_below;
        sum_q[k] += q;
        sum_qz[k] = fma(q, z, sum_qz[k]);
        if (kEdge) sum_wq[k] = fma(q, weight, sum_wq[k]);
        if (kEdgeGradient) dot = fma(q, att[k] * edge[k], dot);
        const Vec<C> before = load(d_source + k * L);
        const Vec<C> after = fma(att[k], q, fma(alpha, d[k], before));
        if constexpr (kMasked) {
          store(d_source + k * L, select(there, after, before));
        } else {
          store(d_source + k * L, after);
        }
      }
      if constexpr (kEdgeGradient && kMasked) dot = select(there, dot, zero<C>());
      if (kEdgeGradient) store(scratch.d_edge_weight + (e - begin) * L, dot);
    }
    for (int k = 0; k < kBlock; ++k) {
      Vec<C> d_target = att[k] * sum_q[k];
      if constexpr (kMasked) d_target = select(g.presence.at(i), d_target, zero<C>());
      store(x_r + (c + k) * L, d_target);
      add_to(sums.att + (c + k) * L, sum_qz[k]);
      if (kEdge) add_to(sums.lin_edge + (c + k) * L, sum_wq[k]);
    }
  }
  if (kEdgeGradient && kMasked) {
    const LoopWeight<C> mean(g.presence, g.col, g.edge_weight, g.first, begin, end);
    const Vec<C> d_mean = load(scratch.d_edge_weight + (end - 1 - begin) * L) / mean.count;
    for (int64_t e = begin; e < end - 1; ++e) {
      const Vec<C> own = load(scratch.d_edge_weight + (e - begin) * L);
      d_edge_weight[e] += reduce_add(own + select(g.presence.at(g.source(e)), d_mean, zero<C>()));
    }
  } else if (kEdgeGradient) {
    for (int64_t e = begin; e < end; ++e)
      d_edge_weight[e] += reduce_add(load(scratch.d_edge_weight + (e - begin) * L));
  }
}

}  // namespace hiermt::cpu::HIERMT_ISA
