// The gated scan over a range of nodes: what gated_scan itself is made of, and a fused layer too.
#pragma once

#include "cpu/simd/memory.h"
#include "cpu/simd/row_product.h"
#include "cpu/support/scratch.h"
#include "params.h"

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

// Nodes [begin, end) of p, on this thread. `g` is the row of node `begin`, [end - begin, T, H], or else the
// input projection `z`, at p's strides; p.g is not read.
template <class S>
void gated_scan_forward_range(const GatedScanForward<S>& p, const PackedGates<Compute<S>>& packed,
                              int64_t begin, int64_t end, const S* g, const S* z);

// The gates' parameters for the products of the backward: lanes are input channels. `outputs` vectors of L
// lanes cover the channels of g and, if d_x is wanted, of x. Vectors are packed in pairs, a last one
// alone.
template <class C>
struct PackedGatesTransposed {
  int64_t vectors;    // V, covering H channels of h
  int64_t outputs;    // V, or V + vectors covering F channels of x
  const C* state_c;   // [V / 2, H, 2, L]              W_c of r * h
  const C* state_ur;  // [V / 2, 2, H, 2, L]           W_u, W_r of h
  const C* input;     // [outputs / 2, 3, H, 2, L]     W_u, W_r, W_c of g and x
};

template <class S>
PackedGatesTransposed<Compute<S>> pack_gates_transposed(const GateWeights<S>& weights, int64_t channels,
                                                        int64_t hidden, bool need_x, ScratchFrame& frame);

// Sums of parameter gradients as the backward collects them: [1 + F + 2H, 3, V L], rows for the bias and the
// columns of x, g and h (or r * h), gates u, r, c in each.
template <class C>
int64_t gate_sums_size(int64_t channels, int64_t hidden);

// Nodes [begin, end) of p, on this thread. `g` and `d_g` (or nullptr) are rows of node `begin`,
// [end - begin, T, H]; p.forward.g and p.d_g are not read. Adds to `sums`, or skips them when nullptr.
template <class S>
void gated_scan_backward_range(const GatedScanBackward<S, Compute<S>>& p,
                               const PackedGatesTransposed<Compute<S>>& packed, int64_t begin, int64_t end,
                               const S* g, S* d_g, Compute<S>* sums);

// grads = the sums of all groups, [groups, gate_sums_size], added in a fixed order.
template <class C>
void finish_gate_grads(const C* sums, int64_t groups, int64_t channels, int64_t hidden,
                       const GateGrads<C>& grads);

}  // namespace HIERMT_ISA
}  // namespace cpu
}  // namespace hiermt
