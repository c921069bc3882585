// GCN (arXiv 1609.02907) on tiles, with x_l = W x and d_out_i the cotangent of out_i before the activation:
//
//   out_i = sum_e norm_e x_l[j] + bias                     over the entries e = (j -> i)
//   d_x_l[j] += norm_e d_out_i,  d_norm_e = d_out_i . x_l[j]
//
// With a mask norm_e is s_j w_e s_i of the instance, s = degree^-1/2 the scale of a node: x_l is s_j W x then,
// and what follows multiplies with w_e and s_i. See aggregate_backward for the gradient of w_e.
#pragma once

#include "cpu/conv/conv_block.h"
#include "cpu/conv/lane_gradient.h"

namespace hiermt::cpu::HIERMT_ISA {

template <class S, class C = Compute<S>>
PackedConv<C> pack_gcn(ScratchFrame& frame, const GcnWeights<S>& w, int64_t inputs, int64_t hidden) {
  PackedConv<C> p{};
  p.inputs = inputs;
  p.hidden = hidden;
  p.above_half = kAboveHalf<S>;
  p.padded = padded_channels(hidden);
  p.bias = pack_vector(frame, w.bias, hidden);
  p.lin_l = {p.padded, inputs, pack_matrix(frame, w.lin_weight, hidden, inputs, inputs, 1),
             zero_vector<C>(frame, hidden)};
  return p;
}

// norm_e, or w_e with a mask; that of an entry from or to an absent node is not read, as it may be NaN.
template <bool kMasked, class C>
HIERMT_INLINE Vec<C> norm_of(const TileGraph<C>& g, int64_t i, int64_t e) {
  const Vec<C> norm = broadcast(g.edge_weight[e]);
  if constexpr (kMasked) return select(g.presence.between(g.source(e), i), norm, zero<C>());
  return norm;
}

// out[i] = activation(sum_e norm_e x_l[j] + bias) for one target.
template <bool kMasked, class C>
HIERMT_INLINE void aggregate(const PackedConv<C>& p, const TileGraph<C>& g, int64_t i, C* out,
                             Activation activation) {
  constexpr int L = kLanes<C>;
  const int64_t begin = g.rowptr[g.first + i], end = g.rowptr[g.first + i + 1];
  for (int64_t c = 0; c < p.padded; c += kOutTile) {
    Vec<C> sum[kOutTile] = {};
    for (int64_t e = begin; e < end; ++e) {
      const Vec<C> norm = norm_of<kMasked>(g, i, e);
      const C* source = g.x_l.node(g.source(e)) + c * L;
      for (int k = 0; k < kOutTile; ++k) sum[k] = fma(norm, load(source + k * L), sum[k]);
    }
    for (int k = 0; k < kOutTile; ++k) {
      const Vec<C> bias = broadcast(p.bias[c + k]);
      if constexpr (kMasked) {
        const Vec<C> value = activate<C>(fma(sum[k], g.presence.scale_of(i), bias), activation, p.above_half);
        store(out + (c + k) * L, select(g.presence.at(i), value, zero<C>()));
      } else {
        store(out + (c + k) * L, activate<C>(sum[k] + bias, activation, p.above_half));
      }
    }
  }
}

// The cotangents of one target: adds to d_x_l of its sources and, unless nullptr, the sum over the lanes of
// d_norm_e to d_edge_weight[e]. With a mask d_x_l lacks the factor s_j, and w_e d_w_e is added to d_log_scale,
// the cotangent of log s, of both its nodes.
template <bool kMasked, class C>
HIERMT_INLINE void aggregate_backward(const PackedConv<C>& p, const TileGraph<C>& g, int64_t i,
                                      const C* d_out, const TileSpan<C>& d_x_l, C* d_edge_weight,
                                      C* d_log_scale) {
  constexpr int L = kLanes<C>;
  const Vec<C> scale = kMasked ? g.presence.scale_of(i) : zero<C>();
  for (int64_t e = g.rowptr[g.first + i]; e < g.rowptr[g.first + i + 1]; ++e) {
    const int64_t j = g.source(e);
    const Vec<C> norm = norm_of<kMasked>(g, i, e);
    Vec<C> dot = zero<C>();
    for (int64_t c = 0; c < p.padded; ++c) {
      const Vec<C> d = kMasked ? load(d_out + c * L) * scale : load(d_out + c * L);
      store(d_x_l.node(j) + c * L, fma(norm, d, load(d_x_l.node(j) + c * L)));
      if (d_edge_weight) dot = fma(d, load(g.x_l.node(j) + c * L), dot);
    }
    if (d_edge_weight) d_edge_weight[e] += reduce_add(dot);
    if (kMasked && d_edge_weight) {
      add_to(d_log_scale + i * L, norm * dot);
      add_to(d_log_scale + j * L, norm * dot);
    }
  }
}

// Adds what the weights that come into target i get through its degree: d_degree = -d_log_scale / (2 degree).
template <class C>
HIERMT_INLINE void degree_backward(const TileGraph<C>& g, int64_t i, const C* d_log_scale, C* d_edge_weight) {
  constexpr int L = kLanes<C>;
  const Vec<C> d = broadcast(C(-0.5)) * load(d_log_scale + i * L) / load(g.presence.degree + i * L);
  const Vec<C> d_degree = select(g.presence.at(i), d, zero<C>());
  for (int64_t e = g.rowptr[g.first + i]; e < g.rowptr[g.first + i + 1]; ++e) {
    d_edge_weight[e] += reduce_add(select(g.presence.at(g.source(e)), d_degree, zero<C>()));
  }
}

}  // namespace hiermt::cpu::HIERMT_ISA
