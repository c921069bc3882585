// Gradients of the parameters and of the input of one convolution, GATv2 or GCN, on tiles, from the
// cotangents of x_l = W_l x + b_l and x_r = W_r x + b_r:
//
//   d_W_l = sum d_x_l x^T,  d_b_l = sum d_x_l  (over nodes and lanes),  d_x = W_l^T d_x_l + W_r^T d_x_r
#pragma once

#include "cpu/conv/conv_block.h"
#include "cpu/conv/lane_gradient.h"
#include "cpu/support/parallel.h"

namespace hiermt::cpu::HIERMT_ISA {

// Gradients of the parameters summed over the tasks of one group: the weights as scalars, the vectors with a
// lane per instance.
template <class C>
struct ConvSums {
  C* lin_l_weight;  // [inputs, columns]
  C* lin_r_weight;  // [inputs, columns]
  C* lin_l_bias;    // [padded][lane]
  C* lin_r_bias;
  C* att;
  C* lin_edge;  // without the factor att
  C* bias;

  // Elements of the weights, of the vectors with their lanes, and of all with the lanes added up.
  static int64_t weights(const PackedConv<C>& p) { return 2 * p.inputs * gradient_columns<C>(p.padded); }
  static int64_t lanes(const PackedConv<C>& p) { return kVectors * p.padded * kLanes<C>; }
  static int64_t totals(const PackedConv<C>& p) { return weights(p) + kVectors * p.padded; }

  // Views of `weights` and `lanes`, in the order above.
  static ConvSums over(const PackedConv<C>& p, C* weights, C* lanes) {
    const int64_t vector = p.padded * kLanes<C>;
    return {weights,
            weights + p.inputs * gradient_columns<C>(p.padded),
            lanes,
            lanes + vector,
            lanes + 2 * vector,
            lanes + 3 * vector,
            lanes + 4 * vector};
  }

  static constexpr int64_t kVectors = 5;
};

// The tiles of the backward of one convolution over a closed range of nodes.
template <class C>
struct BackwardTiles {
  int64_t nodes;
  TileSpan<const C> x;  // [inputs] channels, the others [padded]
  TileSpan<C> d_out;    // cotangent of the output before the activation
  TileSpan<C> x_l;
  TileSpan<C> x_r;  // d_x_r after attend_backward()
  TileSpan<C> d_x_l;
};

// Adds the gradients of lin_l, of lin_r unless the convolution is a GCN, and of the bias.
template <class C>
HIERMT_INLINE void add_projection_sums(const PackedConv<C>& p, const BackwardTiles<C>& t,
                                       const ConvSums<C>& sums) {
  const TileSpan<const C> d[] = {t.d_x_l, t.x_r}, d_out = t.d_out;
  C* const weights[] = {sums.lin_l_weight, sums.lin_r_weight};
  const int matrices = p.gat() ? 2 : 1;
  if (p.padded <= kSmallChannels && p.inputs <= kSmallChannels) {
    for (int m = 0; m < matrices; ++m)
      small_weight_gradient(d[m], p.padded, t.x, p.inputs, t.nodes, weights[m]);
  } else {
    large_weight_gradient(d, weights, matrices, p.padded, t.x, p.inputs, t.nodes);
  }
  bias_gradient(d_out, p.padded, t.nodes, sums.bias);
  if (!p.gat()) return;
  bias_gradient(d[0], p.padded, t.nodes, sums.lin_l_bias);
  bias_gradient(d[1], p.padded, t.nodes, sums.lin_r_bias);
}

// W_l^T and W_r^T; a GCN has no lin_r.
template <class C>
struct TransposedConv {
  PackedMatrix<C> lin_l, lin_r;
};
template <class S, class C = Compute<S>>
TransposedConv<C> pack_transposed(ScratchFrame& frame, const S* lin_l, const S* lin_r, int64_t inputs,
                                  int64_t hidden) {
  const int64_t padded = padded_channels(inputs);
  TransposedConv<C> t{
      {padded, hidden, pack_matrix(frame, lin_l, inputs, hidden, 1, inputs), zero_vector<C>(frame, inputs)},
      {}};
  if (lin_r) t.lin_r = {padded, hidden, pack_matrix(frame, lin_r, inputs, hidden, 1, inputs), nullptr};
  return t;
}

// d_x of the nodes [begin, end); row 0 of the tile is node `begin`.
template <class C>
HIERMT_INLINE void input_cotangent(const TransposedConv<C>& w, const BackwardTiles<C>& t, int64_t begin,
                                   int64_t end, const TileSpan<C>& d_x) {
  const TileSpan<const C> d_x_l = t.d_x_l.from(begin), d_x_r = t.x_r.from(begin);
  product(w.lin_l, d_x_l, d_x, 0, end - begin);
  if (w.lin_r.weight) product(w.lin_r, d_x_r, d_x, 0, end - begin);
}

// totals[k] = the sum of the lanes of vector k.
template <class C>
void reduce_lanes(const C* lanes, int64_t vectors, C* totals) {
  for (int64_t k = 0; k < vectors; ++k) totals[k] = reduce_add(load(lanes + k * kLanes<C>));
}

// Writes the wanted gradients: the totals of all groups, `stride` apart, added in the order of the groups.
template <class C>
void write_gradients(const PackedConv<C>& p, const C* totals, int64_t groups, int64_t stride,
                     const GatV2Grads<C>& grads) {
  const auto total = [&](int64_t k) {
    double sum = 0;
    for (int64_t g = 0; g < groups; ++g) sum += totals[g * stride + k];
    return static_cast<C>(sum);
  };
  const int64_t columns = gradient_columns<C>(p.padded), vectors = ConvSums<C>::weights(p);
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
    // Of no instance it is zero also where att is NaN or infinite.
    if (const C sum = total(vectors + 3 * p.padded + c); grads.lin_edge_weight)
      grads.lin_edge_weight[c] = sum == C(0) ? sum : p.att[c] * sum;
    if (grads.bias) grads.bias[c] = total(vectors + 4 * p.padded + c);
  }
}

}  // namespace hiermt::cpu::HIERMT_ISA
