// The gated scan, backward, over all nodes.
#include "cpu/scan/gated_scan_backward_tile.h"
#include "cpu/support/kernels.h"
#include "cpu/support/parallel.h"

namespace hiermt::cpu::HIERMT_ISA {

template <class S>
void gated_scan_backward(const GatedScanBackward<S, Compute<S>>& p) {
  using C = Compute<S>;
  const GatedScanForward<S>& f = p.forward;
  if (f.windows != nullptr) return gated_scan_windows_backward(p);
  const int64_t nodes = f.copies * f.num_nodes, inputs = f.x.channels + f.g_channels;
  const int64_t row = f.steps * f.g_channels;
  const GateGrads<C>& grads = p.grads;
  const bool need_parameters = grads.u_weight != nullptr || grads.u_bias != nullptr ||
                               grads.r_weight != nullptr || grads.r_bias != nullptr ||
                               grads.c_weight != nullptr || grads.c_bias != nullptr;
  if (f.hidden == 0) return;
  ScratchFrame frame;
  const PackedGatesTransposed<C> packed = pack_gates_transposed(f, p.d_x != nullptr, frame);
  const int64_t size = gate_sums_size<C>(inputs, f.hidden);
  const int64_t tiles = (nodes + kTileRows - 1) / kTileRows, groups = sum_groups(tiles, size);
  C* sums = need_parameters ? frame.take<C>(groups * size) : nullptr;
  parallel_for(groups, [&](int64_t group) {
    const Range range = split(tiles, groups, group);
    const int64_t begin = range.begin * kTileRows, end = min(range.end * kTileRows, nodes);
    C* group_sums = need_parameters ? sums + group * size : nullptr;
    for (int64_t i = 0; i < (need_parameters ? size : 0); ++i) group_sums[i] = C(0);
    ScratchFrame own;
    BackwardTile<S, true> tile(p, packed, own);
    for (int64_t first = begin; first < end; first += kTileRows) {
      const int count = static_cast<int>(min(end - first, kTileRows));
      S* d_g = p.d_g == nullptr ? nullptr : p.d_g + first * row;
      const NextTile next{first + count, min(end - first - count, kTileRows)};
      const bool* present = f.present == nullptr ? nullptr : f.present + first * f.steps;
      tile.run(first, count, next, {f.g + first * row, d_g, group_sums, nullptr, 0, present, f.steps});
    }
  });
  if (need_parameters) finish_gate_grads(sums, groups, inputs, f.hidden, grads);
}

HIERMT_INSTANTIATE(gated_scan_backward)

}  // namespace hiermt::cpu::HIERMT_ISA
