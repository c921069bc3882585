// Forward of a GATv2 stack (equations in dense/gatv2_conv.cuh). The output of a convolution stays in shared
// memory: a kernel reads x and writes the input projection of the gates. A file per storage type instantiates it,
// because the kernels take long to compile.
#pragma once

#include "cuda/fused/gatv2_stack.cuh"
#include "cuda/fused/gatv2_stack.h"
#include "cuda/fused/multilane_stack.cuh"

namespace hiermt::cuda {
namespace {

template <class S, int kHidden>
__global__ void __launch_bounds__(StackTraits<kHidden>::kThreads, StackTraits<kHidden>::kMinBlocks)
    gatv2_stack_fwd_kernel(StackForward<S, GatV2Weights<S>> p) {
  // x_l is read by neighbours. Only the owner accesses `own`: input of a convolution, then x_r, then its
  // output.
  StackFrame<S, Tile<kHidden>> frame(p);
  const StackInput<S>& x = frame.x;
  const Tile<kHidden>&x_l = frame.first, &own = frame.second;
  const StackItems& items = frame.items;
  const GateMemory<kHidden> gates(frame.memory, x.channels);
  const ConvMemory<kHidden> conv(frame.memory,
                                 static_cast<int>(max_inputs(x.channels, kHidden, p.conv_layers)));
  float* linear = nullptr;
  if constexpr (StackTraits<kHidden>::kSplitScores)
    linear = frame.memory.template take<float>(static_cast<size_t>(items.nodes) * p.chunk);
  const StackPresence& presence = frame.presence;
  const ItemNumbers loops(p, frame.memory);

  if (p.input_projection != nullptr) gates.fill(p.gates, x.channels);

  for (int layer = 0; layer < p.conv_layers; ++layer) {
    __syncthreads();
    conv.fill(p.convs[layer], layer == 0 ? x.channels : kHidden);
    __syncthreads();
    if (layer == 0) {
      find_loop_weights<1>(items, p.graph, p.edge_weight, presence, loops);
      project<true>(items, conv, x, x_l, own);
    } else {
      project<true>(items, conv, own, x_l, own);
    }
    const Activation activation = p.activation(layer);
    if constexpr (StackTraits<kHidden>::kSplitScores) {
      linear_scores(items, conv.vectors, presence, x_l, linear);
      __syncthreads();
      // Two copies: what a mask needs would spill registers of the one without.
      const auto attend_to = [&](auto masked) {
        attend(items, p.graph, p.edge_weight, masked, presence, loops, conv.vectors, activation, x_l, own,
               static_cast<const float*>(linear));
      };
      if (presence.masked()) {
        attend_to(std::true_type{});
      } else {
        attend_to(std::false_type{});
      }
    } else {
      clear_absent(items, presence, x_l);
      __syncthreads();
      attend(items, p.graph, p.edge_weight, presence.masked(), presence, loops, conv.vectors, activation, x_l,
             own);
    }
  }

  // No barrier: a thread reads only its own items.
  items.for_each_pair([&](const auto& group) { p.finish(gates, x, frame.block, own, group); });
}

template <class S, int kHidden>
__global__ void __launch_bounds__(StackTraits<kHidden>::kThreads, StackTraits<kHidden>::kMinBlocks)
    gatv2_stack_multilane_fwd_kernel(StackForward<S, GatV2Weights<S>> p) {
  using Items = Tile<kHidden, StackTraits<kHidden>::kLanes>;
  StackFrame<S, Items> frame(p);
  const StackInput<S>& x = frame.x;
  const Items &x_l = frame.first, &own = frame.second;
  const StackItems& items = frame.items;
  const StagedMatrix<kHidden> matrix{
      frame.memory.template take<float>(staged_matrix_values<kHidden>(x.channels, p.conv_layers, 2))};
  const ConvVectors<kHidden> vectors(frame.memory);
  const StackPresence& presence = frame.presence;
  const ItemNumbers loops(p, frame.memory);

  stage_rows(items, x, presence, own);
  for (int layer = 0; layer < p.conv_layers; ++layer) {
    const int inputs = layer == 0 ? x.channels : kHidden, quads = ceil_div(inputs, 4);
    const StagedMatrix<kHidden> target{matrix.data + StagedMatrix<kHidden>::values(inputs)};
    const GatV2Weights<S>& weights = p.convs[layer];
    __syncthreads();
    matrix.fill(weights.lin_l_weight, inputs, inputs);
    target.fill(weights.lin_r_weight, inputs, inputs);
    vectors.fill(weights);
    __syncthreads();
    if (layer == 0)
      find_loop_weights<StackTraits<kHidden>::kLanes>(items, p.graph, p.edge_weight, presence, loops);
    // x_l of an item that is not there is the bias: it is finite, and its weight is 0.
    project_tile(items, matrix.data, vectors.lin_l_bias(), own, quads, x_l);
    // In place: a thread has read the items that it overwrites.
    project_tile(items, target.data, vectors.lin_r_bias(), own, quads, own);
    __syncthreads();
    attend(items, p.graph, p.edge_weight, presence.masked(), presence, loops, vectors, p.activation(layer),
           x_l, own);
  }
  __syncthreads();
  finish_multilane(p, frame.block, items, presence, x, matrix, own, x_l);
}

struct GatV2Stack {
  template <int kHidden, class S>
  static size_t bytes(const ConvStackForward<S>& p, int64_t chunk) {
    using T = StackTraits<kHidden>;
    if constexpr (T::kMultilane) {
      return multilane_stack_bytes<kHidden>(p, chunk, 2) + ConvVectors<kHidden>::bytes();
    } else {
      return stack_bytes<kHidden>(p, chunk) +
             ConvMemory<kHidden>::bytes(max_inputs(p.x.channels, kHidden, p.conv_layers)) +
             padded_bytes<float>(T::kSplitScores ? p.graph.num_nodes * chunk : 0);
    }
  }
  template <int kHidden, class S>
  static auto kernel() {
    if constexpr (StackTraits<kHidden>::kMultilane) {
      return gatv2_stack_multilane_fwd_kernel<S, kHidden>;
    } else {
      return gatv2_stack_fwd_kernel<S, kHidden>;
    }
  }
};

}  // namespace

template <class S>
bool gatv2_stack_fits(const ConvStackForward<S>& p) {
  return p.gat != nullptr && stack_fits<GatV2Stack>(p);
}

template <class S>
int gatv2_stack_forward(const ConvStackForward<S>& p, const GateWeights<S>& gates,
                        Compute<S>* input_projection, void* stream) {
  return launch_stack<GatV2Stack>(p, p.gat, gates, input_projection, stream);
}

}  // namespace hiermt::cuda

#define HIERMT_INSTANTIATE_GATV2_STACK(S)                                                             \
  namespace hiermt::cuda {                                                                            \
  template bool gatv2_stack_fits<S>(const ConvStackForward<S>&);                                      \
  template int gatv2_stack_forward<S>(const ConvStackForward<S>&, const GateWeights<S>&, Compute<S>*, \
                                      void*);                                                         \
  }
