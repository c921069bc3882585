// One convolution of a stack, GATv2 or GCN as its packed parameters say.
#pragma once

#include "cpu/conv/gatv2_block.h"
#include "cpu/conv/gcn_block.h"

namespace hiermt::cpu::HIERMT_ISA {

template <class S, class C = Compute<S>>
PackedConv<C>* pack_convs(ScratchFrame& frame, const ConvStackForward<S>& p) {
  PackedConv<C>* convs = frame.take<PackedConv<C>>(p.conv_layers);
  for (int64_t k = 0; k < p.conv_layers; ++k) {
    const int64_t inputs = k == 0 ? p.x.channels : p.hidden;
    convs[k] =
        p.gat ? pack_gatv2(frame, p.gat[k], inputs, p.hidden) : pack_gcn(frame, p.gcn[k], inputs, p.hidden);
  }
  return convs;
}

// x_l and, for GATv2, x_r and the linear scores of the nodes [begin, end) of the tile x. With a mask x_l of a
// GCN is scaled, and all of it is zero in the lanes without the node.
template <class C>
HIERMT_INLINE void project(const PackedConv<C>& p, const TileSpan<const C>& x, const TileSpan<C>& x_l,
                           const TileSpan<C>& x_r, C* linear_score, const Presence<C>& presence,
                           int64_t begin, int64_t end) {
  product(p.lin_l, x, x_l, begin, end);
  if (!p.gat()) {
    if (presence.there) apply_scales(presence, x_l, p.padded, begin, end);
    return;
  }
  product(p.lin_r, x, x_r, begin, end);
  if (presence.there) {
    clear_absent(presence, x_l, p.padded, begin, end);
    clear_absent(presence, x_r, p.padded, begin, end);
  }
  linear_scores<C>(p, x_l, begin, end, linear_score);
  if (presence.there) no_scores(presence, begin, end, linear_score);
}

// run(kGat, kMasked) with the two as constants: a function for all four leaves the loops over entries fewer
// registers.
template <class Run>
HIERMT_INLINE void for_kind(bool gat, bool masked, Run&& run) {
  if (gat) {
    masked ? run(std::true_type{}, std::true_type{}) : run(std::true_type{}, std::false_type{});
  } else {
    masked ? run(std::false_type{}, std::true_type{}) : run(std::false_type{}, std::false_type{});
  }
}

// The output of target i after the activation, to `out`, which holds x_r[i] for GATv2. `score` has room for a
// vector per entry of the target, and kGat is p.gat(). With a mask it is zero in the lanes without the target.
template <bool kGat, bool kMasked, class C>
HIERMT_INLINE void convolve(const PackedConv<C>& p, const TileGraph<C>& g, int64_t i, C* out, C* score,
                            Activation activation) {
  if constexpr (!kGat) {
    aggregate<kMasked>(p, g, i, out, activation);
  } else if (g.edge_weight) {
    attend<true, kMasked>(p, g, i, out, score, activation);
  } else {
    attend<false, kMasked>(p, g, i, out, score, activation);
  }
}

}  // namespace hiermt::cpu::HIERMT_ISA
