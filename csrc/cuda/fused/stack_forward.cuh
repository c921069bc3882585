// Forward of a stack of convolutions in one launch: the end of the kernel, the test whether a layer fits, and
// the launcher. 8, 16, 32 or 64 channels; any storage type but double.
#pragma once

#include "cuda/fused/input_projection.cuh"

namespace hiermt::cuda {

// Shared memory of a block in the forward; small GPUs have 99 kB.
inline size_t stack_shared_limit() {
  const size_t limit = shared_memory_limit();
  return limit < StackLimits::kSharedBytes ? limit : StackLimits::kSharedBytes;
}

template <class S, class Weights>
struct StackForward : StackProblem<S, Weights> {
  S* g;                     // or nullptr
  float* input_projection;  // nullptr without gates

  // Writes the input projection of the items, and g, which `tile` holds, if the backward needs it.
  template <int kHidden, int kItems>
  __device__ __forceinline__ void finish(const GateMemory<kHidden>& gate_memory, const StackInput<S>& input,
                                         const StackBlock& block, const Tile<kHidden>& tile,
                                         const ItemGroup<kItems>& group) const {
    const auto row = [&](int i) { return block.row(this->graph, this->steps, group.node[i], group.step[i]); };
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
    if (input_projection == nullptr) return;
    write_input_projection(gate_memory, input, tile, group,
                           [&](int i) { return input_projection + row(i) * 3 * kHidden; });
  }
};

// What every forward kernel begins with: the steps of the block, x, two tiles and the order of the nodes, which
// needs a barrier.
template <class S, class Items>
struct StackFrame {
  // Eight steps of a node are in different banks without a pad.
  __host__ __device__ static constexpr int pad(int64_t steps) {
    return Items::kQuads == Items::kOwn && steps < 8 ? 1 : Items::kPad;
  }
  __host__ __device__ static constexpr int64_t values(int64_t nodes, int64_t chunk) {
    return Items::values(nodes, chunk, pad(chunk));
  }

  SharedMemory memory;
  StackBlock block;
  StackPresence presence;
  StackInput<S> x;
  Items first, second;
  int* order;
  StackItems items;

  template <class Weights>
  __device__ explicit StackFrame(const StackForward<S, Weights>& p)
      : block(p.steps, p.chunk),
        presence(p, block.copy, block.first_step),
        x(p.x, block.copy, block.first_step),
        first{memory.take<float>(values(p.graph.num_nodes, p.chunk)), block.steps, pad(block.steps)},
        second{memory.take<float>(values(p.graph.num_nodes, p.chunk)), block.steps, pad(block.steps)},
        order(memory.take<int>(p.graph.num_nodes)),
        items{static_cast<int>(p.graph.num_nodes), block.steps, order} {
    order_by_degree(p.graph, items.nodes, reinterpret_cast<int*>(first.data), order);
  }
  // The kernels take a number of each item, too, where there is a mask.
  static size_t bytes(const ConvStackForward<S>& p, int64_t chunk) {
    const int64_t nodes = p.graph.num_nodes;
    return 2 * padded_bytes<float>(values(nodes, chunk)) + padded_bytes<int>(nodes) +
           ItemNumbers::bytes(p.present != nullptr, nodes * chunk);
  }
};

// Calls f with the number of channels of a stack as a constant, or returns `otherwise`.
template <class F, class R>
R dispatch_stack(int64_t hidden, F&& f, R otherwise) {
  if (hidden == 8) return f(std::integral_constant<int, 8>{});
  if (hidden == 16) return f(std::integral_constant<int, 16>{});
  if (hidden == 32) return f(std::integral_constant<int, 32>{});
  if (hidden == 64) return f(std::integral_constant<int, 64>{});
  return otherwise;
}

// Shared memory of a frame and the gates' weights, for a block with `chunk` steps.
template <int kHidden, class S>
size_t stack_bytes(const ConvStackForward<S>& p, int64_t chunk) {
  return StackFrame<S, Tile<kHidden>>::bytes(p, chunk) + GateMemory<kHidden>::bytes(p.x.channels);
}

// Stack names the kind of convolution:
//   Stack::bytes<kHidden>(p, chunk)   shared memory of a block with `chunk` steps
//   Stack::kernel<kHidden, S>()       the kernel
template <class Stack, class S>
bool stack_fits(const ConvStackForward<S>& p) {
  const int64_t nodes = p.graph.num_nodes;
  if (std::is_same_v<S, double> || p.conv_layers > StackLimits::kConvs || p.steps == 0) return false;
  if (nodes == 0 || nodes > StackLimits::kNodes || p.x.channels > StackLimits::kChannels) return false;
  const auto fits = [&](auto hidden) {
    constexpr int kHidden = decltype(hidden)::value;
    if (StackTraits<kHidden>::kMultilane && p.x.channels > kHidden) return false;
    return Stack::template bytes<kHidden>(p, 1) <= stack_shared_limit();
  };
  return dispatch_stack(p.hidden, fits, false);
}

template <class Stack, class S, class Weights>
int launch_stack(const ConvStackForward<S>& p, const Weights* convs, const GateWeights<S>& gates,
                 Compute<S>* input_projection, void* stream) {
  if constexpr (std::is_same_v<S, double>) {
    return cudaErrorInvalidValue;
  } else {
    const int64_t nodes = p.graph.num_nodes, copies = p.graph.copies;
    if (!supported(copies * nodes, p.steps, p.hidden)) return cudaErrorInvalidValue;
    StackForward<S, Weights> stack{{p, convs, gates}, p.out, input_projection};
    const auto run = [&](auto hidden) {
      constexpr int kHidden = decltype(hidden)::value;
      using T = StackTraits<kHidden>;
      const auto bytes = [&](int64_t chunk) { return Stack::template bytes<kHidden>(p, chunk); };
      const int64_t chunk = steps_per_block(p.steps, copies, stack_shared_limit(), bytes);
      stack.chunk = static_cast<int>(chunk);
      return launch(Stack::template kernel<kHidden, S>(),
                    dim3(static_cast<unsigned>(copies * ceil_div<int64_t>(p.steps, chunk))),
                    dim3(static_cast<unsigned>(stack_threads(nodes * chunk * T::kLanes, T::kThreads))),
                    bytes(chunk), static_cast<cudaStream_t>(stream), stack);
    };
    return dispatch_stack(p.hidden, run, cudaErrorInvalidValue);
  }
}

}  // namespace hiermt::cuda
