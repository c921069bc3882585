// The forward of a stack of convolutions in one launch: what its kernel is given, when it fits, and how it is
// launched. Sizes: 8, 16, 32 or 64 channels, any storage type but double.
#pragma once

#include "cuda/fused/gate_inputs.cuh"
#include "cuda/fused/stack.cuh"

namespace hiermt::cuda {

// Leaves room for a second block on a multiprocessor.
constexpr size_t kStackSharedBytes = 112 * 1024;
constexpr int64_t kMaxStackNodes = 4096;
constexpr int64_t kMaxStackChannels = 1024;
// Four lanes share an item from here on, and its x goes through a tile: no more of them than the item has.
constexpr int kWideHidden = 64;

template <int kHidden>
constexpr int kStackLanes = kHidden < kWideHidden ? 1 : 4;

// Small GPUs have 99 kB for a block.
inline size_t stack_shared_limit() {
  const size_t limit = shared_memory_limit();
  return limit < kStackSharedBytes ? limit : kStackSharedBytes;
}

// Parameters by value: a kernel cannot follow the host arrays of a layer.
template <class S, class Weights>
struct StackForward {
  CsrGraph graph;
  SequenceView<S> x;
  const S* edge_weight;
  Weights convs[kMaxStackConvs];
  GateWeights<S> gates;
  Activation last;
  int conv_layers, steps, chunk;
  S* g;               // or nullptr
  float* from_input;  // nullptr without gates

  // Keeps g of the items, which `tile` holds, for the backward, and leaves what their gates take from x and
  // g.
  template <int kHidden, int kItems>
  __device__ __forceinline__ void finish(const GateMemory<kHidden>& gate_memory, const StackInput<S>& input,
                                         const StackBlock& block, const Tile<kHidden>& tile,
                                         const ItemGroup<kItems>& group) const {
    const auto row = [&](int i) { return block.row(graph, steps, group.node[i], group.step[i]); };
    if (g != nullptr) {
#pragma unroll
      for (int i = 0; i < kItems; ++i) {
        float values[kHidden];
        tile.read(group.node[i], group.step[i], values);
        S* to = g + row(i) * kHidden;
#pragma unroll
        for (int c = 0; c < kHidden; ++c) store(to + c, values[c]);
      }
    }
    if (from_input == nullptr) return;
    write_gate_inputs(gate_memory, input, tile, group,
                      [&](int i) { return from_input + row(i) * 3 * kHidden; });
  }
};

// Calls f with the compile-time number of channels of a stack, or returns `otherwise`.
template <class F, class R>
R dispatch_stack(int64_t hidden, F&& f, R otherwise) {
  if (hidden == 8) return f(std::integral_constant<int, 8>{});
  if (hidden == 16) return f(std::integral_constant<int, 16>{});
  if (hidden == 32) return f(std::integral_constant<int, 32>{});
  if (hidden == kWideHidden) return f(std::integral_constant<int, kWideHidden>{});
  return otherwise;
}

// bytes(channels of the stack, as a constant; steps of a block): shared memory that its kernel takes.
template <class S, class Bytes>
bool stack_fits(const ConvStackForward<S>& p, Bytes&& bytes) {
  const int64_t nodes = p.graph.num_nodes;
  if (std::is_same_v<S, double> || p.conv_layers > kMaxStackConvs || p.steps == 0) return false;
  if (nodes == 0 || nodes > kMaxStackNodes || p.x.channels > kMaxStackChannels) return false;
  if (p.hidden == kWideHidden && p.x.channels > kWideHidden) return false;
  return dispatch_stack(
      p.hidden, [&](auto hidden) { return bytes(hidden, 1) <= stack_shared_limit(); }, false);
}

// kernel(channels of the stack, as a constant): the kernel for them.
template <class S, class Weights, class Bytes, class Kernel>
cudaError_t launch_stack(const ConvStackForward<S>& p, const Weights* convs, const GateWeights<S>& gates,
                         Compute<S>* from_input, cudaStream_t stream, Bytes&& bytes, Kernel&& kernel) {
  const int64_t nodes = p.graph.num_nodes, copies = p.graph.copies;
  if (!supported(copies * nodes, p.steps, p.hidden)) return cudaErrorInvalidValue;
  StackForward<S, Weights> stack{};
  stack.graph = p.graph;
  stack.x = p.x;
  stack.edge_weight = p.edge_weight;
  for (int64_t k = 0; k < p.conv_layers; ++k) stack.convs[k] = convs[k];
  stack.gates = gates;
  stack.last = p.last;
  stack.conv_layers = static_cast<int>(p.conv_layers);
  stack.steps = static_cast<int>(p.steps);
  stack.g = p.out;
  stack.from_input = from_input;
  const auto run = [&](auto hidden) {
    const auto of_steps = [&](int64_t chunk) { return bytes(hidden, chunk); };
    const int64_t chunk = steps_per_block(p.steps, copies, stack_shared_limit(), of_steps);
    constexpr int kHidden = decltype(hidden)::value;
    const int64_t threads = stack_threads(nodes * chunk * kStackLanes<kHidden>, kStackThreads<kHidden>);
    stack.chunk = static_cast<int>(chunk);
    return launch(kernel(hidden), dim3(static_cast<unsigned>(copies * ceil_div<int64_t>(p.steps, chunk))),
                  dim3(static_cast<unsigned>(threads)), of_steps(chunk), stream, stack);
  };
  return dispatch_stack(p.hidden, run, cudaErrorInvalidValue);
}

}  // namespace hiermt::cuda
