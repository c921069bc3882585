#include "cpu/support/gather_windows.h"

#include <cstring>

#include "cpu/support/parallel.h"

namespace hiermt {
namespace cpu {

void gather_windows(const GatherWindows& p) {
  const int64_t bytes = p.steps * p.day_bytes;
  if (bytes == 0) return;
  const auto copy = [](int64_t begin, int64_t end, void* context) {
    const auto& q = *static_cast<const GatherWindows*>(context);
    const int64_t size = q.steps * q.day_bytes;
    for (int64_t window = begin; window < end; ++window) {
      const char* from = q.series + q.starts[window] * q.day_bytes;
      char* to = q.out + window * q.stocks * size;
      for (int64_t stock = 0; stock < q.stocks; ++stock) {
        std::memcpy(to + stock * size, from + stock * q.stride_stock, static_cast<size_t>(size));
      }
    }
  };
  run_parallel(p.windows, copy, const_cast<GatherWindows*>(&p));
}

}  // namespace cpu
}  // namespace hiermt
