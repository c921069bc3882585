// Forward of a GCN stack: out_i = activation(bias + sum_j norm_ij W x_j) for each convolution, in shared memory.
#include "cuda/fused/gcn_stack.h"
#include "cuda/fused/stack_forward.cuh"

namespace hiermt::cuda {
namespace {

// y += sum_j norm_ij projected[j]. With a mask norm_ij is s_j w_ij s_i; a negative s is of an item that is not there.
template <class S, int kHidden, int kLanes>
__device__ __forceinline__ void sum_neighbours(const StackForward<S, GcnWeights<S>>& p,
                                               const ItemNumbers& scales, int node, int step,
                                               const Tile<kHidden, kLanes>& projected,
                                               float (&y)[kHidden / kLanes]) {
  const int end = p.graph.rowptr[node + 1];
  const auto add = [&](int from, float norm) {
    float x_j[kHidden / kLanes];
    projected.read(from, step, x_j);
#pragma unroll
    for (int c = 0; c < kHidden / kLanes; ++c) y[c] += norm * x_j[c];
  };
  if (p.present == nullptr) {
#pragma unroll 2
    for (int entry = p.graph.rowptr[node]; entry < end; ++entry) {
      add(p.graph.col[entry], load(p.edge_weight + entry));
    }
    return;
  }
#pragma unroll 1
  for (int entry = p.graph.rowptr[node]; entry < end; ++entry) {
    const int from = p.graph.col[entry];
    const float scale = scales.at(from, step);
    if (scale < 0.0f) continue;
    add(from, scale * load(p.edge_weight + entry));
  }
  const float scale = scales.at(node, step);
#pragma unroll
  for (int c = 0; c < kHidden / kLanes; ++c) y[c] *= scale;
}

template <class S, int kHidden, int kLanes>
__global__ void __launch_bounds__(StackTraits<kHidden>::kThreads, StackTraits<kHidden>::kMinBlocks)
    gcn_stack_fwd_kernel(StackForward<S, GcnWeights<S>> p) {
  using T = StackTraits<kHidden>;
  constexpr int kBlocks = T::kGcnBlocks;
  using Items = Tile<kHidden, kLanes>;
  SharedMemory memory;
  StackFrame<S, Items> frame(p, memory);
  const StackInput<S>& x = frame.x;
  const Items &projected = frame.first, &own = frame.second;
  const StackItems& items = frame.items;
  float* weights = memory.take<float>(stack_weight_values<S, kHidden, kBlocks>(x.channels, p.conv_layers));
  const ItemNumbers scales(p, memory);

  for (int layer = 0; layer < p.conv_layers; ++layer) {
    const int inputs = layer == 0 ? x.channels : kHidden;
    const Activation activation = p.activation(layer);
    const S* bias = p.convs[layer].bias + 4 * lane_of_item<kLanes>();
    const PlainWeight<S> weight{p.convs[layer].lin_weight, 1, inputs};
    const ProductWeights<S, kHidden, kBlocks, T::kItems> matrix{weights, 0, kHidden};
    matrix.fill_biases(weight);
    matrix.fill(weight, 0, 0, inputs);
    __syncthreads();
    if (layer == 0) find_scales<kLanes>(items, p.graph, p.edge_weight, frame.presence, scales);
    const auto write = [&](int node, int step, const float (&quads)[kBlocks][4], bool wanted) {
#pragma unroll
      for (int block = 0; block < kBlocks; ++block) {
        const int quad = block * (kBlockColumns / 4) + static_cast<int>(threadIdx.x) % 4;
        if (wanted && quad < kHidden / 4) projected.put(node, step, quad, quads[block]);
      }
    };
    for_each_lane_items<T::kItems>(items, [&](const LaneItems<T::kItems>& at) {
      if (layer == 0) {
        matrix.products(at, weight, write, SequenceInput<S>(x, frame.presence));
      } else {
        matrix.products(at, weight, write, TileInput(own));
      }
    });
    __syncthreads();
    items.template for_each_with_mask<kLanes>([&](int node, int step, unsigned) {
      if (!frame.presence.has(node, step)) return own.clear(node, step);
      float y[kHidden / kLanes] = {};
      sum_neighbours(p, scales, node, step, projected, y);
#pragma unroll
      for (int c = 0; c < kHidden / kLanes; ++c) {
        y[c] = activate<S>(activation, y[c] + load(bias + c / 4 * 4 * kLanes + c % 4));
      }
      own.write(node, step, y);
    });
  }
  finish_stack(p, frame, own, weights);
}

struct GcnStack {
  template <int kHidden, int kLanes, class S>
  static size_t bytes(const ConvStackForward<S>& p, int64_t chunk) {
    return stack_bytes<kHidden, kLanes, StackTraits<kHidden>::kGcnBlocks>(p, chunk);
  }
  template <int kHidden, int kLanes, class S>
  static auto kernel() {
    return gcn_stack_fwd_kernel<S, kHidden, kLanes>;
  }
};

}  // namespace

template <class S>
bool gcn_stack_fits(const ConvStackForward<S>& p) {
  return p.gcn != nullptr && stack_fits<GcnStack>(p);
}

template <class S>
void gcn_stack_forward(const ConvStackForward<S>& p, const GateWeights<S>& gates,
                       Compute<S>* input_projection, Stream& on) {
  launch_stack<GcnStack>(p, p.gcn, gates, input_projection, on);
}

#define HIERMT_INSTANTIATE(S)                                  \
  template bool gcn_stack_fits<S>(const ConvStackForward<S>&); \
  template void gcn_stack_forward<S>(const ConvStackForward<S>&, const GateWeights<S>&, Compute<S>*, Stream&);
HIERMT_FOR_EACH_STORAGE(HIERMT_INSTANTIATE)
#undef HIERMT_INSTANTIATE

}  // namespace hiermt::cuda
