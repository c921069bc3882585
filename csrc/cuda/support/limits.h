// What the CUDA kernels can count: a warp shares the channels of a row, and rows (node, step) are 31-bit
// numbers. Everything that is multiplied with them is counted in 64 bits.
#pragma once

#include <cstdint>

namespace hiermt::cuda {

constexpr int64_t kMaxHidden = 256;
constexpr int64_t kMaxRows = int64_t{1} << 30;

}  // namespace hiermt::cuda
