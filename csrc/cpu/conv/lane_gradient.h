// Gradients of the weight and the bias of y = W x + b on tiles [node][channel][lane]: d_W = sum d x^T and
// d_b = sum d over nodes and lanes, with d the cotangent of y.
#pragma once

#include "cpu/conv/lane_product.h"
#include "cpu/simd/row_product.h"

namespace hiermt::cpu::HIERMT_ISA {

// Inputs and outputs of a small matrix: its x and d stay in the first-level cache with a lane per instance.
constexpr int64_t kSmallChannels = 16;
// Nodes that a small matrix multiplies at once.
constexpr int64_t kGradientNodes = 20;
// Rows, a node and lane each, that a large matrix multiplies at once: their vectors stay in that cache.
constexpr int64_t kGradientRows = 128;
// Vectors of outputs that a large matrix accumulates together in registers.
constexpr int kGradientVectors = 3;

// Columns of the sum of a weight gradient, [inputs][columns]: the outputs rounded up to whole vectors.
template <class C>
HIERMT_INLINE int64_t gradient_columns(int64_t padded) {
  return (padded + kLanes<C> - 1) / kLanes<C> * kLanes<C>;
}

// The second level of a sum whose first level is a target or a task: fewer roundings in a row than one long
// sum.
template <class C>
HIERMT_INLINE void add_to(C* sum, Vec<C> value) {
  store(sum, load(sum) + value);
}

namespace detail {

// sum[i][o][lane] += the sum over nodes of d[o] * x[i], for kOutTile outputs and kInputs inputs.
template <int kInputs, class C>
HIERMT_INLINE void small_gradient_block(const TileSpan<const C>& d, int64_t output, int64_t outputs,
                                        const TileSpan<const C>& x, int64_t input, int64_t nodes, C* sum) {
  constexpr int L = kLanes<C>;
  C* const to = sum + (input * outputs + output) * L;
  Vec<C> acc[kInputs][kOutTile];
  for (int i = 0; i < kInputs; ++i) {
    for (int o = 0; o < kOutTile; ++o) acc[i][o] = load(to + (i * outputs + o) * L);
  }
  for (int64_t n = 0; n < nodes; ++n) {
    const C* column = x.node(n) + input * L;
    const C* cotangent = d.node(n) + output * L;
    Vec<C> v[kInputs];
    for (int i = 0; i < kInputs; ++i) v[i] = load(column + i * L);
    for (int o = 0; o < kOutTile; ++o) {
      const Vec<C> dv = load(cotangent + o * L);
      for (int i = 0; i < kInputs; ++i) acc[i][o] = fma(dv, v[i], acc[i][o]);
    }
  }
  for (int i = 0; i < kInputs; ++i) {
    for (int o = 0; o < kOutTile; ++o) store(to + (i * outputs + o) * L, acc[i][o]);
  }
}

// rows[n * L + lane][channel] = tile.node(n)[channel][lane], in whole vectors of channels padded with zeros.
template <class C>
HIERMT_INLINE void rows_of_tiles(const TileSpan<const C>& tile, int64_t nodes, int64_t channels, C* rows,
                                 int64_t stride) {
  constexpr int L = kLanes<C>;
  for (int64_t n = 0; n < nodes; ++n) {
    for (int64_t c = 0; c < channels; c += L) {
      Vec<C> block[L];
      for (int k = 0; k < L; ++k) block[k] = c + k < channels ? load(tile.node(n) + (c + k) * L) : zero<C>();
      transpose(block);
      for (int l = 0; l < L; ++l) store(rows + (n * L + l) * stride + c, block[l]);
    }
  }
}

}  // namespace detail

// sum[i][o] += the sum over nodes and lanes of d[o] * x[i], for a matrix of at most kSmallChannels inputs and
// outputs. `outputs` is padded; a row of `sum` has gradient_columns(outputs) elements. A few nodes at a time and
// a lane for each sum stay in the first-level cache together.
template <class C>
HIERMT_INLINE void small_weight_gradient(const TileSpan<const C>& d, int64_t outputs,
                                         const TileSpan<const C>& x, int64_t inputs, int64_t nodes, C* sum) {
  constexpr int L = kLanes<C>;
  ScratchFrame frame;
  const int64_t columns = gradient_columns<C>(outputs);
  C* lanes = frame.take<C>(inputs * outputs * L);
  for (int64_t k = 0; k < inputs * outputs; ++k) store(lanes + k * L, zero<C>());
  for (int64_t n = 0; n < nodes; n += kGradientNodes) {
    const int64_t count = min(nodes - n, kGradientNodes);
    const TileSpan<const C> d_part = d.from(n), x_part = x.from(n);
    for (int64_t o = 0; o < outputs; o += kOutTile) {
      int64_t i = 0;
      for (; i + 3 <= inputs; i += 3)
        detail::small_gradient_block<3>(d_part, o, outputs, x_part, i, count, lanes);
      if (inputs - i == 2) detail::small_gradient_block<2>(d_part, o, outputs, x_part, i, count, lanes);
      if (inputs - i == 1) detail::small_gradient_block<1>(d_part, o, outputs, x_part, i, count, lanes);
    }
  }
  for (int64_t i = 0; i < inputs; ++i) {
    for (int64_t o = 0; o < outputs; o += L) {
      Vec<C> rows[L];
      for (int l = 0; l < L; ++l) {
        rows[l] = o + l < outputs ? load(lanes + (i * outputs + o + l) * L) : zero<C>();
      }
      C* const to = sum + i * columns + o;
      store(to, load(to) + reduce_each(rows));
    }
  }
}

// The same for any size and for one or two matrices that share x. d and x are transposed to rows with
// channels on the lanes, a few nodes at a time, so that each loaded value is used many times.
template <class C>
void large_weight_gradient(const TileSpan<const C>* d, C* const* sum, int matrices, int64_t outputs,
                           const TileSpan<const C>& x, int64_t inputs, int64_t nodes) {
  constexpr int L = kLanes<C>;
  ScratchFrame frame;
  const int64_t columns = gradient_columns<C>(outputs), vectors = columns / L;
  // An odd number of vectors per row spreads a column over all sets of the cache.
  const int64_t x_stride = (gradient_columns<C>(inputs) / L | 1) * L, d_stride = (vectors | 1) * L;
  C* x_rows = frame.take<C>(kGradientRows * x_stride);
  C* d_rows = frame.take<C>(kGradientRows * d_stride);
  for (int64_t n = 0; n < nodes; n += kGradientRows / L) {
    const int64_t count = min(nodes - n, kGradientRows / L), rows = count * L;
    detail::rows_of_tiles(x.from(n), count, inputs, x_rows, x_stride);
    for (int m = 0; m < matrices; ++m) {
      detail::rows_of_tiles(d[m].from(n), count, outputs, d_rows, d_stride);
      int64_t v = 0;
      for (; v + kGradientVectors <= vectors; v += kGradientVectors) {
        add_outer_product<kGradientVectors>(sum[m] + v * L, columns, x_rows, x_stride, inputs, d_rows + v * L,
                                            d_stride, int64_t{L}, rows);
      }
      for (; v < vectors; ++v) {
        add_outer_product<1>(sum[m] + v * L, columns, x_rows, x_stride, inputs, d_rows + v * L, d_stride,
                             int64_t{L}, rows);
      }
    }
  }
}

// sum[o][lane] += the sum over the nodes of d[n][o].
template <class C>
HIERMT_INLINE void bias_gradient(const TileSpan<const C>& d, int64_t outputs, int64_t nodes, C* sum) {
  constexpr int L = kLanes<C>;
  for (int64_t o = 0; o < outputs; o += kOutTile) {
    Vec<C> acc[kOutTile];
    for (int k = 0; k < kOutTile; ++k) acc[k] = zero<C>();
    for (int64_t n = 0; n < nodes; ++n) {
      for (int k = 0; k < kOutTile; ++k) acc[k] += load(d.node(n) + (o + k) * L);
    }
    for (int k = 0; k < kOutTile; ++k) add_to(sum + (o + k) * L, acc[k]);
  }
}

}  // namespace hiermt::cpu::HIERMT_ISA
