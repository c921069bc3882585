// GATv2 convolution, forward (equations in gatv2_conv.cuh): one launch for the projections, one for
// attention.
#include "cuda/dense/gatv2_conv.cuh"

namespace hiermt::cuda {
namespace {

template <class S, int kHidden, bool kMasked>
__global__ void __launch_bounds__(GatV2Traits::kThreads)
    gatv2_conv_fwd_kernel(GatV2ConvForward<S> p, const Compute<S>* x_l, const Compute<S>* x_r, int rows) {
  using C = Compute<S>;
  using Split = ChannelSplit<kHidden>;
  constexpr int kChannels = Split::kChannels;
  const Split split(kHidden != 0 ? kHidden : static_cast<int>(p.hidden));
  const int hidden = split.hidden;
  const int group = static_cast<int>(threadIdx.x) / split.lanes;
  const int member = static_cast<int>(threadIdx.x) % split.lanes, first = member * kChannels;
  const int64_t wanted = static_cast<int64_t>(blockIdx.x) * (GatV2Traits::kThreads / split.lanes) + group;
  const int row = wanted < rows ? static_cast<int>(wanted) : rows - 1;

  GatV2Entries<S, kMasked> entries(p, row, true);
  const int longest = __reduce_max_sync(kFullMask, entries.degree);
  if constexpr (kMasked) entries.find_loop_weight(p, member, split.lanes);
  const GatV2Lane<S, kHidden> lane(p.weights, split, first);
  C x_i[kChannels], sum[kChannels] = {};
  split.load_aligned(x_r + static_cast<int64_t>(row) * hidden, first, x_i);

  OnlineSoftmax<C> softmax;
  for (int k = 0; k < longest; ++k) {
    const GatV2Entry<C> entry = entries.entry(p, k);
    C x_j[kChannels];
    split.load_aligned(x_l + entry.row * hidden, first, x_j);
    const C score = group_sum(lane.partial_score(x_j, x_i, entry.edge_weight), split.lanes);
    if (entry.active) {
      softmax.update(score);
#pragma unroll
      for (int v = 0; v < kChannels; ++v) sum[v] = sum[v] * softmax.rescale + softmax.weight * x_j[v];
    }
  }
  if (wanted >= rows) return;
  const C scale = entries.degree > 0 ? softmax.scale() : C(0);
#pragma unroll
  for (int v = 0; v < kChannels; ++v) {
    const C bias = split.holds(first + v) ? load(p.weights.bias + first + v) : C(0);
    sum[v] = activate<S>(p.activation, sum[v] * scale + bias);
    if (kMasked && !entries.there) sum[v] = C(0);
  }
  split.store_any(p.out + static_cast<int64_t>(row) * hidden, first, sum);
}

template <class C>
struct ForwardMemory {
  Workspace memory;
  C* x_l;
  C* x_r;

  ForwardMemory(void* base, int64_t values)
      : memory(base), x_l(memory.take<C>(values)), x_r(memory.take<C>(values)) {}
};

}  // namespace

template <class S>
size_t gatv2_conv_forward_workspace(const GatV2ConvForward<S>& p) {
  return ForwardMemory<Compute<S>>(nullptr, p.graph.copies * p.graph.num_nodes * p.steps * p.hidden)
      .memory.bytes();
}

template <class S>
int gatv2_conv_forward(const GatV2ConvForward<S>& p, void* workspace, void* stream_) {
  const cudaStream_t stream = static_cast<cudaStream_t>(stream_);
  const int64_t nodes = p.graph.copies * p.graph.num_nodes, rows = nodes * p.steps;
  if (!supported(nodes, p.steps, p.hidden)) return cudaErrorInvalidValue;
  if (rows == 0) return cudaSuccess;
  const ForwardMemory<Compute<S>> memory(workspace, rows * p.hidden);
  HIERMT_CUDA_RETURN_IF_ERROR(project_pair(p, memory.x_l, memory.x_r, stream));
  return dispatch_hidden<S>(p.hidden, [&](auto hidden) {
    constexpr int kHidden = decltype(hidden)::value;
    const int64_t groups = groups_per_block<kHidden>(p.hidden, GatV2Traits::kThreads);
    return dispatch_masked(p.present, [&](auto masked) {
      return launch(gatv2_conv_fwd_kernel<S, kHidden, decltype(masked)::value>,
                    dim3(static_cast<unsigned>(ceil_div(rows, groups))), dim3(GatV2Traits::kThreads), 0,
                    stream, p, memory.x_l, memory.x_r, static_cast<int>(rows));
    });
  });
}

#define HIERMT_INSTANTIATE(S)                                                  \
  template size_t gatv2_conv_forward_workspace<S>(const GatV2ConvForward<S>&); \
  template int gatv2_conv_forward<S>(const GatV2ConvForward<S>&, void*, void*);
HIERMT_FOR_EACH_STORAGE(HIERMT_INSTANTIATE)
#undef HIERMT_INSTANTIATE

}  // namespace hiermt::cuda
