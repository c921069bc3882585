// The two scans of which a scan over windows consists: over_days, whose input projection is computed once per
// day, and over_windows, whose recurrence reads it.
#pragma once

#include "cuda/scan/gated_scan.cuh"

namespace hiermt::cuda {

template <class S>
GatedScanForward<S> over_days(const GatedScanWindowsForward<S>& p) {
  GatedScanForward<S> days{};
  days.copies = 1;
  days.num_nodes = p.num_nodes;
  days.steps = p.days;
  days.hidden = p.hidden;
  days.x = p.x;
  days.g = p.g;
  days.weights = p.weights;
  days.tf32 = p.tf32;
  return days;
}

template <class S>
GatedScanForward<S> over_windows(const GatedScanWindowsForward<S>& p) {
  GatedScanForward<S> windows = over_days(p);
  windows.copies = p.windows.count;
  windows.steps = p.windows.steps;
  windows.h = p.h;
  windows.h_last = p.h_last;
  windows.gates = p.gates;
  return windows;
}

template <class S>
WindowDays window_days(const GatedScanWindowsForward<S>& p) {
  return {p.windows.starts, static_cast<int>(p.num_nodes), static_cast<int>(p.days),
          static_cast<int>(p.windows.steps)};
}

template <class S>
bool supported(const GatedScanWindowsForward<S>& p) {
  return p.windows.steps <= p.days && supported(p.num_nodes, p.days, p.hidden) &&
         (p.num_nodes == 0 || p.windows.count <= kMaxRows / p.num_nodes) &&
         supported(p.windows.count * p.num_nodes, p.windows.steps, p.hidden);
}

}  // namespace hiermt::cuda
