// Windows of consecutive days out of a series, as operators take them: first days `starts` [B], and how many
// days.
#pragma once

#include <algorithm>
#include <numeric>
#include <vector>

#include "host/tensors.h"
#include "params.h"

namespace hiermt {

struct WindowArguments {
  int64_t count, steps;
  Tensor starts;  // contiguous
  std::vector<int64_t>
      order;  // windows in the order of their first days; on the CPU, where the kernels want it

  DayWindows days() const { return {count, steps, data<int64_t>(starts), order.data()}; }
};

// On a GPU the days are not read, which would wait for the device: kernels clamp them to the series.
inline WindowArguments check_windows(const char* op, const Tensor& starts, int64_t steps, int64_t days,
                                     const char* series_name, const Tensor& series) {
  if (steps < 0 || steps > days) fail(op, "steps", "expected a length in [0, ", days, "], got ", steps);
  check_shape(op, "starts", starts, {"B"});
  check_dtype(op, "starts", starts, ScalarType::Long);
  check_device(op, "starts", starts, series_name, series);
  WindowArguments windows{starts.size(0), steps, dense(starts), {}};
  if (!series.is_cpu()) return windows;
  const auto* first = data<int64_t>(windows.starts);
  for (int64_t b = 0; b < windows.count; ++b) {
    if (first[b] < 0 || first[b] > days - steps) {
      fail(op, "starts", "window ", b, " starts on day ", first[b], ", which is outside the days [0, ",
           days - steps + 1, ") on which one can start");
    }
  }
  windows.order.resize(static_cast<size_t>(windows.count));
  std::iota(windows.order.begin(), windows.order.end(), int64_t{0});
  std::stable_sort(windows.order.begin(), windows.order.end(),
                   [&](int64_t one, int64_t other) { return first[one] < first[other]; });
  return windows;
}

}  // namespace hiermt
