// GCN (arXiv 1609.02907) on tiles, with x_l = W x and d_out_i the cotangent of out_i before the activation:
//
//   out_i = sum_e norm_e x_l[j] + bias                     over the entries e = (j -> i)
//   d_x_l[j] += norm_e d_out_i,  d_norm_e = d_out_i . x_l[j]
//
// With a mask norm_e is s_j w_e s_i of the instance, s = degree^-1/2 the scale of a node: x_l is s_j W x then,
// and what follows multiplies with w_e and s_i. See norm_backward for the gradient of w_e.
#pragma once

#include <type_traits>

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
HIERMT_INLINE Vec<C> norm_of(const TileGraph<C>& g, int64_t e, int64_t source, int64_t target) {
  const Vec<C> norm = broadcast(g.edge_weight[e]);
  if constexpr (kMasked) return select(g.presence.between(source, target), norm, zero<C>());
  return norm;
}

// run(channels, c) for all padded channels from c on: 2 kOutTile of them, whose sums are enough independent
// chains for two FMA units, and kOutTile for a last odd block.
template <class Run>
HIERMT_INLINE void in_channel_blocks(int64_t padded, Run&& run) {
  int64_t c = 0;
  for (; c + 2 * kOutTile <= padded; c += 2 * kOutTile) run(std::integral_constant<int, 2 * kOutTile>{}, c);
  if (c < padded) run(std::integral_constant<int, kOutTile>{}, c);
}

// out[i] = activation(sum_e norm_e x_l[j] + bias) for one target.
template <bool kMasked, class C>
HIERMT_INLINE void aggregate(const PackedConv<C>& p, const TileGraph<C>& g, int64_t i, C* out,
                             Activation activation) {
  constexpr int L = kLanes<C>;
  const int64_t begin = g.rowptr[g.first + i], end = g.rowptr[g.first + i + 1];
  in_channel_blocks(p.padded, [&](auto channels, int64_t c) {
    Vec<C> sum[channels()] = {};
    for (int64_t e = begin; e < end; ++e) {
      const Vec<C> norm = norm_of<kMasked>(g, e, g.source(e), i);
      const C* source = g.x_l.node(g.source(e)) + c * L;
      for (int k = 0; k < channels(); ++k) sum[k] = fma(norm, load(source + k * L), sum[k]);
    }
    for (int k = 0; k < channels(); ++k) {
      const Vec<C> bias = broadcast(p.bias[c + k]);
      store(out + (c + k) * L, kMasked ? fma(sum[k], g.presence.scale_of(i), bias) : sum[k] + bias);
    }
  });
  activate_channels<kMasked>(p, g, i, out, activation);
}

// d_x_l[j] of one source, summed over the edges that leave it; `graph` is that of the tile. With a mask it lacks
// the factor s_j.
template <bool kMasked, class C>
HIERMT_INLINE void aggregate_backward(const PackedConv<C>& p, const TileGraph<C>& g, const CsrGraph& graph,
                                      int64_t j, const TileSpan<C>& d_out, C* d_x_l) {
  constexpr int L = kLanes<C>;
  const int64_t begin = graph.colptr[g.first + j], end = graph.colptr[g.first + j + 1];
  in_channel_blocks(p.padded, [&](auto channels, int64_t c) {
    Vec<C> sum[channels()] = {};
    for (int64_t e = begin; e < end; ++e) {
      const int64_t i = graph.row[e] - g.first;
      const Vec<C> norm = norm_of<kMasked>(g, graph.csr2csc[e], j, i);
      const C* target = d_out.node(i) + c * L;
      for (int k = 0; k < channels(); ++k) {
        const Vec<C> d = load(target + k * L);
        sum[k] = fma(norm, kMasked ? d * g.presence.scale_of(i) : d, sum[k]);
      }
    }
    for (int k = 0; k < channels(); ++k) store(d_x_l + (c + k) * L, sum[k]);
  });
}

// Adds the sum over the lanes of d_norm_e to d_edge_weight[e] for the entries e of one target. With a mask w_e
// d_w_e is added to d_log_scale, the cotangent of log s, of both its nodes.
template <bool kMasked, class C>
HIERMT_INLINE void norm_backward(const PackedConv<C>& p, const TileGraph<C>& g, int64_t i, const C* d_out,
                                 C* d_edge_weight, C* d_log_scale) {
  constexpr int L = kLanes<C>;
  const Vec<C> scale = kMasked ? g.presence.scale_of(i) : zero<C>();
  for (int64_t e = g.rowptr[g.first + i]; e < g.rowptr[g.first + i + 1]; ++e) {
    const int64_t j = g.source(e);
    Vec<C> dot = zero<C>();
    for (int64_t c = 0; c < p.padded; ++c) {
      const Vec<C> d = kMasked ? load(d_out + c * L) * scale : load(d_out + c * L);
      dot = fma(d, load(g.x_l.node(j) + c * L), dot);
    }
    if (kMasked) dot = select(g.presence.between(j, i), dot, zero<C>());
    d_edge_weight[e] += reduce_add(dot);
    if (kMasked) {
      const Vec<C> norm = norm_of<kMasked>(g, e, j, i);
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
