// GCN (arXiv 1609.02907) on tiles, with x_l = W x and d_out_i the cotangent of out_i before the activation:
//
//   out_i = sum_e norm_e x_l[j] + bias                     over the entries e = (j -> i)
//   d_x_l[j] += norm_e d_out_i,  d_norm_e = d_out_i . x_l[j]
#pragma once

#include "cpu/conv/conv_block.h"

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

// out[i] = activation(sum_e norm_e x_l[j] + bias) for one target.
template <class C>
HIERMT_INLINE void aggregate(const PackedConv<C>& p, const TileGraph<C>& g, int64_t i, C* out,
                             Activation activation) {
  constexpr int L = kLanes<C>;
  const int64_t begin = g.rowptr[g.first + i], end = g.rowptr[g.first + i + 1];
  for (int64_t c = 0; c < p.padded; c += kOutTile) {
    Vec<C> sum[kOutTile] = {};
    for (int64_t e = begin; e < end; ++e) {
      const Vec<C> norm = broadcast(g.edge_weight[e]);
      const C* source = g.x_l.node(g.source(e)) + c * L;
      for (int k = 0; k < kOutTile; ++k) sum[k] = fma(norm, load(source + k * L), sum[k]);
    }
    for (int k = 0; k < kOutTile; ++k) {
      store(out + (c + k) * L, activate<C>(sum[k] + broadcast(p.bias[c + k]), activation, p.above_half));
    }
  }
}

// The cotangents of one target: adds to d_x_l of its sources and, unless nullptr, the sum over the lanes of
// d_norm_e to d_edge_weight[e].
template <class C>
HIERMT_INLINE void aggregate_backward(const PackedConv<C>& p, const TileGraph<C>& g, int64_t i,
                                      const C* d_out, const TileSpan<C>& d_x_l, C* d_edge_weight) {
  constexpr int L = kLanes<C>;
  for (int64_t e = g.rowptr[g.first + i]; e < g.rowptr[g.first + i + 1]; ++e) {
    const int64_t j = g.source(e);
    const Vec<C> norm = broadcast(g.edge_weight[e]);
    Vec<C> dot = zero<C>();
    for (int64_t c = 0; c < p.padded; ++c) {
      const Vec<C> d = load(d_out + c * L);
      store(d_x_l.node(j) + c * L, fma(norm, d, load(d_x_l.node(j) + c * L)));
      if (d_edge_weight) dot = fma(d, load(g.x_l.node(j) + c * L), dot);
    }
    if (d_edge_weight) d_edge_weight[e] += reduce_add(dot);
  }
}

}  // namespace hiermt::cpu::HIERMT_ISA
