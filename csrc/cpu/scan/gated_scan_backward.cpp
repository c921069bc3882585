// The gated scan, backward, over all nodes.
#include "cpu/scan/gated_scan_backward_tile.h"
#include "cpu/support/kernels.h"
#include "cpu/support/parallel.h"

namespace hiermt::cpu::HIERMT_ISA {

template <class S>
void gated_scan_backward_range(const GatedScanBackward<S, Compute<S>>& p,
                               const PackedGatesTransposed<Compute<S>>& packed, int64_t begin, int64_t end,
                               const S* g, S* d_g, Compute<S>* sums) {
  ScratchFrame frame;
  BackwardTile<S, true> tile(p, packed, frame);
  const int64_t row = p.forward.steps * p.forward.hidden;
  for (int64_t first = begin; first < end; first += kTileRows) {
    const int count = static_cast<int>(min(end - first, kTileRows));
    S* to = d_g == nullptr ? nullptr : d_g + (first - begin) * row;
    tile.run(first, count, {g + (first - begin) * row, to, sums, nullptr, 0});
  }
}

template <class S>
void gated_scan_backward(const GatedScanBackward<S, Compute<S>>& p) {
  using C = Compute<S>;
  const GatedScanForward<S>& f = p.forward;
  const int64_t nodes = f.copies * f.num_nodes, channels = f.x.channels, row = f.steps * f.hidden;
  const GateGrads<C>& grads = p.grads;
  const bool need_parameters = grads.u_weight != nullptr || grads.u_bias != nullptr ||
                               grads.r_weight != nullptr || grads.r_bias != nullptr ||
                               grads.c_weight != nullptr || grads.c_bias != nullptr;
  if (f.hidden == 0) return;
  ScratchFrame frame;
  const PackedGatesTransposed<C> packed =
      pack_gates_transposed(f.weights, channels, f.hidden, p.d_x != nullptr, frame);
  const int64_t size = gate_sums_size<C>(channels, f.hidden);
  const int64_t tiles = (nodes + kTileRows - 1) / kTileRows, groups = sum_groups(tiles, size);
  C* sums = need_parameters ? frame.take<C>(groups * size) : nullptr;
  parallel_for(groups, [&](int64_t group) {
    const Range range = split(tiles, groups, group);
    const int64_t begin = range.begin * kTileRows, end = min(range.end * kTileRows, nodes);
    C* group_sums = need_parameters ? sums + group * size : nullptr;
    for (int64_t i = 0; i < (need_parameters ? size : 0); ++i) group_sums[i] = C(0);
    gated_scan_backward_range(p, packed, begin, end, f.g + begin * row,
                              p.d_g == nullptr ? nullptr : p.d_g + begin * row, group_sums);
  });
  if (need_parameters) finish_gate_grads(sums, groups, channels, f.hidden, grads);
}

HIERMT_INSTANTIATE(gated_scan_backward)

#define HIERMT_INSTANTIATE_RANGE(S)                                                                      \
  template void gated_scan_backward_range<S>(const GatedScanBackward<S, Compute<S>>&,                    \
                                             const PackedGatesTransposed<Compute<S>>&, int64_t, int64_t, \
                                             const S*, S*, Compute<S>*);
HIERMT_INSTANTIATE_RANGE(float)
HIERMT_INSTANTIATE_RANGE(double)
HIERMT_INSTANTIATE_RANGE(BFloat16)

}  // namespace hiermt::cpu::HIERMT_ISA
