// Forward of a stack of convolutions in one launch: the begin and the end of the kernel, the test whether a layer fits,
// and the launcher. 8, 16, 32 or 64 channels; any storage type but double.
#pragma once

#include "cuda/fused/item_products.cuh"

namespace hiermt::cuda {

// Shared memory of a block in the forward; small GPUs have 99 kB.
template <int kHidden>
size_t stack_shared_limit() {
  const size_t limit = shared_memory_limit(), half = StackLimits::kHalfSharedBytes;
  return StackTraits<kHidden>::kMinBlocks == 1 || limit < half ? limit : half;
}

template <class S, class Weights>
struct StackForward : StackProblem<S, Weights> {
  S* g;                     // or nullptr
  float* input_projection;  // nullptr without gates
};

// What every forward kernel begins with: the steps of the block, x, two tiles and the items.
template <class S, class Items>
struct StackFrame {
  StackTask task;
  StackPresence presence;
  StackInput<S> x;
  Items first, second;
  StackItems items;

  template <class Weights>
  __device__ StackFrame(const StackForward<S, Weights>& p, SharedMemory& memory)
      : task(p, static_cast<int>(blockIdx.x)),
        presence(p, task.copy, task.first_step),
        x(p.x, task.copy, task.first_step),
        first(memory.take<float>(Items::values(p.graph.num_nodes, p.chunk)), task.steps),
        second(memory.take<float>(Items::values(p.graph.num_nodes, p.chunk)), task.steps),
        items{static_cast<int>(p.graph.num_nodes), task.steps, p.graph.order} {}
  // The kernels take a number of each item, too, where there is a mask.
  static size_t bytes(const ConvStackForward<S>& p, int64_t chunk) {
    const int64_t nodes = p.graph.num_nodes;
    return 2 * padded_bytes<float>(Items::values(nodes, chunk)) +
           ItemNumbers::bytes(p.present != nullptr, nodes * chunk);
  }
};

// Calls f with the number of channels of a stack as a constant. Of another number no stack fits: false.
template <class F>
auto dispatch_stack(int64_t hidden, F&& f) {
  if (hidden == 8) return f(std::integral_constant<int, 8>{});
  if (hidden == 16) return f(std::integral_constant<int, 16>{});
  if (hidden == 32) return f(std::integral_constant<int, 32>{});
  if (hidden == 64) return f(std::integral_constant<int, 64>{});
  return decltype(f(std::integral_constant<int, 8>{}))();
}

// The last step of a stack kernel: writes g, which a tile holds, if the backward needs it, and the input projection
// W [x, g] + b of the three gates, so that the recurrence reads neither x nor g. `memory` has room for the weights.
template <class S, class Weights, class Items, int kHidden, int kLanes>
__device__ __forceinline__ void finish_stack(const StackForward<S, Weights>& p,
                                             const StackFrame<S, Items>& frame,
                                             const Tile<kHidden, kLanes>& g, float* memory) {
  constexpr int kItems = StackTraits<kHidden>::kItems;
  const StackInput<S>& x = frame.x;
  const int lane = static_cast<int>(threadIdx.x) % 4;
  const auto row = [&](int node, int step) { return frame.task.row(p.graph, p.steps, node, step); };
  const TileInput of_g(g);
  __syncthreads();
  if (p.g != nullptr) {
    const bool packed = quad_aligned(p.g);
    for_each_lane_items<kItems>(frame.items, [&](const LaneItems<kItems>& at) {
#pragma unroll
      for (int block = 0; block < ceil_div(kHidden, kBlockColumns); ++block) {
        float values[kItems][4];
        of_g.quads(at, block, values);
#pragma unroll
        for (int i = 0; i < kItems; ++i) {
          S* to = p.g + static_cast<int64_t>(row(at.node(i), at.step(i))) * kHidden;
          if (at.inside(i)) store_part(to, block * kBlockColumns + 4 * lane, kHidden, packed, values[i]);
        }
      }
    });
  }
  if (p.input_projection == nullptr) return;
  const GateColumns<S> weight{p.gates, x.channels + 2 * kHidden};
  const SequenceInput<S> of_x(x, frame.presence);
  constexpr int kBlocks = StackTraits<kHidden>::kGateBlocks, kColumns = 3 * kHidden;
#pragma unroll 1
  for (int first = 0; first < kColumns; first += kBlocks * kBlockColumns) {
    const ProductWeights<S, kHidden, kBlocks, StackTraits<kHidden>::kItems> matrix{memory, first, kColumns};
    if (first != 0) __syncthreads();
    matrix.fill_biases(weight);
    matrix.fill(weight, 0, 0, x.channels);
    matrix.fill(weight, ceil_div(x.channels, kBlockColumns), x.channels, kHidden);
    __syncthreads();
    float* to = p.input_projection + first + 4 * lane;
    const auto write = [&](int node, int step, const float (&quads)[kBlocks][4], bool wanted) {
      if (!wanted) return;
      float* at = to + static_cast<int64_t>(row(node, step)) * kColumns;
#pragma unroll
      for (int block = 0; block < kBlocks; ++block) {
        constexpr bool kWhole = kColumns % (kBlocks * kBlockColumns) == 0;
        if (kWhole || first + block * kBlockColumns + 4 * lane < kColumns) {
          store_quad(at + block * kBlockColumns, quads[block]);
        }
      }
    };
    for_each_lane_items<kItems>(
        frame.items, [&](const LaneItems<kItems>& at) { matrix.products(at, weight, write, of_x, of_g); });
  }
}

// Values of the weights in shared memory: those of kBlocks blocks of columns of a convolution, or of the gates.
template <class S, int kHidden, int kBlocks>
__host__ __device__ constexpr int64_t stack_weight_values(int64_t channels, int64_t conv_layers) {
  const int64_t inputs = max_inputs(channels, kHidden, conv_layers), width = kBlockColumns;
  const int64_t convs =
      ProductWeights<S, kHidden, kBlocks, StackTraits<kHidden>::kItems>::values(ceil_div(inputs, width));
  const int64_t gates =
      ProductWeights<S, kHidden, StackTraits<kHidden>::kGateBlocks, StackTraits<kHidden>::kItems>::values(
          ceil_div(channels, width) + ceil_div<int64_t>(kHidden, width));
  return convs > gates ? convs : gates;
}

// Shared memory of a frame and the weights, for a block with `chunk` steps.
template <int kHidden, int kLanes, int kBlocks, class S>
size_t stack_bytes(const ConvStackForward<S>& p, int64_t chunk) {
  return StackFrame<S, Tile<kHidden, kLanes>>::bytes(p, chunk) +
         padded_bytes<float>(stack_weight_values<S, kHidden, kBlocks>(p.x.channels, p.conv_layers));
}

// Stack names the kind of convolution, `lanes` those of an item:
//   Stack::bytes<kHidden, lanes>(p, chunk)   shared memory of a block with `chunk` steps
//   Stack::kernel<kHidden, lanes, S>()       the kernel
template <class Stack, class S>
bool stack_fits(const ConvStackForward<S>& p) {
  const int64_t nodes = p.graph.num_nodes;
  if (std::is_same_v<S, double> || p.conv_layers > StackLimits::kConvs || p.steps == 0) return false;
  if (nodes == 0 || nodes > StackLimits::kNodes || p.x.channels > StackLimits::kChannels) return false;
  // Offsets in a copy of x are computed in 32 bits. Each term is compared: their sum could pass 64 bits.
  const int64_t most = INT32_MAX / 4;
  if ((nodes - 1) > most / (p.x.stride_node + 1) || p.steps - 1 > most / (p.x.stride_time + 1) ||
      p.x.channels - 1 > most / (p.x.stride_channel + 1)) {
    return false;
  }
  return dispatch_stack(p.hidden, [&](auto hidden) {
    constexpr int kHidden = decltype(hidden)::value;
    return Stack::template bytes<kHidden, StackTraits<kHidden>::kLanes>(p, 1) <=
           stack_shared_limit<kHidden>();
  });
}

template <class Stack, class S, class Weights>
void launch_stack(const ConvStackForward<S>& p, const Weights* convs, const GateWeights<S>& gates,
                  Compute<S>* input_projection, Stream& on) {
  if constexpr (!std::is_same_v<S, double>) {
    const int64_t nodes = p.graph.num_nodes, copies = p.graph.copies;
    StackForward<S, Weights> stack{{p, convs, gates}, p.out, input_projection};
    dispatch_stack(p.hidden, [&](auto hidden) {
      constexpr int kHidden = decltype(hidden)::value;
      using T = StackTraits<kHidden>;
      const size_t limit = stack_shared_limit<kHidden>();
      const auto bytes = [&](int64_t chunk) { return Stack::template bytes<kHidden, T::kLanes>(p, chunk); };
      const int64_t chunk = steps_per_block(p.steps, copies, limit, bytes);
      stack.chunk = static_cast<int>(chunk);
      stack.chunks = static_cast<int>(ceil_div<int64_t>(p.steps, chunk));
      const auto launch_with = [&](auto lanes) {
        constexpr int kLanes = decltype(lanes)::value;
        launch(Stack::template kernel<kHidden, kLanes, S>(), copies * stack.chunks,
               stack_threads(nodes * chunk * kLanes, T::kThreads),
               Stack::template bytes<kHidden, kLanes>(p, chunk), on, stack);
      };
      // While multiprocessors are idle and the lanes take two rounds of a block, more of them are faster: an item waits
      // for its loads.
      const bool spread = copies * stack.chunks <= StackLimits::kBlocks &&
                          nodes * chunk * T::kSpreadLanes <= 2 * T::kThreads &&
                          Stack::template bytes<kHidden, T::kSpreadLanes>(p, chunk) <= limit;
      if (spread) {
        launch_with(std::integral_constant<int, T::kSpreadLanes>{});
      } else {
        launch_with(std::integral_constant<int, T::kLanes>{});
      }
    });
  }
}

}  // namespace hiermt::cuda
