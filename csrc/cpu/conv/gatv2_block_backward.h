// The adjoint of gatv2_block.h. Nothing but x and the cotangent of the pre-activation output is read; scores
// and attention are computed again. With d_i the cotangent of out_i before the activation:
//
//   da_e = d_i . x_l[j]                        ds_e = a_e (da_e - sum_k a_k da_k)
//   q_e  = ds_e leaky'(z_e)                    datt = sum_e leaky(z_e) ds_e = sum_e q_e z_e
//   dx_l[j] += a_e d_i + att q_e               dx_r[i] = att sum_e q_e
//   dW_e = att sum_e w_e q_e                   dw_e = sum_c W_e att q_e
#pragma once

#include "cpu/conv/gatv2_block.h"
#include "cpu/conv/lane_gradient.h"
#include "cpu/support/parallel.h"

namespace hiermt {
namespace cpu {
namespace HIERMT_ISA {

// Sums over nodes and instances that the tasks of one group share: scalars for the weights, a vector of lanes
// for each channel of the rest.
template <class C>
struct GatV2Sums {
  C* left_weight;   // [inputs, columns]
  C* right_weight;  // [inputs, columns]
  C* left_bias;     // [padded][lane]
  C* right_bias;
  C* att;
  C* edge;  // still to be multiplied with att
  C* bias;

  // Elements of the sums over the weights and, without their lanes, of all.
  static int64_t weights(int64_t padded, int64_t inputs) { return 2 * inputs * gradient_columns<C>(padded); }
  static int64_t totals(int64_t padded, int64_t inputs) {
    return weights(padded, inputs) + kVectors * padded;
  }
  static int64_t lanes(int64_t padded) { return kVectors * padded * kLanes<C>; }

  // The sums laid out in the order above, the weights in `weights` and the rest in `lanes`.
  static GatV2Sums over(C* weights, C* lanes, int64_t padded, int64_t inputs) {
    const int64_t vector = padded * kLanes<C>;
    return {weights,
            weights + inputs * gradient_columns<C>(padded),
            lanes,
            lanes + vector,
            lanes + 2 * vector,
            lanes + 3 * vector,
            lanes + 4 * vector};
  }

