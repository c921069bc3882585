#pragma once

namespace hiermt::cuda {

// The gradients that a convolution adds to its output instead of overwriting it, because several parts of a
// layer contribute to them.
struct Accumulate {
  bool d_x = false;
  bool edge_weight = false;
};

}  // namespace hiermt::cuda
