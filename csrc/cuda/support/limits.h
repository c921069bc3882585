// Sizes that the CUDA kernels support. The 8 channels of each lane of a warp make 256, and the index of a row
// (node, step) fits 31 bits. Products with a row index are 64-bit.
#pragma once

#include <cstdint>

namespace hiermt::cuda {

constexpr int64_t kMaxHidden = 256;
constexpr int64_t kMaxRows = int64_t{1} << 30;

}  // namespace hiermt::cuda
