// The gated scan over a range of nodes: what gated_scan itself is made of, and a fused layer too.
#pragma once

#include "memory.h"
#include "params.h"
#include "row_product.h"
#include "scratch.h"

namespace hiermt {
namespace cpu {
namespace HIERMT_ISA {

// The gates' parameters for products with lanes = hidden channels. V vectors of L lanes cover H channels;
// lanes past H are zero. The gates u, r, c of one input channel stand side by side.
template <class C>
struct PackedGates {
  int64_t vectors;    // V
  const C* bias;      // [V, 3, L]
  const C* input;     // [V, F + H, 3, L]   columns of x and g
  const C* state_ur;  // [V, H, 2, L]       columns of h
  const C* state_c;   // [V, H, 1, L]       columns of r * h
};

// The packed parameters live as long as `frame`; any thread may read them.
template <class S>
PackedGates<Compute<S>> pack_gates(const GateWeights<S>& weights, int64_t channels, int64_t hidden,
                                   ScratchFrame& frame);

// Nodes [begin, end) of p, on this thread. `g` is the row of node `begin`, [end - begin, T, H]; p.g is not
// read.
template <class S>
void gated_scan_forward_range(const GatedScanForward<S>& p, const PackedGates<Compute<S>>& packed,
                              int64_t begin, int64_t end, const S* g);

}  // namespace HIERMT_ISA
}  // namespace cpu
}  // namespace hiermt
