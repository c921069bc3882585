// The gated scan over windows of a series, backward. A task runs its windows backward and sums d_z of each
// day in the order of the windows. Days of no other group of windows become gradients of x, g and the
// parameters at once, while they are in the cache. A second pass sums the days shared by groups in the order
// of the groups. Every sum has one owner and one order, whatever the number of threads.
#include "cpu/scan/window_day_gradients.h"
#include "cpu/scan/window_groups.h"
#include "cpu/support/kernels.h"
#include "cpu/support/parallel.h"

namespace hiermt::cpu::HIERMT_ISA {

namespace {

enum class Day : uint8_t {
  kInNoWindow,  // in no sum, even if it is NaN
  kInOneGroup,
  kInSeveralGroups
};

// Length of the run of days of one kind from `first` on, within [first, end).
HIERMT_INLINE int64_t run_length(const Day* days, int64_t first, int64_t end) {
  int64_t day = first + 1;
  while (day < end && days[day] == days[first]) ++day;
  return day - first;
}

template <class S>
const Day* kinds_of_days(const GatedScanForward<S>& p, const WindowGroups<S>& groups, ScratchFrame& frame) {
  Day* days = frame.take<Day>(p.steps);
  for (int64_t day = 0; day < p.steps; ++day) days[day] = Day::kInNoWindow;
  for (int64_t window = 0; window < p.windows->count; ++window) {
    for (int64_t t = 0; t < p.windows->steps; ++t) days[p.windows->starts[window] + t] = Day::kInOneGroup;
  }
  // Groups are in order, and a day within the span of two groups is in windows of both.
  for (int64_t i = 1; i < groups.count(); ++i) {
    const int64_t end = min(groups[i - 1].end_day, groups[i].end_day);
    for (int64_t day = groups[i].first_day; day < end; ++day) days[day] = Day::kInSeveralGroups;
  }
  return days;
}

// The recurrence alone: without the gradients of its inputs and parameters.
template <class S>
GatedScanBackward<S, Compute<S>> recurrence_of(const GatedScanBackward<S, Compute<S>>& p) {
  GatedScanBackward<S, Compute<S>> scan{};
  scan.forward = over_windows(p.forward);
  scan.d_h = p.d_h;
  scan.d_h_last = p.d_h_last;
  scan.d_h0 = p.d_h0;
  return scan;
}

template <class S>
class WindowsBackward {
 public:
  using C = Compute<S>;

  WindowsBackward(const GatedScanBackward<S, C>& p, ScratchFrame& frame)
      : p_(p),
        f_(p.forward),
        packed_(pack_gates_transposed(f_, p.d_x != nullptr, frame)),
        groups_(f_, frame),
        scan_(recurrence_of<S>(p)),
        inputs_(f_.x.channels + f_.g_channels),
        len_(inputs_, f_.hidden),
        row_(3 * len_.padded),
        days_(kinds_of_days(f_, groups_, frame)),
        sums_size_(gate_sums_size<C>(inputs_, f_.hidden)),
        parts_(groups_.tasks() > 0 ? sum_groups(groups_.tasks(), sums_size_) : 1) {
    if (p.grads.u_weight != nullptr) sums_ = frame.take<C>(parts_ * sums_size_);
    // Only the days in several groups are written and read.
    d_z_ = frame.take<C>(groups_.rows() * f_.num_nodes * row_);
  }

  void run() {
    parallel_for(parts_, [&](int64_t part) { run_windows(part); });
    parallel_for(parts_, [&](int64_t part) { sum_shared_days(part); });
    if (sums_ != nullptr) finish_gate_grads(sums_, parts_, inputs_, f_.hidden, p_.grads);
  }

 private:
  C* sums_of(int64_t part) const { return sums_ == nullptr ? nullptr : sums_ + part * sums_size_; }
  // The row of the first day of a group and a node.
  C* d_z_of(const WindowGroup& group, int64_t node) const {
    return d_z_ + (group.rows_before * f_.num_nodes + node * (group.end_day - group.first_day)) * row_;
  }

