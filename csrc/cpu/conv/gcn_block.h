// GCN aggregation on tiles: out_i = sum_e norm_e (W x)[j] + bias. The tiles and the packed parameters are
// those of gatv2_block.h, of which a GCN fills `left` (without a bias) and `bias`.
#pragma once

#include "cpu/conv/gatv2_block_backward.h"

namespace hiermt {
namespace cpu {
namespace HIERMT_ISA {

template <class S, class C = Compute<S>>
GatV2Packed<C> pack_gcn(ScratchFrame& frame, const GcnWeights<S>& w, int64_t inputs, int64_t hidden) {
  GatV2Packed<C> p{};
  p.inputs = inputs;
  p.hidden = hidden;
  p.above_half = kAboveHalf<S>;
  p.padded = padded_channels(hidden);
  p.bias = pack_vector(frame, w.bias, hidden);
  p.left = {p.padded, inputs, pack_matrix(frame, w.lin_weight, hidden, inputs, inputs, 1),
            zero_vector<C>(frame, hidden)};
  return p;
}

// out[i] = activation(sum_e norm_e left[j] + bias) for one target.
template <class C>
HIERMT_INLINE void aggregate(const GatV2Packed<C>& p, const Neighbourhood<C>& g, int64_t i, C* out,
                             Activation activation) {
  constexpr int L = kLanes<C>;
  const int64_t begin = g.rowptr[g.first + i], end = g.rowptr[g.first + i + 1];
  for (int64_t c = 0; c < p.padded; c += kOutTile) {
    Vec<C> sum[kOutTile] = {};
    for (int64_t e = begin; e < end; ++e) {
      const Vec<C> norm = broadcast(g.edge_weight[e]);
      const C* source = g.left.node(g.source(e)) + c * L;
      for (int k = 0; k < kOutTile; ++k) sum[k] = fma(norm, load(source + k * L), sum[k]);
    }
    for (int k = 0; k < kOutTile; ++k) {
      store(out + (c + k) * L,
            detail::activate<C>(sum[k] + broadcast(p.bias[c + k]), activation, p.above_half));
    }
  }
}

// One target: dleft[j] += norm_e dout_i, and dnorm_e = dout_i . left[j] into edge_gradient[e], unless
// nullptr.
template <class C>
HIERMT_INLINE void aggregate_backward(const GatV2Packed<C>& p, const Neighbourhood<C>& g, int64_t i,
                                      const C* dout, const TileSpan<C>& dleft, C* edge_gradient) {
  constexpr int L = kLanes<C>;
  for (int64_t e = g.rowptr[g.first + i]; e < g.rowptr[g.first + i + 1]; ++e) {
    const int64_t j = g.source(e);
    const Vec<C> norm = broadcast(g.edge_weight[e]);
    Vec<C> dot = zero<C>();
    for (int64_t c = 0; c < p.padded; ++c) {
      const Vec<C> d = load(dout + c * L);
      store(dleft.node(j) + c * L, fma(norm, d, load(dleft.node(j) + c * L)));
      if (edge_gradient) dot = fma(d, load(g.left.node(j) + c * L), dot);
    }
    if (edge_gradient) edge_gradient[e] += reduce_add(dot);
  }
}

}  // namespace HIERMT_ISA
}  // namespace cpu
}  // namespace hiermt
