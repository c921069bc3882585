// GATv2 convolution, forward (equations in gatv2_conv.cuh): one launch for the projections, one for
// attention.
#include "cuda/dense/gatv2_conv.cuh"

namespace hiermt::cuda {
namespace {

template <class S, int kHidden, bool kMasked>
__global__ void __launch_bounds__(ConvTraits::kThreads)
    gatv2_conv_fwd_kernel(GatV2Forward<S> p, const Compute<S>* x_l, const Compute<S>* x_r, int rows) {
  using C = Compute<S>;
  const GroupRow<kHidden> group(p.hidden, static_cast<int>(blockIdx.x), rows);
  constexpr int kChannels = group.kChannels;
  const auto& split = group.split;
  const int first = group.first;

  GatV2Entries<S, kMasked> entries(p, group.row, true);
  const int longest = __reduce_max_sync(kFullMask, entries.degree);
  if constexpr (kMasked) entries.find_loop_weight(p, group.member, split.lanes);
  const GatV2Lane<S, kHidden> lane(p.weights, split, first);
  C x_i[kChannels], sum[kChannels] = {};
  split.load_aligned(x_r + group.offset(), first, x_i);

  OnlineSoftmax<C> softmax;
  for (int k = 0; k < longest; ++k) {
    const GatV2Entry<C> entry = entries.entry(p, k);
    C x_j[kChannels];
    split.load_aligned(x_l + entry.row * split.hidden, first, x_j);
    const C score = group_sum(lane.partial_score(x_j, x_i, entry.edge_weight), split.lanes);
    if (entry.active) {
      softmax.update(score);
#pragma unroll
      for (int v = 0; v < kChannels; ++v) sum[v] = sum[v] * softmax.rescale + softmax.weight * x_j[v];
    }
  }
  if (!group.inside) return;
  const C scale = entries.degree > 0 ? softmax.scale() : C(0);
#pragma unroll
  for (int v = 0; v < kChannels; ++v) {
    const C bias = split.holds(first + v) ? load(p.weights.bias + first + v) : C(0);
    sum[v] = activate<S>(p.activation, sum[v] * scale + bias);
    if (kMasked && !entries.there) sum[v] = C(0);
  }
  split.store_any(p.out + group.offset(), first, sum);
}

}  // namespace

template <class S>
void conv_forward(const GatV2Forward<S>& p, Stream& on) {
  using C = Compute<S>;
  C* const x_l = on.take<C>(p.rows() * p.hidden);
  C* const x_r = on.take<C>(p.rows() * p.hidden);
  project_pair(p, x_l, x_r, on);
  dispatch_rows(p, [&](auto hidden, auto masked, int64_t blocks) {
    launch(gatv2_conv_fwd_kernel<S, hidden, masked>, blocks, ConvTraits::kThreads, 0, on, p, x_l, x_r,
           p.rows());
  });
}

#define HIERMT_INSTANTIATE(S) template void conv_forward<S>(const GatV2Forward<S>&, Stream&);
HIERMT_FOR_EACH_STORAGE(HIERMT_INSTANTIATE)
#undef HIERMT_INSTANTIATE

}  // namespace hiermt::cuda
