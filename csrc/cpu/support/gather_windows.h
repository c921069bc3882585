// Windows of consecutive days out of a series: bytes that move, compiled once.
#pragma once

#include <cstdint>

namespace hiermt {
namespace cpu {

// Row s of the series begins at series + s * stride_stock and holds `days` days of day_bytes each, one after
// the other. Every start lies in [0, days - steps].
struct GatherWindows {
  int64_t windows;       // B
  int64_t stocks;        // S
  int64_t steps;         // T
  int64_t day_bytes;     // F elements
  int64_t stride_stock;  // bytes
  const char* series;
  const int64_t* starts;  // [B]
  char* out;              // [B, S, T, F]
};

void gather_windows(const GatherWindows& p);

}  // namespace cpu
}  // namespace hiermt
