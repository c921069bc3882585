// GATv2 attention (heads = 1) on tiles, one closed range of nodes and one chunk of instances at a time:
//
//   z_e   = x_l[j] + x_r[i] + W_e w_e                       for every entry e = (j -> i)
//   s_e   = att . leaky_0.2(z_e) = 0.6 att . z_e + 0.4 att . |z_e|
//   a_e   = softmax over the entries of i (maximum subtracted, denominator + 1e-16)
//   out_i = sum_e a_e x_l[j] + bias
//
// The linear part of s_e is one scalar per source (0.6 att . x_l[j]) and one per entry (0.6 att . W_e w_e);
// the target's own part is the same for all entries of i and cancels in the softmax. What stays for each
// channel of an entry is an fma, an add, an absolute value and an fma.
#pragma once

#include "cpu/conv/lane_product.h"
#include "cpu/simd/vmath.h"
#include "params.h"

namespace hiermt {
namespace cpu {
namespace HIERMT_ISA {

// The parameters of one convolution in compute precision; vectors are padded with zeros.
template <class C>
struct GatV2Packed {
  int64_t inputs, hidden, padded;
  PackedMatrix<C> left, right;  // x_l, x_r
  const C* att;
  const C* att_linear;    // 0.6 att
  const C* att_absolute;  // 0.4 att
  const C* edge;          // W_e, zeros without an edge term
  const C* bias;
  C edge_linear;  // 0.6 att . W_e
  C above_half;   // kAboveHalf of the storage type
};

template <class S, class C = Compute<S>>
GatV2Packed<C> pack_gatv2(ScratchFrame& frame, const GatV2Weights<S>& w, int64_t inputs, int64_t hidden) {
  GatV2Packed<C> p;
  p.inputs = inputs;
  p.hidden = hidden;
  p.above_half = kAboveHalf<S>;
  p.padded = padded_channels(hidden);
  p.left = {p.padded, inputs, pack_matrix(frame, w.lin_l_weight, hidden, inputs, inputs, 1),
            pack_vector(frame, w.lin_l_bias, hidden)};
  p.right = {p.padded, inputs, pack_matrix(frame, w.lin_r_weight, hidden, inputs, inputs, 1),
             pack_vector(frame, w.lin_r_bias, hidden)};
  p.att = pack_vector(frame, w.att, hidden);
  p.att_linear = pack_vector(frame, w.att, hidden, C(0.5 * (1 + kAttentionSlope)));
  p.att_absolute = pack_vector(frame, w.att, hidden, C(0.5 * (1 - kAttentionSlope)));
  p.bias = pack_vector(frame, w.bias, hidden);
  p.edge = w.lin_edge_weight ? pack_vector(frame, w.lin_edge_weight, hidden) : zero_vector<C>(frame, hidden);
  p.edge_linear = C(0);
  if (w.lin_edge_weight) {
    for (int64_t c = 0; c < hidden; ++c) p.edge_linear += p.att_linear[c] * p.edge[c];
  }
  return p;
}

// The incoming entries of the nodes of one tile; row 0 of the tile is node `first`.
template <class C>
struct Neighbourhood {
  const int32_t* rowptr;
  const int32_t* col;
  const C* edge_weight;  // [E], read with an edge term only
  int64_t first;
  TileSpan<const C> left;  // x_l
  const C* linear;         // [node][lane] 0.6 att . x_l
  HIERMT_INLINE int64_t source(int64_t entry) const { return col[entry] - first; }
};

// linear[n] = 0.6 att . x_l[n]
template <class C>
HIERMT_INLINE void linear_scores(const GatV2Packed<C>& p, const TileSpan<const C>& left, int64_t begin,
                                 int64_t end, C* linear) {
  constexpr int L = kLanes<C>;
  for (int64_t n = begin; n < end; ++n) {
    Vec<C> sum[4] = {};
    for (int64_t c = 0; c < p.padded; c += 4) {
      for (int k = 0; k < 4; ++k)
        sum[k] = fma(broadcast(p.att_linear[c + k]), load(left.node(n) + (c + k) * L), sum[k]);
    }
    store(linear + n * L, (sum[0] + sum[1]) + (sum[2] + sum[3]));
  }
}

// x_l, x_r and the linear scores of the nodes [begin, end) of the tile x.
template <class C>
HIERMT_INLINE void project(const GatV2Packed<C>& p, const TileSpan<const C>& x, const TileSpan<C>& left,
                           const TileSpan<C>& right, C* linear, int64_t begin, int64_t end) {
  product(p.left, x, left, begin, end);
  product(p.right, x, right, begin, end);
  linear_scores<C>(p, left, begin, end, linear);
}

namespace detail {

// score[e] = s_e less what cancels, for the entries of target i; returns their maximum.
template <bool kEdge, class C>
HIERMT_INLINE Vec<C> scores(const GatV2Packed<C>& p, const Neighbourhood<C>& g, int64_t begin, int64_t end,
                            const C* right, C* score) {
  constexpr int L = kLanes<C>;
  Vec<C> top = zero<C>();
  for (int64_t c = 0; c < p.padded; c += kOutTile) {
    Vec<C> target[kOutTile], edge[kOutTile], att[kOutTile];
    for (int k = 0; k < kOutTile; ++k) {
      target[k] = load(right + (c + k) * L);
      edge[k] = broadcast(p.edge[c + k]);
      att[k] = broadcast(p.att_absolute[c + k]);
    }
    top = broadcast(C(-__builtin_inf()));
    for (int64_t e = begin; e < end; ++e) {
      const int64_t j = g.source(e);
      const C* source = g.left.node(j) + c * L;
      const Vec<C> weight = broadcast(kEdge ? g.edge_weight[e] : C(0));
      Vec<C> even, odd = zero<C>();
      if (c > 0) {
        even = load(score + (e - begin) * L);
      } else {
        even = load(g.linear + j * L);
        if (kEdge) even = fma(broadcast(p.edge_linear), weight, even);
      }
      for (int k = 0; k < kOutTile; k += 2) {
        const Vec<C> z0 = (kEdge ? fma(edge[k], weight, target[k]) : target[k]) + load(source + k * L);
        const Vec<C> z1 =
            (kEdge ? fma(edge[k + 1], weight, target[k + 1]) : target[k + 1]) + load(source + (k + 1) * L);
        even = fma(att[k], abs(z0), even);
        odd = fma(att[k + 1], abs(z1), odd);
      }
      even += odd;
      store(score + (e - begin) * L, even);
      top = max(top, even);
    }
  }
  return top;
}

// score[e] becomes exp(s_e - top); returns 1 / (their sum + epsilon), so that a_e = score[e] * result.
template <class C>
HIERMT_INLINE Vec<C> exponentials(C* score, int64_t degree, Vec<C> top) {
  constexpr int L = kLanes<C>;
  Vec<C> sum = zero<C>();
  for (int64_t e = 0; e < degree; ++e) {
    const Vec<C> value = exp_nonpositive(load(score + e * L) - top);
    sum += value;
    store(score + e * L, value);
  }
  return broadcast(C(1)) / (sum + broadcast(C(kSoftmaxEpsilon)));
}

// The same from the literal formula, for the lanes whose `scale` is NaN: where z is -inf, or a part of the
// sum overflows, 0.6 z + 0.4 |z| is NaN although leaky(z) is not.
template <bool kEdge, class C>
HIERMT_NOINLINE Vec<C> literal_attention(const GatV2Packed<C>& p, const Neighbourhood<C>& g, int64_t begin,
                                         int64_t end, const C* right, C* score, Vec<C> scale) {
  constexpr int L = kLanes<C>;
  const auto literal_score = [&](int64_t e) {
    const C* source = g.left.node(g.source(e));
    Vec<C> sum = zero<C>();
    for (int64_t c = 0; c < p.hidden; ++c) {
      Vec<C> z = load(source + c * L) + load(right + c * L);
      if (kEdge) z += broadcast(p.edge[c] * g.edge_weight[e]);
      sum += broadcast(p.att[c]) * (z > zero<C>() ? z : z * broadcast(C(kAttentionSlope)));
    }
    return sum;
  };
  Vec<C> top = broadcast(C(-__builtin_inf())), sum = zero<C>();
  for (int64_t e = begin; e < end; ++e) top = max(top, literal_score(e));
  const auto doubtful = scale != scale;
  for (int64_t e = begin; e < end; ++e) {
    const Vec<C> value = exp_nonpositive(literal_score(e) - top);
    sum += value;
    C* slot = score + (e - begin) * L;
    store(slot, select(doubtful, value, load(slot)));
  }
  return select(doubtful, broadcast(C(1)) / (sum + broadcast(C(kSoftmaxEpsilon))), scale);
}

// Scores and softmax of one target: a_e = score[e] * result.
template <bool kEdge, class C>
HIERMT_INLINE Vec<C> attention(const GatV2Packed<C>& p, const Neighbourhood<C>& g, int64_t begin, int64_t end,
                               const C* right, C* score) {
  const Vec<C> top = scores<kEdge>(p, g, begin, end, right, score);
  const Vec<C> scale = exponentials(score, end - begin, top);
  const C probe = reduce_add(scale);
  if (__builtin_expect(probe != probe, 0))
    return literal_attention<kEdge>(p, g, begin, end, right, score, scale);
  return scale;
}

// The backward reads off the stored value on which side of zero v was, so that of a positive v must not round
// to one half.
template <class C>
HIERMT_INLINE Vec<C> activate(Vec<C> v, Activation activation, C above_half) {
  if (activation == Activation::kNone) return v;
  if (activation == Activation::kSigmoid) return sigmoid(v);
  const Vec<C> leaky = v > zero<C>() ? v : v * broadcast(C(kActivationSlope));
  if (activation == Activation::kLeakyRelu) return leaky;
  const Vec<C> value = sigmoid(leaky);
  return select(v > zero<C>(), max(value, broadcast(above_half)), value);
}

}  // namespace detail

// out[i] = activation(sum_e a_e x_l[j] + bias) for one target, written over its x_r. `score` holds a vector
// for each entry of the target.
template <bool kEdge, class C>
HIERMT_INLINE void attend(const GatV2Packed<C>& p, const Neighbourhood<C>& g, int64_t i, C* right, C* score,
                          Activation activation) {
  constexpr int L = kLanes<C>;
  const int64_t begin = g.rowptr[g.first + i], end = g.rowptr[g.first + i + 1];
  const Vec<C> scale = detail::attention<kEdge>(p, g, begin, end, right, score);
  for (int64_t c = 0; c < p.padded; c += kOutTile) {
    Vec<C> sum[kOutTile] = {};
    for (int64_t e = begin; e < end; ++e) {
      const Vec<C> value = load(score + (e - begin) * L);
      const C* source = g.left.node(g.source(e)) + c * L;
      for (int k = 0; k < kOutTile; ++k) sum[k] = fma(value, load(source + k * L), sum[k]);
    }
    for (int k = 0; k < kOutTile; ++k) {
      store(right + (c + k) * L,
            detail::activate<C>(fma(sum[k], scale, broadcast(p.bias[c + k])), activation, p.above_half));
    }
  }
}

}  // namespace HIERMT_ISA
}  // namespace cpu
}  // namespace hiermt
