// The data of one graph convolution, GATv2 or GCN, on tiles [node][channel][lane]: a closed range of nodes
// and one chunk of instances at a time.
#pragma once

#include "cpu/conv/lane_product.h"
#include "cpu/conv/presence.h"
#include "cpu/simd/vmath.h"
#include "params.h"

namespace hiermt::cpu::HIERMT_ISA {

// The parameters of one convolution in compute precision; vectors are padded with zeros. A GCN has lin_l,
// without a bias, and bias.
template <class C>
struct PackedConv {
  int64_t inputs, hidden, padded;
  PackedMatrix<C> lin_l, lin_r;
  const C* att;           // nullptr: GCN
  const C* att_linear;    // 0.6 att
  const C* att_absolute;  // 0.4 att
  const C* lin_edge;      // W_e, zeros without an edge term
  const C* bias;
  C edge_linear;  // 0.6 att . W_e
  C above_half;   // kAboveHalf of the storage type
  bool gat() const { return att != nullptr; }
};

// The incoming entries of the nodes of one tile; row 0 of the tile is node `first`.
template <class C>
struct TileGraph {
  const int32_t* rowptr;
  const int32_t* col;
  const C* edge_weight;  // [E] weight (nullptr without an edge term) or norm; of a masked GCN the weight
  int64_t first;
  TileSpan<const C> x_l;
  const C* linear_score;  // [node][lane] 0.6 att . x_l, GATv2 only; -inf of an absent node
  Presence<C> presence;
  HIERMT_INLINE int64_t source(int64_t entry) const { return col[entry] - first; }
};

// The backward derives the sign of v from the stored value, so the value of a positive v must not round to
// one half.
template <class C>
HIERMT_INLINE Vec<C> activate(Vec<C> v, Activation activation, C above_half) {
  if (activation == Activation::kNone) return v;
  if (activation == Activation::kSigmoid) return sigmoid(v);
  const Vec<C> leaky = v > zero<C>() ? v : v * broadcast(C(kActivationSlope));
  if (activation == Activation::kLeakyRelu) return leaky;
  const Vec<C> value = sigmoid(leaky);
  return select(v > zero<C>(), max(value, broadcast(above_half)), value);
}

// out = activation(out) of target i, and 0 in the lanes without it. A loop of its own: its constants would leave
// the sums over entries too few registers.
template <bool kMasked, class C>
HIERMT_INLINE void activate_channels(const PackedConv<C>& p, const TileGraph<C>& g, int64_t i, C* out,
                                     Activation activation) {
  constexpr int L = kLanes<C>;
  for (int64_t c = 0; c < p.padded; ++c) {
    const Vec<C> value = activate<C>(load(out + c * L), activation, p.above_half);
    if constexpr (kMasked) {
      store(out + c * L, select(g.presence.at(i), value, zero<C>()));
    } else {
      store(out + c * L, value);
    }
  }
}

}  // namespace hiermt::cpu::HIERMT_ISA
