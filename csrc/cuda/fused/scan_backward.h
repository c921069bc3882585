// The whole backward of a gated scan in one launch: for up to 16 channels of x and of the state, and any storage type but
// double.
#pragma once

#include "cuda/operators.h"
#include "params.h"

namespace hiermt::cuda {

// Without windows, and with g.
template <class S>
bool fused_scan_backward_fits(const GatedScanForward<S>& p);

// Writes the gradients of x, g and h0 that are given, and leaves those of the weights in partial sums: `partial` has
// fused_scan_backward_values(p) values. Returns how many partial sums there are.
template <class S>
int64_t fused_scan_backward_values(const GatedScanForward<S>& p);
template <class S>
int64_t fused_scan_backward(const GatedScanBackward<S, Compute<S>>& p, Compute<S>* partial, Stream& on);

}  // namespace hiermt::cuda
