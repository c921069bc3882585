// The forward of a GATv2 stack: what a convolution passes on stays in shared memory, and only x is read and
// only the gates' input is written.
#include "gate_inputs.cuh"
#include "gatv2_stack.cuh"
#include "gatv2_stack.h"

namespace hiermt::cuda {
namespace {

// Leaves room for a second block on a multiprocessor.
constexpr size_t kStackSharedBytes = 112 * 1024;

// Parameters by value: a kernel cannot follow the host arrays of a layer.
template <class S>
struct StackForward {
  CsrGraph graph;
  SequenceView<S> x;
  const S* edge_weight;
  GatV2Weights<S> convs[kMaxStackConvs];
  GateWeights<S> gates;
  Activation last;
  int conv_layers, steps, chunk;
  S* g;
  float* from_input;
};

template <class S, int kHidden>
__global__ void __launch_bounds__(kStackThreads<kHidden>, 1) gatv2_stack_fwd_kernel(StackForward<S> p) {
  SharedMemory memory;
  const int nodes = static_cast<int>(p.graph.num_nodes);
  const int chunks = ceil_div(p.steps, p.chunk);
  const int copy = static_cast<int>(blockIdx.x) / chunks;
  const int first_step = static_cast<int>(blockIdx.x) % chunks * p.chunk;
  const int chunk = p.steps - first_step < p.chunk ? p.steps - first_step : p.chunk;
  const StackInput<S> x(p.x, copy, first_step);
  // What neighbours read, and a thread's own rows: input of a convolution, its target side, its output.
  const Tile<kHidden> sources{memory.take<float>(static_cast<size_t>(nodes) * p.chunk * kHidden), chunk};
  const Tile<kHidden> own{memory.take<float>(static_cast<size_t>(nodes) * p.chunk * kHidden), chunk};
  const GateMemory<kHidden> gates(memory, x.channels);
  const ConvMemory<kHidden> conv(memory, static_cast<int>(widest_input(x.channels, kHidden, p.conv_layers)));
  int* order = memory.take<int>(nodes);
  const StackItems items{nodes, chunk, order};

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
    const int64_t row = (static_cast<int64_t>(copy) * nodes + node) * p.steps + first_step + step;
    float g[kHidden];
    own.read(node, step, g);
    if (p.g != nullptr) {
#pragma unroll
      for (int c = 0; c < kHidden; ++c) store(p.g + row * kHidden + c, g[c]);
    }
    write_gate_inputs<S, kHidden>(gates, x, x.row(node, step), g, p.from_input + row * 3 * kHidden);
  });
}

template <int kHidden>
size_t stack_bytes(int64_t nodes, int64_t channels, int64_t conv_layers, int64_t chunk) {
  return 2 * padded_bytes<float>(nodes * chunk * kHidden) + GateMemory<kHidden>::bytes(channels) +
         ConvMemory<kHidden>::bytes(widest_input(channels, kHidden, conv_layers)) + padded_bytes<int>(nodes);
}

// Calls f with the compile-time number of channels of a stack, or returns `otherwise`.
template <class F, class R>
R dispatch_stack(int64_t hidden, F&& f, R otherwise) {
  if (hidden == 8) return f(std::integral_constant<int, 8>{});
  if (hidden == 16) return f(std::integral_constant<int, 16>{});
  if (hidden == 32) return f(std::integral_constant<int, 32>{});
  return otherwise;
}

}  // namespace

template <class S>
bool gatv2_stack_fits(const TgcnLayerForward<S>& p) {
  if (std::is_same_v<S, double> || p.gat == nullptr || p.conv_layers > kMaxStackConvs || p.steps == 0)
    return false;
  const int64_t nodes = p.graph.num_nodes;
  if (nodes == 0 || nodes > 4096 || p.x.channels > 1024) return false;
  return dispatch_stack(
      p.hidden,
      [&](auto hidden) {
        return stack_bytes<decltype(hidden)::value>(nodes, p.x.channels, p.conv_layers, 1) <=
               kStackSharedBytes;
      },
      false);
}

template <class S>
int gatv2_stack_forward(const TgcnLayerForward<S>& p, Compute<S>* from_input, void* stream_) {
  if constexpr (std::is_same_v<S, double>) {
    return cudaErrorInvalidValue;
  } else {
    const cudaStream_t stream = static_cast<cudaStream_t>(stream_);
    const int64_t nodes = p.graph.num_nodes, copies = p.graph.copies;
    if (!supported(copies * nodes, p.steps, p.hidden)) return cudaErrorInvalidValue;
    StackForward<S> stack{};
    stack.graph = p.graph;
    stack.x = p.x;
    stack.edge_weight = p.edge_weight;
    for (int64_t k = 0; k < p.conv_layers; ++k) stack.convs[k] = p.gat[k];
    stack.gates = p.gate_weights;
    stack.last = p.between ? Activation::kSigmoid : Activation::kLeakySigmoid;
    stack.conv_layers = static_cast<int>(p.conv_layers);
    stack.steps = static_cast<int>(p.steps);
    stack.g = p.g;
    stack.from_input = from_input;
    const auto run = [&](auto constant) {
      constexpr int kHidden = decltype(constant)::value;
      const auto bytes = [&](int64_t chunk) {
        return stack_bytes<kHidden>(nodes, p.x.channels, p.conv_layers, chunk);
      };
      const int64_t chunk = steps_per_block(p.steps, copies, kStackSharedBytes, bytes);
      stack.chunk = static_cast<int>(chunk);
      return launch(gatv2_stack_fwd_kernel<S, kHidden>,
                    dim3(static_cast<unsigned>(copies * ceil_div<int64_t>(p.steps, chunk))),
                    dim3(static_cast<unsigned>(stack_threads(nodes * chunk, kStackThreads<kHidden>))),
                    bytes(chunk), stream, stack);
    };
    return dispatch_stack(p.hidden, run, cudaErrorInvalidValue);
  }
}

#define HIERMT_INSTANTIATE(S)                                    \
  template bool gatv2_stack_fits<S>(const TgcnLayerForward<S>&); \
  template int gatv2_stack_forward<S>(const TgcnLayerForward<S>&, Compute<S>*, void*);
HIERMT_INSTANTIATE(float)
HIERMT_INSTANTIATE(double)
HIERMT_INSTANTIATE(BFloat16)
HIERMT_INSTANTIATE(Half)
#undef HIERMT_INSTANTIATE

}  // namespace hiermt::cuda
