// The gated scan over windows of a series, forward. A task computes the input projection of the days of a few
// nodes once, and its windows read it in place.
#include "cpu/scan/gated_scan.h"
#include "cpu/scan/window_groups.h"
#include "cpu/support/kernels.h"
#include "cpu/support/parallel.h"

namespace hiermt::cpu::HIERMT_ISA {

namespace {

// The input projection z[day] = W [x, g] + b of the gates u, r, c for the days of one node.
template <class S>
class DayProjection {
 public:
  using C = Compute<S>;
  using V = Vec<C>;
  static constexpr int L = kLanes<C>;

  DayProjection(const GatedScanForward<S>& p, const PackedGates<C>& packed, ScratchFrame& frame)
      : p_(p), packed_(packed) {
    x_ = frame.take<C>(kBlockRows * (p.x.channels + L));
    g_ = frame.take<C>(kBlockRows * (p.g_channels + L));
  }

  // The days [first, end) of a node, to z [end - first, 3, H].
  void run(int64_t node, int64_t first, int64_t end, S* z) {
    for (int64_t day = first; day < end; day += kBlockRows) {
      const int count = static_cast<int>(min(end - day, kBlockRows));
      set_rows(node, day, count);
      for (int64_t v = 0; v < packed_.vectors; ++v) project(v, count, z + (day - first) * 3 * p_.hidden);
    }
  }

 private:
  // Finds the rows of these days: in place, or copied if they are of another type, not contiguous or fewer
  // than kBlockRows. Copied rows past the count repeat the last day; their results are not stored.
  HIERMT_INLINE void set_rows(int64_t node, int64_t day, int count) {
    const SequenceView<S>& x = p_.x;
    const S* x_first = x.data + node * x.stride_node + day * x.stride_time;
    const S* g_first = p_.g + (node * p_.steps + day) * p_.g_channels;
    if constexpr (sizeof(S) == sizeof(C)) {
      if (count == kBlockRows && x.stride_channel == 1) {
        x_rows_ = x_first;
        x_stride_ = x.stride_time;
        g_rows_ = g_first;
        g_stride_ = p_.g_channels;
        return;
      }
    }
    x_rows_ = x_;
    x_stride_ = x.channels + L;
    g_rows_ = g_;
    g_stride_ = p_.g_channels + L;
    for (int i = 0; i < kBlockRows; ++i) {
      const int64_t at = i < count ? i : count - 1;
      copy_row(x_ + i * x_stride_, x_first + at * x.stride_time, x.stride_channel, x.channels);
      copy_row(g_ + i * g_stride_, g_first + at * p_.g_channels, 1, p_.g_channels);
    }
  }

  HIERMT_INLINE void project(int64_t v, int count, S* z) const {
    V sum[3][kBlockRows];
    input_projection(packed_, v, x_rows_, x_stride_, p_.x.channels, g_rows_, g_stride_, p_.g_channels, sum);
    for (int i = 0; i < count; ++i) {
      for (int gate = 0; gate < 3; ++gate) {
        store_lanes(z + (i * 3 + gate) * p_.hidden, p_.hidden, v, sum[gate][i]);
      }
    }
  }

  const GatedScanForward<S> p_;
  const PackedGates<C> packed_;
  C* x_;  // [kBlockRows, F + L]   copies, if needed
  C* g_;  // [kBlockRows, H + L]
  const C* x_rows_ = nullptr;
  const C* g_rows_ = nullptr;
  int64_t x_stride_ = 0;
  int64_t g_stride_ = 0;
};

}  // namespace

template <class S>
void gated_scan_windows_forward(const GatedScanForward<S>& p) {
  const DayWindows& windows = *p.windows;
  if (windows.count == 0 || p.num_nodes == 0 || p.hidden == 0) return;
  ScratchFrame frame;
  const PackedGates<Compute<S>> packed = pack_gates(p.weights, p.x.channels + p.g_channels, p.hidden, frame);
  const WindowGroups<S> groups(p, frame);
  const GatedScanForward<S> scan = over_windows(p);
  parallel_for(groups.tasks(), [&](int64_t task) {
    const WindowGroup& group = groups.of_task(task);
    const int64_t first = groups.first_node(task), count = min(p.num_nodes - first, kTileRows);
    const int64_t days = group.end_day - group.first_day;
    ScratchFrame task_frame;
    InputProjection<S> z{nullptr, days * 3 * p.hidden, 3 * p.hidden, nullptr, p.steps};
    S* const projected = task_frame.take<S>(count * z.stride_node);
    DayProjection<S> projection(p, packed, task_frame);
    for (int64_t i = 0; i < count; ++i) {
      projection.run(first + i, group.first_day, group.end_day, projected + i * z.stride_node);
    }
    for (int64_t i = group.begin; i < group.end; ++i) {
      const int64_t window = windows.order[i], node = window * p.num_nodes + first;
      z.data = projected + (windows.starts[window] - group.first_day) * z.stride_time;
      if (p.present != nullptr) z.present = p.present + first * p.steps + windows.starts[window];
      gated_scan_forward_range<S>(scan, packed, node, node + count, &z);
    }
  });
}

#define HIERMT_INSTANTIATE_WINDOWS(S) template void gated_scan_windows_forward<S>(const GatedScanForward<S>&);
HIERMT_INSTANTIATE_WINDOWS(float)
HIERMT_INSTANTIATE_WINDOWS(double)
HIERMT_INSTANTIATE_WINDOWS(BFloat16)

}  // namespace hiermt::cpu::HIERMT_ISA
