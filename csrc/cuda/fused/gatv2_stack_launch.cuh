// Forward of a GATv2 stack (equations in dense/gatv2_conv.cuh). The output of a convolution stays in shared
// memory: a kernel reads x and writes the input projection of the gates. A file per storage type instantiates it,
// because the kernels take long to compile.
#pragma once

#include "cuda/fused/gatv2_stack.cuh"
#include "cuda/fused/gatv2_stack.h"
#include "cuda/fused/stack_forward.cuh"

namespace hiermt::cuda {
namespace {

template <class S, int kHidden, int kLanes>
__global__ void __launch_bounds__(StackTraits<kHidden>::kThreads, StackTraits<kHidden>::kMinBlocks)
    gatv2_stack_fwd_kernel(StackForward<S, GatV2Weights<S>> p) {
  using T = StackTraits<kHidden>;
  using Items = Tile<kHidden, kLanes>;
  SharedMemory memory;
  // At a constant offset: its address needs no register.
  const ConvVectors<kHidden> vectors(memory);
  StackFrame<S, Items> frame(p, memory);
  const StackInput<S>& x = frame.x;
  // x_l is read by neighbours. `own` is the input of a convolution, then x_r, then its output.
  const Items &x_l = frame.first, &own = frame.second;
  const StackItems& items = frame.items;
  float* weights =
      memory.take<float>(stack_weight_values<S, kHidden, T::kConvBlocks>(x.channels, p.conv_layers));
  LinearScores<kHidden> linear{nullptr, items.chunk};
  if constexpr (T::kSplitScores) linear.data = memory.take<float>(static_cast<size_t>(items.nodes) * p.chunk);
  const StackPresence& presence = frame.presence;
  const ItemNumbers loops(p, memory);

  for (int layer = 0; layer < p.conv_layers; ++layer) {
    const int inputs = layer == 0 ? x.channels : kHidden;
    const PairWeights<S> weight{p.convs[layer], inputs};
#pragma unroll 1
    for (int first = 0; first < 2 * kHidden; first += T::kConvBlocks * kBlockColumns) {
      const ProductWeights<S, kHidden, T::kConvBlocks, T::kItems> matrix{weights, first, 2 * kHidden};
      __syncthreads();
      matrix.fill_biases(weight);
      matrix.fill(weight, 0, 0, inputs);
      if (first == 0) vectors.fill(p.convs[layer]);
      __syncthreads();
      // x_l is in the first block of columns.
      static_assert(!T::kSplitScores || T::kConvBlocks * kBlockColumns >= 2 * kHidden);
      [[maybe_unused]] float att[4];
      if constexpr (T::kSplitScores) linear.load_att(vectors, att);
      const auto write = [&](int node, int step, float (&quads)[T::kConvBlocks][4], bool wanted) {
        const bool there = presence.has(node, step);
        if constexpr (T::kSplitScores) linear.write(att, quads[0], node, step, there, wanted);
        write_projections(x_l, own, node, step, there, wanted, first, quads);
      };
      for_each_lane_items<T::kItems>(items, [&](const LaneItems<T::kItems>& at) {
        if (layer == 0) {
          matrix.products(at, weight, write, SequenceInput<S>(x, presence));
        } else {
          matrix.products(at, weight, write, TileInput(own));
        }
      });
    }
    if (layer == 0) find_loop_weights<kLanes>(items, p.graph, p.edge_weight, presence, loops);
    __syncthreads();
    const Activation activation = p.activation(layer);
    if constexpr (T::kSplitScores) {
      // Two copies: what a mask needs would spill registers of the one without.
      const auto attend_to = [&](auto masked) {
        attend(items, p.graph, p.edge_weight, masked, presence, loops, vectors, activation, x_l, own, linear);
      };
      if (presence.masked()) {
        attend_to(std::true_type{});
      } else {
        attend_to(std::false_type{});
      }
    } else {
      attend(items, p.graph, p.edge_weight, presence.masked(), presence, loops, vectors, activation, x_l,
             own);
    }
  }
  finish_stack(p, frame, own, weights);
}

struct GatV2Stack {
  template <int kHidden, int kLanes, class S>
  static size_t bytes(const ConvStackForward<S>& p, int64_t chunk) {
    using T = StackTraits<kHidden>;
    return stack_bytes<kHidden, kLanes, T::kConvBlocks>(p, chunk) + ConvVectors<kHidden>::bytes() +
           padded_bytes<float>(T::kSplitScores ? p.graph.num_nodes * chunk : 0);
  }
  template <int kHidden, int kLanes, class S>
  static auto kernel() {
    return gatv2_stack_fwd_kernel<S, kHidden, kLanes>;
  }
};

}  // namespace

template <class S>
bool gatv2_stack_fits(const ConvStackForward<S>& p) {
  return p.gat != nullptr && stack_fits<GatV2Stack>(p);
}

template <class S>
void gatv2_stack_forward(const ConvStackForward<S>& p, const GateWeights<S>& gates,
                         Compute<S>* input_projection, Stream& on) {
  launch_stack<GatV2Stack>(p, p.gat, gates, input_projection, on);
}

}  // namespace hiermt::cuda

#define HIERMT_INSTANTIATE_GATV2_STACK(S)                                                              \
  namespace hiermt::cuda {                                                                             \
  template bool gatv2_stack_fits<S>(const ConvStackForward<S>&);                                       \
  template void gatv2_stack_forward<S>(const ConvStackForward<S>&, const GateWeights<S>&, Compute<S>*, \
                                       Stream&);                                                       \
  }
