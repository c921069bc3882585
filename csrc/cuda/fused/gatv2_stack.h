// The convolution stack of a layer and what its gates read of x and g, in one launch: for graphs whose
// template fits the shared memory of a block, 8, 16, 32 or 64 channels, and any storage type but double.
#pragma once

#include "cuda/operators.h"
#include "params.h"
#include "types.h"

namespace hiermt::cuda {

template <class S>
bool gatv2_stack_fits(const ConvStackForward<S>& p);

// input_projection [N * T, 3H]: W [x, out] + b of the three gates, or nullptr: without gates. Writes p.out if
// it is given.
template <class S>
void gatv2_stack_forward(const ConvStackForward<S>& p, const GateWeights<S>& gates,
                         Compute<S>* input_projection, Stream& on);

// The way back, for templates that fit, too: from the cotangent of the output to those of x, of the convolutions'
// parameters and of the edge weights. d_out may be overwritten where it is given besides p.d_out. Sums the gradients of
// the gates over their chunks, too, where there are any.
template <class S>
bool gatv2_stack_backward_fits(const ConvStackForward<S>& p);
template <class S>
void gatv2_stack_backward(const ConvStackBackward<S, Compute<S>>& p, const GateGradChunks<Compute<S>>& gates,
                          S* d_out, Stream& on);

}  // namespace hiermt::cuda
