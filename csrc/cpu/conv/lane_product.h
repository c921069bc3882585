// y = W x + b on tiles [node][channel][lane]. A weight is a scalar for all lanes; the sums of kNodeTile nodes
// times kOutTile outputs stay in registers while the inputs stream by.
#pragma once

#include "cpu/simd/memory.h"
#include "cpu/simd/simd.h"
#include "cpu/support/scratch.h"

namespace hiermt::cpu::HIERMT_ISA {

// Three nodes times a quarter of the registers: the most sums that fit beside three inputs and a weight.
constexpr int kOutTile = kRegisters / 4;
constexpr int kNodeTile = 3;
static_assert(kOutTile * kNodeTile + kNodeTile + 1 <= kRegisters, "accumulators, inputs and a weight");

// Channels of a tile written by product(): rounded up, and zero past `channels`.
HIERMT_INLINE int64_t padded_channels(int64_t channels) {
  return (channels + kOutTile - 1) / kOutTile * kOutTile;
}

// A weight matrix in compute precision, [outputs / kOutTile][input][kOutTile], padded with zeros.
template <class C>
struct PackedMatrix {
  int64_t outputs, inputs;  // outputs: padded
  const C* weight;
  const C* bias;  // [outputs], or nullptr: add to y
};

template <class C>
struct TileSpan {
  C* data;
  int64_t node_stride;  // elements: channels * kLanes
  HIERMT_INLINE C* node(int64_t n) const { return data + n * node_stride; }
  // The same tiles from node n on.
  HIERMT_INLINE TileSpan from(int64_t n) const { return {node(n), node_stride}; }
  HIERMT_INLINE operator TileSpan<const C>() const { return {data, node_stride}; }
};

// Uninitialised tiles.
template <class C>
TileSpan<C> take_tiles(ScratchFrame& frame, int64_t nodes, int64_t channels) {
  return {frame.take<C>(nodes * channels * kLanes<C>), channels * kLanes<C>};
}

// Packs element (o, i) = weight[o * stride_output + i * stride_input].
template <class S, class C = Compute<S>>
const C* pack_matrix(ScratchFrame& frame, const S* weight, int64_t outputs, int64_t inputs,
                     int64_t stride_output, int64_t stride_input) {
  const int64_t padded = padded_channels(outputs);
  C* packed = frame.take<C>(padded * inputs);
  for (int64_t o = 0; o < padded; ++o) {
    for (int64_t i = 0; i < inputs; ++i) {
      packed[(o / kOutTile * inputs + i) * kOutTile + o % kOutTile] =
          o < outputs ? to_compute(weight[o * stride_output + i * stride_input]) : C(0);
    }
  }
  return packed;
}

template <class S, class C = Compute<S>>
C* pack_vector(ScratchFrame& frame, const S* vector, int64_t count, C scale = C(1)) {
  const int64_t padded = padded_channels(count);
  C* packed = frame.take<C>(padded);
  for (int64_t i = 0; i < padded; ++i) packed[i] = i < count ? scale * to_compute(vector[i]) : C(0);
  return packed;
}

template <class C>
C* zero_vector(ScratchFrame& frame, int64_t count) {
  const int64_t padded = padded_channels(count);
  C* zeros = frame.take<C>(padded);
  for (int64_t i = 0; i < padded; ++i) zeros[i] = C(0);
  return zeros;
}

namespace detail {

template <int kNodes, class C>
HIERMT_INLINE void product_block(const TileSpan<const C>& x, int64_t node, int64_t inputs, const C* weight,
                                 const C* bias, const TileSpan<C>& y, int64_t output) {
  constexpr int L = kLanes<C>;
  Vec<C> sum[kNodes][kOutTile];
  for (int n = 0; n < kNodes; ++n) {
    for (int o = 0; o < kOutTile; ++o) {
      sum[n][o] = bias ? broadcast(bias[o]) : load(y.node(node + n) + (output + o) * L);
    }
  }
  const C* column = x.node(node);
  for (int64_t i = 0; i < inputs; ++i, column += L, weight += kOutTile) {
    Vec<C> v[kNodes];
    for (int n = 0; n < kNodes; ++n) v[n] = load(column + n * x.node_stride);
    for (int o = 0; o < kOutTile; ++o) {
      const Vec<C> w = broadcast(weight[o]);
      for (int n = 0; n < kNodes; ++n) sum[n][o] = fma(w, v[n], sum[n][o]);
    }
  }
  for (int n = 0; n < kNodes; ++n) {
    for (int o = 0; o < kOutTile; ++o) store(y.node(node + n) + (output + o) * L, sum[n][o]);
  }
}

}  // namespace detail

// y[n] = W x[n] + b for the nodes [begin, end), or y[n] += W x[n] without a bias.
template <class C>
HIERMT_INLINE void product(const PackedMatrix<C>& matrix, const TileSpan<const C>& x, const TileSpan<C>& y,
                           int64_t begin, int64_t end) {
  int64_t node = begin;
  for (; node + kNodeTile <= end; node += kNodeTile) {
    for (int64_t o = 0; o < matrix.outputs; o += kOutTile) {
      detail::product_block<kNodeTile>(x, node, matrix.inputs, matrix.weight + o * matrix.inputs,
                                       matrix.bias ? matrix.bias + o : nullptr, y, o);
    }
  }
  for (; node < end; ++node) {
    for (int64_t o = 0; o < matrix.outputs; o += kOutTile) {
      detail::product_block<1>(x, node, matrix.inputs, matrix.weight + o * matrix.inputs,
                               matrix.bias ? matrix.bias + o : nullptr, y, o);
    }
  }
}

}  // namespace hiermt::cpu::HIERMT_ISA
