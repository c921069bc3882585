// Forward of a GCN stack: out_i = activation(bias + sum_j norm_ij W x_j) for each convolution, in shared
// memory. A thread that has summed the neighbours of its items continues with their next projection, or with
// the input projection of the gates, so a convolution needs one barrier.
#include "cuda/fused/gcn_stack.h"
#include "cuda/fused/multilane_stack.cuh"

namespace hiermt::cuda {
namespace {

// Transposed weights and biases of all convolutions.
template <int kHidden>
struct GcnMemory {
  float *weights, *biases;  // [F + (convs - 1) H, H], [convs, H]

  __device__ GcnMemory(SharedMemory& memory, int channels, int conv_layers)
      : weights(memory.take<float>(static_cast<size_t>(channels + (conv_layers - 1) * kHidden) * kHidden)),
        biases(memory.take<float>(conv_layers * kHidden)) {}

  static size_t bytes(int64_t channels, int64_t conv_layers) {
    return padded_bytes<float>((channels + (conv_layers - 1) * kHidden) * kHidden) +
           padded_bytes<float>(conv_layers * kHidden);
  }
  // The weights of convolution k.
  __device__ const float* of(int k, int channels) const {
    return weights + (k == 0 ? 0 : channels + (k - 1) * kHidden) * kHidden;
  }
  template <class S>
  __device__ void fill(const StackForward<S, GcnWeights<S>>& p, int channels) const {
    const int thread = static_cast<int>(threadIdx.x), width = static_cast<int>(blockDim.x);
    for (int k = 0; k < p.conv_layers; ++k) {
      const int inputs = k == 0 ? channels : kHidden;
      float* to = weights + (of(k, channels) - weights);
      for (int i = thread; i < inputs * kHidden; i += width) {
        to[i] = load(p.convs[k].lin_weight + i % kHidden * inputs + i / kHidden);
      }
      for (int c = thread; c < kHidden; c += width) biases[k * kHidden + c] = load(p.convs[k].bias + c);
    }
  }
};

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

template <class S, int kHidden>
__global__ void __launch_bounds__(StackTraits<kHidden>::kThreads, StackTraits<kHidden>::kMinBlocks)
    gcn_stack_fwd_kernel(StackForward<S, GcnWeights<S>> p) {
  // W x of the current convolution and of the next one.
  StackFrame<S, Tile<kHidden>> frame(p);
  Tile<kHidden> projected = frame.first, next = frame.second;
  const StackInput<S>& x = frame.x;
  const StackItems& items = frame.items;
  const GateMemory<kHidden> gates(frame.memory, x.channels);
  const GcnMemory<kHidden> convs(frame.memory, x.channels, p.conv_layers);
  const ItemNumbers scales(p, frame.memory);

  if (p.input_projection != nullptr) gates.fill(p.gates, x.channels);
  convs.fill(p, x.channels);
  __syncthreads();
  find_scales<1>(items, p.graph, p.edge_weight, frame.presence, scales);
  // Projects a group of items, of x or of a tile, with the weights of convolution k.
  const auto project = [&](const auto& input, const auto& group, int k, const Tile<kHidden>& to) {
    constexpr int kItems = std::decay_t<decltype(group)>::kItems;
    const float* weights = convs.of(k, x.channels);
    float sums[kItems][kHidden] = {};
    for_each_channel(input, group, [&](int channel, const float (&values)[kItems]) {
      add_scaled<kHidden, 1>(weights + channel * kHidden, values, sums);
    });
#pragma unroll
    for (int i = 0; i < kItems; ++i) to.write(group.node[i], group.step[i], sums[i]);
  };
  items.for_each_pair([&](const auto& group) { project(x, group, 0, projected); });

  for (int layer = 0; layer < p.conv_layers; ++layer) {
    const bool is_last = layer + 1 == p.conv_layers;
    const Activation activation = p.activation(layer);
    __syncthreads();
    // Reads `projected` of neighbours, and writes only its own items of `next`.
    items.for_each([&](int node, int step) {
      if (!frame.presence.has(node, step)) return next.clear(node, step);
      float y[kHidden] = {};
      sum_neighbours(p, scales, node, step, projected, y);
#pragma unroll
      for (int c = 0; c < kHidden; ++c)
        y[c] = activate<S>(activation, y[c] + convs.biases[layer * kHidden + c]);
      next.write(node, step, y);
    });
    items.for_each_pair([&](const auto& group) {
      if (is_last) return p.finish(gates, x, frame.block, next, group);
      project(next, group, layer + 1, next);
    });
    const Tile<kHidden> used = projected;
    projected = next;
    next = used;
  }
}

template <class S, int kHidden>
__global__ void __launch_bounds__(StackTraits<kHidden>::kThreads, StackTraits<kHidden>::kMinBlocks)
    gcn_stack_multilane_fwd_kernel(StackForward<S, GcnWeights<S>> p) {
  constexpr int kLanes = StackTraits<kHidden>::kLanes;
  using Items = Tile<kHidden, kLanes>;
  StackFrame<S, Items> frame(p);
  const StackInput<S>& x = frame.x;
  const Items &projected = frame.first, &own = frame.second;
  const StackItems& items = frame.items;
  const StagedMatrix<kHidden> matrix{
      frame.memory.template take<float>(staged_matrix_values<kHidden>(x.channels, p.conv_layers, 1))};
  const ItemNumbers scales(p, frame.memory);

  stage_rows(items, x, frame.presence, own);
  for (int layer = 0; layer < p.conv_layers; ++layer) {
    const int inputs = layer == 0 ? x.channels : kHidden;
    const Activation activation = p.activation(layer);
    const S* bias = p.convs[layer].bias + 4 * lane_of_item<kLanes>();
    matrix.fill(p.convs[layer].lin_weight, inputs, inputs);
    __syncthreads();
    if (layer == 0) find_scales<kLanes>(items, p.graph, p.edge_weight, frame.presence, scales);
    project_tile(items, matrix.data, nullptr, own, ceil_div(inputs, 4), projected);
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
  __syncthreads();
  finish_multilane(p, frame.block, items, frame.presence, x, matrix, own, projected);
}

struct GcnStack {
  template <int kHidden, class S>
  static size_t bytes(const ConvStackForward<S>& p, int64_t chunk) {
    if constexpr (StackTraits<kHidden>::kMultilane) {
      return multilane_stack_bytes<kHidden>(p, chunk, 1);
    } else {
      return stack_bytes<kHidden>(p, chunk) + GcnMemory<kHidden>::bytes(p.x.channels, p.conv_layers);
    }
  }
  template <int kHidden, class S>
  static auto kernel() {
    if constexpr (StackTraits<kHidden>::kMultilane) {
      return gcn_stack_multilane_fwd_kernel<S, kHidden>;
    } else {
      return gcn_stack_fwd_kernel<S, kHidden>;
    }
  }
};

}  // namespace

template <class S>
bool gcn_stack_fits(const ConvStackForward<S>& p) {
  return p.gcn != nullptr && stack_fits<GcnStack>(p);
}

template <class S>
int gcn_stack_forward(const ConvStackForward<S>& p, const GateWeights<S>& gates, Compute<S>* input_projection,
                      void* stream) {
  return launch_stack<GcnStack>(p, p.gcn, gates, input_projection, stream);
}

#define HIERMT_INSTANTIATE(S)                                  \
  template bool gcn_stack_fits<S>(const ConvStackForward<S>&); \
  template int gcn_stack_forward<S>(const ConvStackForward<S>&, const GateWeights<S>&, Compute<S>*, void*);
HIERMT_FOR_EACH_STORAGE(HIERMT_INSTANTIATE)
#undef HIERMT_INSTANTIATE

}  // namespace hiermt::cuda
