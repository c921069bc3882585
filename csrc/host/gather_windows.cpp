// Host entry of hiermt::gather_windows.
#include "cpu/support/gather_windows.h"

#include <torch/csrc/stable/library.h>

#include "cuda/scan/gather_windows.h"
#include "host/cuda_call.h"
#include "host/tensors.h"

namespace hiermt {
namespace {

Tensor gather_windows(Tensor series, Tensor starts, int64_t steps) {
  constexpr const char* op = "gather_windows";
  check_shape(op, "series", series, {"S", "D", "F"});
  const int64_t stocks = series.size(0), days = series.size(1), channels = series.size(2);
  if (steps < 0 || steps > days) fail(op, "steps", "expected a length in [0, ", days, "], got ", steps);
  check_shape(op, "starts", starts, {"B"});
  check_dtype(op, "starts", starts, ScalarType::Long);
  check_device(op, "starts", starts, "series", series);
  starts = dense(starts);
  // The days of a stock have to lie one after the other; the stocks may lie anywhere.
  if (channels > 0 && (series.stride(2) != 1 || series.stride(1) != channels)) series = dense(series);

  const int64_t windows = starts.size(0);
  check_count(op, "starts", {windows, stocks, steps, channels});
  const auto* first = data<int64_t>(starts);
  for (int64_t b = 0; series.is_cpu() && b < windows; ++b) {
    if (first[b] < 0 || first[b] > days - steps) {
      fail(op, "starts", "window ", b, " starts on day ", first[b], ", which is outside the days [0, ",
           days - steps + 1, ") on which one can start");
    }
  }
  const Tensor out = empty({windows, stocks, steps, channels}, series.scalar_type(), series);
  dispatch_floating(op, "series", series.scalar_type(), [&](auto type) {
    using S = typename decltype(type)::type;
    constexpr int64_t kBytes = sizeof(S);
    if (series.is_cpu()) {
      cpu::gather_windows({windows, stocks, steps, channels * kBytes, series.stride(0) * kBytes,
                           reinterpret_cast<const char*>(data<S>(series)), first,
                           reinterpret_cast<char*>(mutable_data<S>(out))});
    } else if constexpr (kWithCuda) {
      if (windows * stocks > std::numeric_limits<int32_t>::max()) {
        fail(op, "starts", "expected at most 2^31 - 1 pairs of window and stock, got ", windows * stocks);
      }
      const cuda::GatherWindows p{windows,          stocks, steps,           channels, days,
                                  series.stride(0), kBytes, data<S>(series), first,    mutable_data<S>(out)};
      call_cuda(op, series, [&](void* stream) { return cuda::gather_windows(p, stream); });
    }
  });
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(hiermt, CPU, m) {
  m.impl("gather_windows", TORCH_BOX(&gather_windows));
}

#ifdef HIERMT_WITH_CUDA
STABLE_TORCH_LIBRARY_IMPL(hiermt, CUDA, m) {
  m.impl("gather_windows", TORCH_BOX(&gather_windows));
}
#endif

}  // namespace hiermt