  void run_windows(int64_t part) const {
    C* sums = sums_of(part);
    for (int64_t i = 0; sums != nullptr && i < sums_size_; ++i) sums[i] = C(0);
    ScratchFrame frame;
    BackwardTile<S, false> tile(scan_, packed_, frame);
    const DayGradients<S> gradients(p_, packed_, frame);
    const Range range = split(groups_.tasks(), parts_, part);
    for (int64_t task = range.begin; task < range.end; ++task) {
      const WindowGroup& group = groups_.of_task(task);
      const int64_t first = groups_.first_node(task);
      const int count = static_cast<int>(min(f_.num_nodes - first, kTileRows));
      const int64_t node_size = (group.end_day - group.first_day) * row_;
      ScratchFrame task_frame;
      const int64_t size = count * node_size + gradients.room(len_);
      C* d_z = task_frame.take<C>(size);
      for (int64_t i = 0; i < size; ++i) d_z[i] = C(0);
      for (int64_t i = group.begin; i < group.end; ++i) {
        const int64_t window = f_.windows->order[i];
        C* to = d_z + (f_.windows->starts[window] - group.first_day) * row_;
        const int64_t next = i + 1 < group.end ? f_.windows->order[i + 1] : -1;
        const bool* present =
            f_.present == nullptr ? nullptr : f_.present + first * f_.steps + f_.windows->starts[window];
        tile.run(window * f_.num_nodes + first, count, {next * f_.num_nodes + first, next < 0 ? 0 : count},
                 {nullptr, nullptr, sums, to, node_size, present, f_.steps});
      }
      for (int64_t i = 0; i < count; ++i) {
        use_days(gradients, group, first + i, d_z + i * node_size, sums);
      }
    }
  }

  void use_days(const DayGradients<S>& gradients, const WindowGroup& group, int64_t node, const C* d_z,
                C* sums) const {
    for (int64_t day = group.first_day, length; day < group.end_day; day += length) {
      length = run_length(days_, day, group.end_day);
      const C* from = d_z + (day - group.first_day) * row_;
      if (days_[day] == Day::kInOneGroup) {
        gradients.run(node, day, length, from, sums);
      } else if (days_[day] == Day::kInSeveralGroups) {
        C* to = d_z_of(group, node) + (day - group.first_day) * row_;
        for (int64_t i = 0; i < length * row_; i += kLanes<C>) store(to + i, load(from + i));
      }
    }
  }

  void sum_shared_days(int64_t part) const {
    ScratchFrame frame;
    const DayGradients<S> gradients(p_, packed_, frame);
    C* d_z = frame.take<C>(kChunkDays * row_ + gradients.room(len_));
    for (int64_t i = 0; i < kChunkDays * row_ + gradients.room(len_); ++i) d_z[i] = C(0);
    const int64_t chunks = (f_.steps + kChunkDays - 1) / kChunkDays;
    const Range range = split(f_.num_nodes * chunks, parts_, part);
    for (int64_t i = range.begin; i < range.end; ++i) {
      const int64_t node = i / chunks;
      const Range days = split(f_.steps, chunks, i % chunks);
      for (int64_t day = days.begin, length; day < days.end; day += length) {
        length = run_length(days_, day, days.end);
        if (days_[day] == Day::kInNoWindow) {
          for (int64_t j = 0; j < length; ++j) gradients.clear(node, day + j);
        } else if (days_[day] == Day::kInSeveralGroups) {
          for (int64_t j = 0; j < length; ++j) collect(node, day + j, d_z + j * row_);
          gradients.run(node, day, length, d_z, sums_of(part));
        }
      }
    }
  }

  void collect(int64_t node, int64_t day, C* to) const {
    bool first = true;
    for (int64_t i = 0; i < groups_.count() && groups_[i].first_day <= day; ++i) {
      if (day >= groups_[i].end_day) continue;
      const C* from = d_z_of(groups_[i], node) + (day - groups_[i].first_day) * row_;
      for (int64_t j = 0; j < row_; j += kLanes<C>) {
        store(to + j, first ? load(from + j) : load(to + j) + load(from + j));
      }
      first = false;
    }
  }

  const GatedScanBackward<S, C>& p_;
  const GatedScanForward<S>& f_;
  const PackedGatesTransposed<C> packed_;
  const WindowGroups<S> groups_;
  const GatedScanBackward<S, C> scan_;
  const int64_t inputs_;  // channels of x and g
  const ScanLengths<C> len_;
  const int64_t row_;  // 3 vectors L
  const Day* days_;
  const int64_t sums_size_;
  const int64_t parts_;  // of the tasks, each with sums of its own
  C* sums_ = nullptr;
  C* d_z_;  // of each group [num_nodes, days, 3, vectors L]
};

}  // namespace

template <class S>
void gated_scan_windows_backward(const GatedScanBackward<S, Compute<S>>& p) {
  if (p.forward.hidden == 0) return;
  ScratchFrame frame;
  WindowsBackward<S>(p, frame).run();
}

#define HIERMT_INSTANTIATE_WINDOWS(S) \
  template void gated_scan_windows_backward<S>(const GatedScanBackward<S, Compute<S>>&);
HIERMT_INSTANTIATE_WINDOWS(float)
HIERMT_INSTANTIATE_WINDOWS(double)
HIERMT_INSTANTIATE_WINDOWS(BFloat16)

}  // namespace hiermt::cpu::HIERMT_ISA
