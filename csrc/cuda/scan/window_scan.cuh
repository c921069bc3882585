// The two scans of which a scan over windows consists: over_days, whose input projection is computed once per
// day, and over_windows, whose recurrence reads it.
#pragma once

#include "cuda/scan/gated_scan.cuh"

namespace hiermt::cuda {

template <class S>
GatedScanForward<S> over_days(const GatedScanForward<S>& p) {
  GatedScanForward<S> days = p;
  days.h0 = nullptr;
  days.h = days.h_last = days.gates = nullptr;
  days.windows = nullptr;
  return days;
}

template <class S>
GatedScanForward<S> over_windows(const GatedScanForward<S>& p) {
  GatedScanForward<S> windows = p;
  windows.copies = p.windows->count;
  windows.steps = p.windows->steps;
  windows.windows = nullptr;
  return windows;
}

template <class S>
WindowDays window_days(const GatedScanForward<S>& p) {
  return {p.windows->starts, static_cast<int>(p.num_nodes), static_cast<int>(p.steps),
          static_cast<int>(p.windows->steps)};
}

template <class S>
bool windows_supported(const GatedScanForward<S>& p) {
  const DayWindows& windows = *p.windows;
  return windows.steps <= p.steps && supported(p.num_nodes, p.steps, p.hidden) &&
         (p.num_nodes == 0 || windows.count <= kMaxRows / p.num_nodes) &&
         supported(windows.count * p.num_nodes, windows.steps, p.hidden);
}

}  // namespace hiermt::cuda
