// Sizes that the CUDA kernels support. The 8 channels of each lane of a warp make 256, and the index of a row
// (node, step) fits 31 bits. Products with a row index are 64-bit. The gradient of x takes a row of thread blocks for
// each 16 of its channels, of which a grid has 65,535; offsets in a matrix of parameters then fit 31 bits.
#pragma once

#include <cstdint>

namespace hiermt::cuda {

constexpr int64_t kMaxHidden = 256;
constexpr int64_t kMaxRows = int64_t{1} << 30;
constexpr int64_t kMaxChannels = 65535 * 16;

}  // namespace hiermt::cuda
