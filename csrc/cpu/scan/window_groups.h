// How the windows of a series are split into tasks: groups of windows with neighbouring first days, times
// tiles of nodes. The spans of two groups overlap in few days, so the data of a day are held nearly once.
#pragma once

#include "cpu/simd/row_product.h"
#include "cpu/support/scratch.h"
#include "params.h"

namespace hiermt::cpu::HIERMT_ISA {

struct WindowGroup {
  int64_t begin, end;          // positions in windows.order
  int64_t first_day, end_day;  // span of its windows
  int64_t rows_before;         // days in the spans of the groups before it
};

// The recurrence over the windows, as a scan over plain nodes.
template <class S>
GatedScanForward<S> over_windows(const GatedScanForward<S>& p) {
  GatedScanForward<S> scan = p;
  scan.copies = p.windows->count;
  scan.steps = p.windows->steps;
  scan.windows = nullptr;
  return scan;
}

// Depends on the problem alone, not on the number of threads.
template <class S>
class WindowGroups {
 public:
  WindowGroups(const GatedScanForward<S>& p, ScratchFrame& frame)
      : tiles_((p.num_nodes + kTileRows - 1) / kTileRows) {
    const DayWindows& windows = *p.windows;
    count_ = min(tiles_ > 0 ? (kFewestTasks + tiles_ - 1) / tiles_ : 0, windows.count);
    groups_ = frame.take<WindowGroup>(count_);
    int64_t rows = 0;
    for (int64_t i = 0; i < count_; ++i) {
      const int64_t begin = windows.count * i / count_, end = windows.count * (i + 1) / count_;
      const int64_t first = windows.starts[windows.order[begin]],
                    last = windows.starts[windows.order[end - 1]];
      groups_[i] = {begin, end, first, last + windows.steps, rows};
      rows += groups_[i].end_day - first;
    }
    rows_ = rows;
  }

  int64_t count() const { return count_; }
  int64_t tasks() const { return tiles_ * count_; }
  int64_t rows() const { return rows_; }
  const WindowGroup& operator[](int64_t i) const { return groups_[i]; }
  const WindowGroup& of_task(int64_t task) const { return groups_[task % count_]; }
  int64_t first_node(int64_t task) const { return task / count_ * kTileRows; }

 private:
  // Enough for an even load on the cores of a desktop.
  static constexpr int64_t kFewestTasks = 24;

  int64_t tiles_;
  int64_t count_;
  int64_t rows_;
  WindowGroup* groups_;
};

}  // namespace hiermt::cpu::HIERMT_ISA