 private:
  static constexpr int64_t kVectors = 5;
};

// Writable room for the entries of one target.
template <class C>
struct EntryScratch {
  C* score;     // [degree][lane] scores, then attention
  C* dscore;    // [degree][lane] their cotangents
  C* edge_dot;  // [degree][lane], read with an edge weight gradient only
};

namespace detail {

// score[e] = a_e, dscore[e] = ds_e
template <bool kEdge, class C>
HIERMT_INLINE void score_cotangents(const GatV2Packed<C>& p, const Neighbourhood<C>& g, int64_t begin,
                                    int64_t end, const C* right, const C* dout,
                                    const EntryScratch<C>& scratch) {
  constexpr int L = kLanes<C>;
  const int64_t degree = end - begin;
  const Vec<C> scale = attention<kEdge>(p, g, begin, end, right, scratch.score);
  for (int64_t c = 0; c < p.padded; c += kOutTile) {
    Vec<C> d[kOutTile];
    for (int k = 0; k < kOutTile; ++k) d[k] = load(dout + (c + k) * L);
    for (int64_t e = begin; e < end; ++e) {
      const C* source = g.left.node(g.source(e)) + c * L;
      C* slot = scratch.dscore + (e - begin) * L;
      Vec<C> even = c > 0 ? load(slot) : zero<C>(), odd = zero<C>();
      for (int k = 0; k < kOutTile; k += 2) {
        even = fma(d[k], load(source + k * L), even);
        odd = fma(d[k + 1], load(source + (k + 1) * L), odd);
      }
      store(slot, even + odd);
    }
  }
  Vec<C> mean = zero<C>();
  for (int64_t e = 0; e < degree; ++e) {
    const Vec<C> a = load(scratch.score + e * L) * scale;
    store(scratch.score + e * L, a);
    mean = fma(a, load(scratch.dscore + e * L), mean);
  }
  for (int64_t e = 0; e < degree; ++e) {
    store(scratch.dscore + e * L, load(scratch.score + e * L) * (load(scratch.dscore + e * L) - mean));
  }
}

}  // namespace detail

// One target: reads x_r[i] from `right` and leaves dx_r[i] there, adds to dx_l of the sources and to the
// sums. edge_gradient[e] receives the sum over the lanes of dw_e, or is nullptr.
template <bool kEdge, bool kEdgeGradient, class C>
HIERMT_INLINE void attend_backward(const GatV2Packed<C>& p, const Neighbourhood<C>& graph, int64_t i,
                                   const C* dout, C* right, const TileSpan<C>& dleft_tiles,
                                   const GatV2Sums<C>& sums, const EntryScratch<C>& entry_scratch,
                                   C* edge_gradient) {
  constexpr int L = kLanes<C>;
  constexpr int kBlock = kOutTile / 2;
  // Copies that no store of the loops can alias, so that they stay in registers.
  const Neighbourhood<C> g = graph;
  const TileSpan<C> dleft = dleft_tiles;
  const EntryScratch<C> scratch = entry_scratch;
  const int64_t begin = g.rowptr[g.first + i], end = g.rowptr[g.first + i + 1];
  detail::score_cotangents<kEdge>(p, g, begin, end, right, dout, scratch);
  const Vec<C> slope = broadcast(C(kAttentionSlope));
  for (int64_t c = 0; c < p.padded; c += kBlock) {
    Vec<C> target[kBlock], d[kBlock], att[kBlock], edge[kBlock], sum_q[kBlock], sum_qz[kBlock],
        sum_wq[kBlock];
    for (int k = 0; k < kBlock; ++k) {
      target[k] = load(right + (c + k) * L);
      d[k] = load(dout + (c + k) * L);
      att[k] = broadcast(p.att[c + k]);
      edge[k] = broadcast(p.edge[c + k]);
      sum_q[k] = zero<C>();
      sum_qz[k] = zero<C>();
      sum_wq[k] = zero<C>();
    }
    for (int64_t e = begin; e < end; ++e) {
      const int64_t j = g.source(e);
      const C* source = g.left.node(j) + c * L;
      C* dsource = dleft.node(j) + c * L;
      const Vec<C> weight = broadcast(kEdge ? g.edge_weight[e] : C(0));
      const Vec<C> a = load(scratch.score + (e - begin) * L);
      const Vec<C> ds = load(scratch.dscore + (e - begin) * L);
      const Vec<C> ds_below = ds * slope;
      Vec<C> dot = zero<C>();
      if (kEdgeGradient && c > 0) dot = load(scratch.edge_dot + (e - begin) * L);
      for (int k = 0; k < kBlock; ++k) {
        const Vec<C> z = (kEdge ? fma(edge[k], weight, target[k]) : target[k]) + load(source + k * L);
        const Vec<C> q = z > zero<C>() ? ds : ds_below;
        sum_q[k] += q;
        sum_qz[k] = fma(q, z, sum_qz[k]);
        if (kEdge) sum_wq[k] = fma(q, weight, sum_wq[k]);
        if (kEdgeGradient) dot = fma(q, att[k] * edge[k], dot);
        store(dsource + k * L, fma(att[k], q, fma(a, d[k], load(dsource + k * L))));
      }
      if (kEdgeGradient) store(scratch.edge_dot + (e - begin) * L, dot);
    }
    for (int k = 0; k < kBlock; ++k) {
      store(right + (c + k) * L, att[k] * sum_q[k]);
      add_to(sums.att + (c + k) * L, sum_qz[k]);
      if (kEdge) add_to(sums.edge + (c + k) * L, sum_wq[k]);
    }
  }
  if (kEdgeGradient) {
    for (int64_t e = begin; e < end; ++e)
      edge_gradient[e] += reduce_add(load(scratch.edge_dot + (e - begin) * L));
  }
}

// The tiles of one convolution's backward over a closed range of `nodes` nodes.
template <class C>
struct GatV2BackwardTiles {
  int64_t nodes;
  TileSpan<const C> x;      // [inputs]
  TileSpan<C> dout;         // [padded] cotangent of the output before the activation
  TileSpan<C> left, right;  // [padded] x_l and x_r; `right` holds dx_r afterwards
  TileSpan<C> dleft;        // [padded] dx_l
};

// The gradients of both projections (of the left one alone for a GCN) and of the bias.
template <class C>
HIERMT_INLINE void projection_sums(const GatV2Packed<C>& p, const GatV2BackwardTiles<C>& t,
                                   const GatV2Sums<C>& sums, bool with_right) {
  const TileSpan<const C> d[] = {t.dleft, t.right}, dout = t.dout;
  C* const weights[] = {sums.left_weight, sums.right_weight};
  const int matrices = with_right ? 2 : 1;
  if (p.padded <= kNarrowChannels && p.inputs <= kNarrowChannels) {
    for (int m = 0; m < matrices; ++m)
      narrow_weight_gradient(d[m], p.padded, t.x, p.inputs, t.nodes, weights[m]);
  } else {
    wide_weight_gradient(d, weights, matrices, p.padded, t.x, p.inputs, t.nodes);
  }
  bias_gradient(dout, p.padded, t.nodes, sums.bias);
  if (!with_right) return;
  bias_gradient(d[0], p.padded, t.nodes, sums.left_bias);
  bias_gradient(d[1], p.padded, t.nodes, sums.right_bias);
}

// W_l and W_r transposed, for dx = W_l^T dx_l + W_r^T dx_r; a GCN has no `right`.
template <class C>
struct GatV2Transposed {
  PackedMatrix<C> left, right;
};
template <class S, class C = Compute<S>>
GatV2Transposed<C> pack_transposed(ScratchFrame& frame, const S* left, const S* right, int64_t inputs,
                                   int64_t hidden) {
  const int64_t padded = padded_channels(inputs);
  C* none = frame.take<C>(padded);
  for (int64_t i = 0; i < padded; ++i) none[i] = C(0);
  GatV2Transposed<C> t{{padded, hidden, pack_matrix(frame, left, inputs, hidden, 1, inputs), none}, {}};
  if (right) t.right = {padded, hidden, pack_matrix(frame, right, inputs, hidden, 1, inputs), nullptr};
  return t;
}

// dx of the nodes [begin, end), into the rows from 0 on of `dx`.
template <class C>
HIERMT_INLINE void input_cotangent(const GatV2Transposed<C>& w, const GatV2BackwardTiles<C>& t, int64_t begin,
                                   int64_t end, const TileSpan<C>& dx) {
  const TileSpan<const C> dleft = t.dleft.from(begin), dright = t.right.from(begin);
  product(w.left, dleft, dx, 0, end - begin);
  if (w.right.weight) product(w.right, dright, dx, 0, end - begin);
}

// Adds up the lanes: totals[k] for each of `vectors` vectors.
template <class C>
void reduce_lanes(const C* lanes, int64_t vectors, C* totals) {
  for (int64_t k = 0; k < vectors; ++k) totals[k] = reduce_add(load(lanes + k * kLanes<C>));
}

// Writes the gradients that are wanted from totals[group * stride + k], added up in the order of the groups.
template <class C>
void write_gradients(const GatV2Packed<C>& p, const C* totals, int64_t groups, int64_t stride,
                     const GatV2Grads<C>& grads) {
  const auto total = [&](int64_t k) {
    double sum = 0;
    for (int64_t g = 0; g < groups; ++g) sum += totals[g * stride + k];
    return static_cast<C>(sum);
  };
  const int64_t columns = gradient_columns<C>(p.padded), vectors = GatV2Sums<C>::weights(p.padded, p.inputs);
  C* const weights[] = {grads.lin_l_weight, grads.lin_r_weight};
  parallel_for(2 * p.inputs, [&](int64_t row) {
    C* gradient = weights[row / p.inputs];
    for (int64_t c = 0; c < (gradient ? p.hidden : 0); ++c)
      gradient[c * p.inputs + row % p.inputs] = total(row * columns + c);
  });
  for (int64_t c = 0; c < p.hidden; ++c) {
    if (grads.lin_l_bias) grads.lin_l_bias[c] = total(vectors + c);
    if (grads.lin_r_bias) grads.lin_r_bias[c] = total(vectors + p.padded + c);
    if (grads.att) grads.att[c] = total(vectors + 2 * p.padded + c);
    if (grads.lin_edge_weight) grads.lin_edge_weight[c] = p.att[c] * total(vectors + 3 * p.padded + c);
    if (grads.bias) grads.bias[c] = total(vectors + 4 * p.padded + c);
  }
}

}  // namespace HIERMT_ISA
}  // namespace cpu
}  // namespace hiermt
