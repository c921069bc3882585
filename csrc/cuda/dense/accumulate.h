#pragma once

namespace hiermt::cuda {

// Which gradients a convolution adds to what is there instead of replacing it: those that several parts of a
// layer share.
struct Accumulate {
  bool d_x = false;
  bool edge_weight = false;
};

}  // namespace hiermt::cuda
