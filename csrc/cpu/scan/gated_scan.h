// Building blocks of the gated scan (arXiv 1811.05320, eqs. 3 to 6), over a range of nodes:
//
//   u = sigmoid(z_u),  r = sigmoid(z_r),  c = tanh(z_c),  h_t = u h + (1 - u) c
//
// with z = W [x, g, h] + b, and r h in place of h for z_c. The input projection is the part W [x, g] + b of
// z. L is the number of lanes of a vector; vectors = ceil(H / L).
#pragma once

#include "cpu/simd/memory.h"
#include "cpu/simd/row_product.h"
#include "cpu/support/scratch.h"
#include "params.h"

namespace hiermt::cpu::HIERMT_ISA {

// The parameters of the gates u, r, c, interleaved for products whose lanes are hidden channels; lanes past H
// are zero.
template <class C>
struct PackedGates {
  int64_t vectors;
  const C* bias;      // [vectors, 3, L]
  const C* input;     // [vectors, inputs, 3, L]  columns of x and g
  const C* state_ur;  // [vectors, H, 2, L]       columns of h
  const C* state_c;   // [vectors, H, L]          columns of r h
};

// `inputs` counts the channels of x and g, here and below. The result lives as long as `frame`; any thread may
// read it.
template <class S>
PackedGates<Compute<S>> pack_gates(const GateWeights<S>& weights, int64_t inputs, int64_t hidden,
                                   ScratchFrame& frame);

// z = W [x, g] + b: vector v of the gates u, r, c in kBlockRows rows of x and g, x_stride and g_stride apart.
template <class C>
HIERMT_INLINE void input_projection(const PackedGates<C>& packed, int64_t v, const C* x, int64_t x_stride,
                                    int64_t channels, const C* g, int64_t g_stride, int64_t g_channels,
                                    Vec<C> (&z)[3][kBlockRows]) {
  constexpr int L = kLanes<C>;
  const C* input = packed.input + v * (channels + g_channels) * 3 * L;
  for (int gate = 0; gate < 3; ++gate) {
    for (int i = 0; i < kBlockRows; ++i) z[gate][i] = load(packed.bias + (v * 3 + gate) * L);
  }
  add_product<3>(z, x, x_stride, channels, input);
  add_product<3>(z, g, g_stride, g_channels, input + channels * 3 * L);
}

// Input projection of the gates u, r and c, computed before: [3, H] a node and step.
template <class S>
struct InputProjection {
  const S* data;
  int64_t stride_node;
  int64_t stride_time;
  const bool* present;  // of the first node and step, nodes `stride_present` apart; nullptr: all are there
  int64_t stride_present;
};

// The nodes [begin, end) of p, on this thread, from the input projection `z` of the nodes from `begin` on, or
// from x and p.g if z is nullptr.
template <class S>
void gated_scan_forward_range(const GatedScanForward<S>& p, const PackedGates<Compute<S>>& packed,
                              int64_t begin, int64_t end, const InputProjection<S>* z);

// The scan over windows.
template <class S>
void gated_scan_windows_forward(const GatedScanForward<S>& p);
template <class S>
void gated_scan_windows_backward(const GatedScanBackward<S, Compute<S>>& p);

// The parameters of the gates for the products of the backward, whose lanes are input channels. Vectors are
// packed in pairs, and an odd last one alone.
template <class C>
struct PackedGatesTransposed {
  int64_t vectors;    // of the channels of h
  int64_t g_vectors;  // of the channels of g
  int64_t outputs;    // of the channels of g and, if d_x is wanted, of x
  const C* state_c;   // [vectors / 2, H, 2, L]       W_c of r h
  const C* state_ur;  // [vectors / 2, 2, H, 2, L]    W_u, W_r of h
  const C* input;     // [outputs / 2, 3, H, 2, L]    W_u, W_r, W_c of g and x
};

template <class S>
PackedGatesTransposed<Compute<S>> pack_gates_transposed(const GatedScanForward<S>& p, bool need_x,
                                                        ScratchFrame& frame);

// Cotangents of [g, x]: the vectors [v, v + kVectors) of kRows rows, from the rows d_z [3, vectors L], row_stride
// apart.
template <int kVectors, int kRows, class C>
HIERMT_INLINE void input_cotangents(const PackedGatesTransposed<C>& packed, int64_t v, const C* d_z,
                                    int64_t row_stride, int64_t hidden, Vec<C> (&d_input)[kVectors][kRows]) {
  constexpr int L = kLanes<C>;
  const C* weights = packed.input + v * 3 * hidden * L;
  // Without lanes past H the gates of a row are one row.
  const int together = packed.vectors * L == hidden ? 3 : 1;
  for (int gate = 0; gate < 3; gate += together) {
    add_product<kVectors>(d_input, d_z + gate * packed.vectors * L, row_stride, together * hidden,
                          weights + gate * hidden * kVectors * L);
  }
}

// to = [1, 0, 0], in place of copy_inputs() for a node that is not there: what it has may be NaN.
template <class C>
HIERMT_INLINE void no_inputs(C* to, int64_t channels, int64_t g_channels) {
  to[0] = C(1);
  for (int64_t c = 1; c < 1 + channels + g_channels; ++c) to[c] = C(0);
}

// to = [1, x, g], the factors of the gradients of the bias and of the columns of x and g. The last store may
// run over by less than a vector.
template <class S>
HIERMT_INLINE void copy_inputs(Compute<S>* to, const S* x, int64_t stride_channel, int64_t channels,
                               const S* g, int64_t g_channels) {
  to[0] = Compute<S>(1);
  copy_row(to + 1, x, stride_channel, channels);
  copy_row(to + 1 + channels, g, 1, g_channels);
}

// Elements of the sums of parameter gradients, [1 + inputs + H, 3, vectors L]: rows for the bias and the columns
// of x, g and h (or r h), with the gates u, r, c in each.
template <class C>
int64_t gate_sums_size(int64_t inputs, int64_t hidden);

// grads = the sums [groups, gate_sums_size], added over the groups in a fixed order.
template <class C>
void finish_gate_grads(const C* sums, int64_t groups, int64_t inputs, int64_t hidden,
                       const GateGrads<C>& grads);

}  // namespace hiermt::cpu::HIERMT_ISA
