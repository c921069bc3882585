// GATv2 (arXiv 2105.14491) with one head, on tiles:
//
//   z_e     = x_l[j] + x_r[i] + W_e w_e                     for each entry e = (j -> i)
//   score_e = att . leaky_relu(z_e, 0.2) = 0.6 att . z_e + 0.4 att . |z_e|
//   alpha_e = softmax of the scores of i (maximum subtracted, denominator + 1e-16)
//   out_i   = sum_e alpha_e x_l[j] + bias
//
// The linear part of score_e is a scalar of the source (0.6 att . x_l[j]), a scalar of the entry
// (0.6 att . W_e w_e) and a scalar of the target, which cancels in the softmax. Each channel of an entry then
// costs an fma, an add, an absolute value and an fma.
//
// With a mask the linear score of an absent node is -inf, so that the coefficients of its entries are zero.
#pragma once

#include "cpu/conv/conv_block.h"

namespace hiermt::cpu::HIERMT_ISA {

template <class S, class C = Compute<S>>
PackedConv<C> pack_gatv2(ScratchFrame& frame, const GatV2Weights<S>& w, int64_t inputs, int64_t hidden) {
  PackedConv<C> p;
  p.inputs = inputs;
  p.hidden = hidden;
  p.above_half = kAboveHalf<S>;
  p.padded = padded_channels(hidden);
  p.lin_l = {p.padded, inputs, pack_matrix(frame, w.lin_l_weight, hidden, inputs, inputs, 1),
             pack_vector(frame, w.lin_l_bias, hidden)};
  p.lin_r = {p.padded, inputs, pack_matrix(frame, w.lin_r_weight, hidden, inputs, inputs, 1),
             pack_vector(frame, w.lin_r_bias, hidden)};
  p.att = pack_vector(frame, w.att, hidden);
  p.att_linear = pack_vector(frame, w.att, hidden, C(0.5 * (1 + kAttentionSlope)));
  p.att_absolute = pack_vector(frame, w.att, hidden, C(0.5 * (1 - kAttentionSlope)));
  p.bias = pack_vector(frame, w.bias, hidden);
  p.lin_edge =
      w.lin_edge_weight ? pack_vector(frame, w.lin_edge_weight, hidden) : zero_vector<C>(frame, hidden);
  p.edge_linear = C(0);
  if (w.lin_edge_weight) {
    for (int64_t c = 0; c < hidden; ++c) p.edge_linear += p.att_linear[c] * p.lin_edge[c];
  }
  return p;
}

// linear_score[n] = 0.6 att . x_l[n]
template <class C>
HIERMT_INLINE void linear_scores(const PackedConv<C>& p, const TileSpan<const C>& x_l, int64_t begin,
                                 int64_t end, C* linear_score) {
  constexpr int L = kLanes<C>;
  for (int64_t n = begin; n < end; ++n) {
    Vec<C> sum[4] = {};
    for (int64_t c = 0; c < p.padded; c += 4) {
      for (int k = 0; k < 4; ++k)
        sum[k] = fma(broadcast(p.att_linear[c + k]), load(x_l.node(n) + (c + k) * L), sum[k]);
    }
    store(linear_score + n * L, (sum[0] + sum[1]) + (sum[2] + sum[3]));
  }
}

// linear_score[n] = -inf in the lanes without node n.
template <class C>
HIERMT_INLINE void no_scores(const Presence<C>& presence, int64_t begin, int64_t end, C* linear_score) {
  constexpr int L = kLanes<C>;
  for (int64_t n = begin; n < end; ++n) {
    const Vec<C> score = load(linear_score + n * L);
    store(linear_score + n * L, select(presence.at(n), score, broadcast(C(-__builtin_inf()))));
  }
}

namespace detail {

// The weight of an entry of target i: with a mask that of the loop, the last one, is `loop`, and that of an
// entry from or to an absent node is not read, as it may be NaN.
template <bool kEdge, bool kMasked, class C>
HIERMT_INLINE Vec<C> weight_of(const TileGraph<C>& g, int64_t i, int64_t e, int64_t end, Vec<C> loop) {
  if constexpr (kEdge && kMasked) {
    const Vec<C> weight = e == end - 1 ? loop : broadcast(g.edge_weight[e]);
    return select(g.presence.between(g.source(e), i), weight, zero<C>());
  }
  return broadcast(kEdge ? g.edge_weight[e] : C(0));
}

template <bool kEdge, bool kMasked, class C>
HIERMT_INLINE Vec<C> loop_weight(const TileGraph<C>& g, int64_t begin, int64_t end) {
  if (!kEdge || !kMasked) return zero<C>();
  return LoopWeight<C>(g.presence, g.col, g.edge_weight, g.first, begin, end).mean;
}

// What a maximum of scores starts from: of an absent target a number, as it may have no score at all.
template <bool kMasked, class C>
HIERMT_INLINE Vec<C> lowest_score(const TileGraph<C>& g, int64_t i) {
  const Vec<C> lowest = broadcast(C(-__builtin_inf()));
  if constexpr (kMasked) return select(g.presence.at(i), lowest, zero<C>());
  return lowest;
}

// Adds the channels [c, c + kOutTile) to the scores of the entries of target i; the last tile returns their
// maximum. The linear part comes last: where it is large, so are the roundings of a sum that starts with it.
template <bool kEdge, bool kMasked, bool kFirst, bool kLast, class C>
HIERMT_INLINE Vec<C> score_tile(const PackedConv<C>& p, const TileGraph<C>& g, int64_t i, int64_t begin,
                                int64_t end, const C* x_r, int64_t c, Vec<C> loop, C* score) {
  constexpr int L = kLanes<C>;
  Vec<C> target[kOutTile], edge[kOutTile], att[kOutTile];
  for (int k = 0; k < kOutTile; ++k) {
    target[k] = load(x_r + (c + k) * L);
    edge[k] = broadcast(p.lin_edge[c + k]);
    att[k] = broadcast(p.att_absolute[c + k]);
  }
  Vec<C> max_score = kLast ? lowest_score<kMasked>(g, i) : zero<C>();
  for (int64_t e = begin; e < end; ++e) {
    const int64_t j = g.source(e);
    const C* source = g.x_l.node(j) + c * L;
    const Vec<C> weight = weight_of<kEdge, kMasked>(g, i, e, end, loop);
    Vec<C> even = kFirst ? zero<C>() : load(score + (e - begin) * L), odd = zero<C>();
    for (int k = 0; k < kOutTile; k += 2) {
      const Vec<C> z0 = (kEdge ? fma(edge[k], weight, target[k]) : target[k]) + load(source + k * L);
      const Vec<C> z1 =
          (kEdge ? fma(edge[k + 1], weight, target[k + 1]) : target[k + 1]) + load(source + (k + 1) * L);
      even = fma(att[k], abs(z0), even);
      odd = fma(att[k + 1], abs(z1), odd);
    }
    even += odd;
    if (kLast) {
      const Vec<C> linear = load(g.linear_score + j * L);
      even += kEdge ? fma(broadcast(p.edge_linear), weight, linear) : linear;
      max_score = max(max_score, even);
    }
    store(score + (e - begin) * L, even);
  }
  return max_score;
}

// score[e] = score_e without the scalar that cancels, for the entries of target i; returns their maximum.
template <bool kEdge, bool kMasked, class C>
HIERMT_INLINE Vec<C> scores(const PackedConv<C>& p, const TileGraph<C>& g, int64_t i, int64_t begin,
                            int64_t end, const C* x_r, C* score) {
  if (p.padded == 0) return zero<C>();
  const Vec<C> loop = loop_weight<kEdge, kMasked>(g, begin, end);
  const int64_t last = p.padded - kOutTile;
  if (last == 0) return score_tile<kEdge, kMasked, true, true>(p, g, i, begin, end, x_r, 0, loop, score);
  score_tile<kEdge, kMasked, true, false>(p, g, i, begin, end, x_r, 0, loop, score);
  for (int64_t c = kOutTile; c < last; c += kOutTile)
    score_tile<kEdge, kMasked, false, false>(p, g, i, begin, end, x_r, c, loop, score);
  return score_tile<kEdge, kMasked, false, true>(p, g, i, begin, end, x_r, last, loop, score);
}

// score[e] becomes exp(score_e - max_score). Returns 1 / (their sum + epsilon), so that
// alpha_e = score[e] * result.
template <class C>
HIERMT_INLINE Vec<C> exponentials(C* score, int64_t degree, Vec<C> max_score) {
  constexpr int L = kLanes<C>;
  Vec<C> sum = zero<C>();
  for (int64_t e = 0; e < degree; ++e) {
    const Vec<C> value = exp_nonpositive(load(score + e * L) - max_score);
    sum += value;
    store(score + e * L, value);
  }
  return broadcast(C(1)) / (sum + broadcast(C(kSoftmaxEpsilon)));
}

// The same by the literal formula in the lanes whose inverse sum is NaN: 0.6 z + 0.4 |z| is NaN for z = -inf,
// or where a part of the score overflows, although leaky_relu(z) is not.
template <bool kEdge, bool kMasked, class C>
HIERMT_NOINLINE Vec<C> literal_attention(const PackedConv<C>& p, const TileGraph<C>& g, int64_t i,
                                         int64_t begin, int64_t end, const C* x_r, C* score,
                                         Vec<C> inverse_sum) {
  constexpr int L = kLanes<C>;
  const Vec<C> loop = loop_weight<kEdge, kMasked>(g, begin, end);
  const auto literal_score = [&](int64_t e) {
    const C* source = g.x_l.node(g.source(e));
    Vec<C> sum = zero<C>();
    for (int64_t c = 0; c < p.hidden; ++c) {
      Vec<C> z = load(source + c * L) + load(x_r + c * L);
      if (kEdge && kMasked) {
        z += broadcast(p.lin_edge[c]) * weight_of<kEdge, kMasked>(g, i, e, end, loop);
      } else if (kEdge) {
        z += broadcast(p.lin_edge[c] * g.edge_weight[e]);
      }
      sum += broadcast(p.att[c]) * (z > zero<C>() ? z : z * broadcast(C(kAttentionSlope)));
    }
    if constexpr (kMasked) {
      return select(g.presence.at(g.source(e)), sum, broadcast(C(-__builtin_inf())));
    }
    return sum;
  };
  Vec<C> max_score = lowest_score<kMasked>(g, i), sum = zero<C>();
  for (int64_t e = begin; e < end; ++e) max_score = max(max_score, literal_score(e));
  const auto is_nan = inverse_sum != inverse_sum;
  for (int64_t e = begin; e < end; ++e) {
    const Vec<C> value = exp_nonpositive(literal_score(e) - max_score);
    sum += value;
    C* slot = score + (e - begin) * L;
    store(slot, select(is_nan, value, load(slot)));
  }
  return select(is_nan, broadcast(C(1)) / (sum + broadcast(C(kSoftmaxEpsilon))), inverse_sum);
}

// Scores and softmax of target i: alpha_e = score[e] * result.
template <bool kEdge, bool kMasked, class C>
HIERMT_INLINE Vec<C> attention(const PackedConv<C>& p, const TileGraph<C>& g, int64_t i, int64_t begin,
                               int64_t end, const C* x_r, C* score) {
  const Vec<C> max_score = scores<kEdge, kMasked>(p, g, i, begin, end, x_r, score);
  const Vec<C> inverse_sum = exponentials(score, end - begin, max_score);
  const C probe = reduce_add(inverse_sum);
  if (__builtin_expect(probe != probe, 0))
    return literal_attention<kEdge, kMasked>(p, g, i, begin, end, x_r, score, inverse_sum);
  return inverse_sum;
}

}  // namespace detail

// out[i] = activation(sum_e alpha_e x_l[j] + bias) for one target, written over its x_r. `score` has room for
// a vector per entry of the target.
template <bool kEdge, bool kMasked, class C>
HIERMT_INLINE void attend(const PackedConv<C>& p, const TileGraph<C>& g, int64_t i, C* x_r, C* score,
                          Activation activation) {
  constexpr int L = kLanes<C>;
  const int64_t begin = g.rowptr[g.first + i], end = g.rowptr[g.first + i + 1];
  const Vec<C> inverse_sum = detail::attention<kEdge, kMasked>(p, g, i, begin, end, x_r, score);
  for (int64_t c = 0; c < p.padded; c += kOutTile) {
    Vec<C> sum[kOutTile] = {};
    for (int64_t e = begin; e < end; ++e) {
      const Vec<C> value = load(score + (e - begin) * L);
      const C* source = g.x_l.node(g.source(e)) + c * L;
      for (int k = 0; k < kOutTile; ++k) sum[k] = fma(value, load(source + k * L), sum[k]);
    }
    for (int k = 0; k < kOutTile; ++k) {
      store(x_r + (c + k) * L, fma(sum[k], inverse_sum, broadcast(p.bias[c + k])));
    }
  }
  activate_channels<kMasked>(p, g, i, x_r, activation);
}

}  // namespace hiermt::cpu::HIERMT_ISA
