// The forward of a GATv2 stack: what a convolution passes on stays in shared memory, and only x is read and
// only the gates' input is written.
#include "cuda/fused/gatv2_stack.cuh"
#include "cuda/fused/gatv2_stack.h"
#include "cuda/fused/stack_forward.cuh"
#include "cuda/fused/wide_stack.cuh"

namespace hiermt::cuda {
namespace {

// Scores in two parts take registers that a thread with 32 channels does not have.
template <int kHidden>
constexpr bool kSplitScores = kHidden <= 16;

template <class S, int kHidden>
__global__ void __launch_bounds__(kStackThreads<kHidden>, 1)
    gatv2_stack_fwd_kernel(StackForward<S, GatV2Weights<S>> p) {
  SharedMemory memory;
  const int nodes = static_cast<int>(p.graph.num_nodes);
  const StackBlock block(p.steps, p.chunk);
  const StackInput<S> x(p.x, block.copy, block.first_step);
  // What neighbours read, and a thread's own rows: input of a convolution, its target side, its output.
  const Tile<kHidden> sources{memory.take<float>(static_cast<size_t>(nodes) * p.chunk * kHidden),
                              block.steps};
  const Tile<kHidden> own{memory.take<float>(static_cast<size_t>(nodes) * p.chunk * kHidden), block.steps};
  const GateMemory<kHidden> gates(memory, x.channels);
  const ConvMemory<kHidden> conv(memory, static_cast<int>(widest_input(x.channels, kHidden, p.conv_layers)));
  float* linear = nullptr;
  if constexpr (kSplitScores<kHidden>) linear = memory.take<float>(static_cast<size_t>(nodes) * p.chunk);
  int* order = memory.take<int>(nodes);
  const StackItems items{nodes, block.steps, order};

  order_by_degree(p.graph, nodes, order);
  if (p.from_input != nullptr) gates.fill(p.gates, x.channels);

  for (int layer = 0; layer < p.conv_layers; ++layer) {
    __syncthreads();
    conv.fill(p.convs[layer], layer == 0 ? x.channels : kHidden);
    __syncthreads();
    if (layer == 0) {
      project_input<true>(items, conv, x, sources, own);
    } else {
      project_tile<true>(items, conv, own, sources, own);
    }
    const Activation activation = stack_activation(layer, p.conv_layers, p.last);
    if constexpr (kSplitScores<kHidden>) {
      score_sources(items, conv.vectors, sources, linear);
      __syncthreads();
      attend(items, p.graph, p.edge_weight, conv.vectors, activation, sources, own,
             static_cast<const float*>(linear));
    } else {
      __syncthreads();
      attend(items, p.graph, p.edge_weight, conv.vectors, activation, sources, own);
    }
  }

  // A thread goes on with its own items.
  items.for_each_pair([&](const auto& group) { p.finish(gates, x, block, own, group); });
}

template <class S, int kHidden>
__global__ void __launch_bounds__(kStackThreads<kHidden>, 2)
    gatv2_stack_wide_fwd_kernel(StackForward<S, GatV2Weights<S>> p) {
  constexpr int kLanes = kStackLanes<kHidden>;
  using Items = Tile<kHidden, kLanes>;
  SharedMemory memory;
  const int nodes = static_cast<int>(p.graph.num_nodes);
  const StackBlock block(p.steps, p.chunk);
  const StackInput<S> x(p.x, block.copy, block.first_step);
  const Items sources{memory.take<float>(Items::values(nodes, p.chunk)), block.steps};
  const Items own{memory.take<float>(Items::values(nodes, p.chunk)), block.steps};
  const WideMatrix<kHidden> matrix{
      memory.take<float>(wide_matrix_values<kHidden>(x.channels, p.conv_layers, 2))};
  const ConvVectors<kHidden> vectors(memory);
  int* order = memory.take<int>(nodes);
  const StackItems items{nodes, block.steps, order};

  order_by_degree(p.graph, nodes, order);
  stage_rows(items, x, own);
  for (int layer = 0; layer < p.conv_layers; ++layer) {
    const int inputs = layer == 0 ? x.channels : kHidden, quads = ceil_div(inputs, 4);
    const WideMatrix<kHidden> target{matrix.data + WideMatrix<kHidden>::values(inputs)};
    const GatV2Weights<S>& weights = p.convs[layer];
    __syncthreads();
    matrix.fill(weights.lin_l_weight, inputs, inputs);
    target.fill(weights.lin_r_weight, inputs, inputs);
    vectors.fill(weights);
    __syncthreads();
    project_tile(items, matrix.data, vectors.source_bias(), own, quads, sources);
    // The same thread has the same items: what it overwrites now, it has read.
    project_tile(items, target.data, vectors.target_bias(), own, quads, own);
    __syncthreads();
    attend(items, p.graph, p.edge_weight, vectors, stack_activation(layer, p.conv_layers, p.last), sources,
           own);
  }
  __syncthreads();
  finish_wide(p, block, items, x, matrix, own, sources);
}

// Shared memory of a block with `chunk` steps.
template <class S>
struct StackBytes {
  const ConvStackForward<S>& p;

  template <class Hidden>
  size_t operator()(Hidden, int64_t chunk) const {
    constexpr int kHidden = Hidden::value;
    const int64_t nodes = p.graph.num_nodes;
    if constexpr (kHidden == kWideHidden) {
      return wide_stack_bytes<kHidden>(p, chunk, 2) + ConvVectors<kHidden>::bytes();
    }
    return 2 * padded_bytes<float>(nodes * chunk * kHidden) + GateMemory<kHidden>::bytes(p.x.channels) +
           ConvMemory<kHidden>::bytes(widest_input(p.x.channels, kHidden, p.conv_layers)) +
           padded_bytes<float>(kSplitScores<kHidden> ? nodes * chunk : 0) + padded_bytes<int>(nodes);
  }
};

}  // namespace

template <class S>
bool gatv2_stack_fits(const ConvStackForward<S>& p) {
  return p.gat != nullptr && stack_fits(p, StackBytes<S>{p});
}

template <class S>
int gatv2_stack_forward(const ConvStackForward<S>& p, const GateWeights<S>& gates, Compute<S>* from_input,
                        void* stream) {
  if constexpr (std::is_same_v<S, double>) {
    return cudaErrorInvalidValue;
  } else {
    const auto kernel = [](auto hidden) {
      constexpr int kHidden = decltype(hidden)::value;
      if constexpr (kHidden == kWideHidden) {
        return gatv2_stack_wide_fwd_kernel<S, kHidden>;
      } else {
        return gatv2_stack_fwd_kernel<S, kHidden>;
      }
    };
    return launch_stack(p, p.gat, gates, from_input, static_cast<cudaStream_t>(stream), StackBytes<S>{p},
                        kernel);
  }
}

#define HIERMT_INSTANTIATE(S)                                    \
  template bool gatv2_stack_fits<S>(const ConvStackForward<S>&); \
  template int gatv2_stack_forward<S>(const ConvStackForward<S>&, const GateWeights<S>&, Compute<S>*, void*);
HIERMT_FOR_EACH_STORAGE(HIERMT_INSTANTIATE)
#undef HIERMT_INSTANTIATE

}  // namespace hiermt::cuda
