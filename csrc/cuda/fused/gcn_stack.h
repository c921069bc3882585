// A stack of GCN convolutions and what the gates of the layer read of x and g, in one launch: for graphs
// whose template fits the shared memory of a block, 8, 16, 32 or 64 channels, and any storage type but double.
#pragma once

#include "cuda/support/stream.h"
#include "params.h"
#include "types.h"

namespace hiermt::cuda {

template <class S>
bool gcn_stack_fits(const ConvStackForward<S>& p);

// As gatv2_stack_forward.
template <class S>
void gcn_stack_forward(const ConvStackForward<S>& p, const GateWeights<S>& gates,
                       Compute<S>* input_projection, Stream& on);

}  // namespace hiermt::cuda
