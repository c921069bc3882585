// The forward of a GATv2 stack: what a convolution passes on stays in shared memory, and only x is read and
// only the gates' input is written.
#include "gatv2_stack.cuh"
#include "gatv2_stack.h"
#include "stack_forward.cuh"

namespace hiermt::cuda {
namespace {

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
  int* order = memory.take<int>(nodes);
  const StackItems items{nodes, block.steps, order};

  order_by_degree(p.graph, nodes, order);
  gates.fill(p.gates, x.channels);

  for (int layer = 0; layer < p.conv_layers; ++layer) {
    __syncthreads();
    conv.fill(p.convs[layer], layer == 0 ? x.channels : kHidden);
    __syncthreads();
    if (layer == 0) {
      project_input(items, conv, x, sources, own);
    } else {
      project_tile(items, conv, own, sources, own);
    }
    __syncthreads();
    attend(items, p.graph, p.edge_weight, conv, stack_activation(layer, p.conv_layers, p.last), sources, own);
  }

  // What the gates read of x and g.
  items.for_each([&](int node, int step) {
    float g[kHidden];
    own.read(node, step, g);
    p.finish(gates, x, block, node, step, g);
  });
}

// Shared memory of a block with `chunk` steps.
template <class S>
struct StackBytes {
  const TgcnLayerForward<S>& p;

  template <class Hidden>
  size_t operator()(Hidden, int64_t chunk) const {
    constexpr int kHidden = Hidden::value;
    const int64_t nodes = p.graph.num_nodes;
    return 2 * padded_bytes<float>(nodes * chunk * kHidden) + GateMemory<kHidden>::bytes(p.x.channels) +
           ConvMemory<kHidden>::bytes(widest_input(p.x.channels, kHidden, p.conv_layers)) +
           padded_bytes<int>(nodes);
  }
};

}  // namespace

template <class S>
bool gatv2_stack_fits(const TgcnLayerForward<S>& p) {
  return p.gat != nullptr && stack_fits(p, StackBytes<S>{p});
}

template <class S>
int gatv2_stack_forward(const TgcnLayerForward<S>& p, Compute<S>* from_input, void* stream) {
  if constexpr (std::is_same_v<S, double>) {
    return cudaErrorInvalidValue;
  } else {
    const auto kernel = [](auto hidden) { return gatv2_stack_fwd_kernel<S, decltype(hidden)::value>; };
    return launch_stack(p, p.gat, from_input, static_cast<cudaStream_t>(stream), StackBytes<S>{p}, kernel);
  }
}

#define HIERMT_INSTANTIATE(S)                                    \
  template bool gatv2_stack_fits<S>(const TgcnLayerForward<S>&); \
  template int gatv2_stack_forward<S>(const TgcnLayerForward<S>&, Compute<S>*, void*);
HIERMT_FOR_EACH_STORAGE(HIERMT_INSTANTIATE)
#undef HIERMT_INSTANTIATE

}  // namespace hiermt::cuda
