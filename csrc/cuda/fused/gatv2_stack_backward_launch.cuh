// Backward of a GATv2 stack in one launch (equations in gatv2_stack_backward.cuh): from the cotangents of the
// gates to those of x, of the edge weights and of the parameters of the convolutions. Activations between the
// convolutions are recomputed in shared memory. A file per storage type instantiates it: the kernels take longer to
// compile than all others.
#pragma once

#include "cuda/dense/gatv2_grads.cuh"
#include "cuda/fused/gatv2_stack.h"
#include "cuda/fused/gatv2_stack_backward.cuh"
#include "cuda/fused/stack_forward.cuh"
#include "cuda/scan/gate_grads.cuh"
#include "cuda/scan/gated_scan.cuh"

namespace hiermt::cuda {
namespace {

template <int kHidden>
struct BackwardTraits {
  // 168 registers a thread. A hundred nodes at seven steps are two rounds of 352 threads.
  static constexpr int kThreads = 384;
  // The gradient of the edge weights needs more registers.
  static constexpr int threads(bool edges) { return edges ? 256 : kThreads; }
  // Lanes of an item: 16 channels a lane would spill at 64, and eight lanes read a tile without bank
  // conflicts.
  static constexpr int kLanes = kHidden <= 16 ? 1 : kHidden / 8;
  // At 64 channels the weights of the gates and of a convolution do not fit together and share their memory.
  static constexpr bool kShareWeightMemory = kHidden > 32;
  static_assert(kThreads % kWarp == 0 && kWarp % kLanes == 0);
};
// Each block has a partial sum of the gradients, so a block loops over its tasks if there are more of them.
constexpr int64_t kMaxStackBlocks = 2 * StackLimits::kBlocks;

template <class S>
struct StackBackward : StackProblem<S, GatV2Weights<S>> {
  const S* g;
  float* d_gates;  // [N * T, 3H], overwritten
  S* d_x;
  float* partial = nullptr;               // [blocks, values] sums of the gradients of all convolutions
  float2* pairs = nullptr;                // [blocks, E, chunk]
  float* d_edges = nullptr;               // [copies * T, E], or nullptr
  int chunks = 0, tasks = 0, values = 0;  // chunks of a copy and of all copies; values of a partial sum
};

template <int kHidden>
struct StackMemory {
  using T = BackwardTraits<kHidden>;
  using Items = Tile<kHidden, T::kLanes>;

  __host__ __device__ static constexpr int64_t input_values(int64_t nodes, int64_t chunk) {
    const int64_t tile = Items::values(nodes, chunk), scratch = T::kThreads * kProductSums;
    return tile > scratch ? tile : scratch;
  }
  // Weights of the gates, or of the gates and a convolution if they share their memory.
  __host__ __device__ static constexpr int64_t weight_values(int64_t channels, int64_t inputs) {
    const int64_t gates = 3 * (channels + kHidden) * kHidden, conv = ConvMemory<kHidden>::values(inputs);
    return T::kShareWeightMemory && conv > gates ? conv : gates;
  }
  template <class S>
  static size_t bytes(const ConvStackForward<S>& p, int64_t chunk) {
    const int64_t nodes = p.graph.num_nodes, channels = p.x.channels;
    const int64_t inputs = max_inputs(channels, kHidden, p.conv_layers);
    return 3 * padded_bytes<float>(Items::values(nodes, chunk)) +
           padded_bytes<float>(input_values(nodes, chunk)) +
           padded_bytes<float>(weight_values(channels, inputs)) +
           (T::kShareWeightMemory ? 0 : ConvMemory<kHidden>::bytes(inputs)) +
           padded_bytes<float>(T::kThreads / kWarp * 3 * kHidden) + padded_bytes<int>(nodes) +
           ItemNumbers::bytes(p.present != nullptr, nodes * chunk);
  }
};

// Backward of the input projection: writes d_x, as far as the gates contribute, and d_y of the last
// convolution.
template <class S, int kHidden, int kLanes>
__device__ __forceinline__ void input_projection_backward(const StackBackward<S>& p,
                                                          const float* gate_weights, const StackItems& items,
                                                          int first_row, const Tile<kHidden, kLanes>& d_y) {
  constexpr int kChannels = kHidden / kLanes;
  const int channels = static_cast<int>(p.x.channels), lane = lane_of_item<kLanes>();
  // Slope of the leaky_relu before the last sigmoid, if there is one.
  const float slope_below = p.last == Activation::kLeakySigmoid ? static_cast<float>(kActivationSlope) : 1.0f;
  items.for_each_with_mask<kLanes>([&](int node, int step, unsigned mask) {
    const int64_t row = first_row + node * p.steps + step;
    float d_gates[3][kChannels];
#pragma unroll
    for (int gate = 0; gate < 3; ++gate) {
      copy_channels<kHidden, kLanes>(p.d_gates + (row * 3 + gate) * kHidden, d_gates[gate]);
    }
    const auto cotangent_at = [&](int k) {
      float sum = 0.0f;
#pragma unroll
      for (int gate = 0; gate < 3; ++gate) {
        float weights[kChannels];
        copy_channels<kHidden, kLanes>(gate_weights + (k * 3 + gate) * kHidden, weights);
        sum += inner_product(d_gates[gate], weights);
      }
      return item_sum<kLanes>(sum, mask);
    };
    if (p.d_x != nullptr) {
#pragma unroll 1
      for (int k = 0; k < channels; ++k) {
        const float d_x = cotangent_at(k);
        if (k % kLanes == lane) store(p.d_x + row * channels + k, d_x);
      }
    }
    // Four channels at a time: more would take the registers of the sweeps.
    float4* to = d_y.at(node, step);
#pragma unroll 1
    for (int k = 0; k < kHidden; k += 4) {
      float quad[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float y = load(p.g + row * kHidden + k + i);
        quad[i] = cotangent_at(channels + k + i) * y * (1.0f - y) * (y > 0.5f ? 1.0f : slope_below);
      }
      if (k / 4 % kLanes == lane) to[k / 4 * d_y.chunk] = float4{quad[0], quad[1], quad[2], quad[3]};
    }
  });
}

// Copies the channels [first, first + H) of x to a tile; zeros past the end and where an item is not there.
template <class S, int kHidden, int kLanes>
__device__ void stage_input(const StackItems& items, const StackInput<S>& x, const StackPresence& presence,
                            int first, const Tile<kHidden, kLanes>& inputs) {
  items.for_each_with_mask<kLanes>([&](int node, int step, unsigned) {
    const S* row = x.row(node, step);
    const int channels = presence.has(node, step) ? x.channels : 0;
    float values[kHidden / kLanes];
#pragma unroll
    for (int c = 0; c < kHidden / kLanes; ++c) {
      const int k = first + c / 4 * 4 * kLanes + 4 * lane_of_item<kLanes>() + c % 4;
      values[c] = k < channels ? load(row + k * x.stride_channel) : 0.0f;
    }
    inputs.write(node, step, values);
  });
}

template <class S, int kHidden, bool kEdges>
__global__ void __launch_bounds__(BackwardTraits<kHidden>::threads(kEdges), 1)
    gatv2_stack_bwd_kernel(StackBackward<S> p) {
  using T = BackwardTraits<kHidden>;
  SharedMemory memory;
  const int nodes = static_cast<int>(p.graph.num_nodes), channels = static_cast<int>(p.x.channels);
  const int entries = static_cast<int>(p.graph.num_entries);
  constexpr int kLanes = T::kLanes, kChannels = kHidden / kLanes;
  using Items = Tile<kHidden, kLanes>;
  using Sizes = StackMemory<kHidden>;
  const size_t room = Items::values(nodes, p.chunk);
  // Pieces at constant offsets come first: their addresses need no registers.
  float* warp_sums = memory.take<float>(T::kThreads / kWarp * 3 * kHidden);
  const int most_inputs = static_cast<int>(max_inputs(channels, kHidden, p.conv_layers));
  float* gate_weights = memory.take<float>(Sizes::weight_values(channels, most_inputs));
  const ConvMemory<kHidden> conv = T::kShareWeightMemory ? ConvMemory<kHidden>(gate_weights, most_inputs)
                                                         : ConvMemory<kHidden>(memory, most_inputs);
  int* order = memory.take<int>(nodes);
  float* x_l_data = memory.take<float>(room);
  float* x_r_data = memory.take<float>(room);
  float* d_y_data = memory.take<float>(room);
  float* input_data = memory.take<float>(Sizes::input_values(nodes, p.chunk));
  const ItemNumbers loops(p, memory);

  order_by_degree(p.graph, nodes, reinterpret_cast<int*>(x_l_data), order);
  if constexpr (!T::kShareWeightMemory)
    fill_gate_weights<S, kHidden>(p.gates, channels + kHidden, gate_weights);
  __syncthreads();

  for (int task = static_cast<int>(blockIdx.x); task < p.tasks; task += static_cast<int>(gridDim.x)) {
    const int copy = task / p.chunks, first_step = task % p.chunks * p.chunk;
    const int chunk = p.steps - first_step < p.chunk ? p.steps - first_step : p.chunk;
    const StackItems items{nodes, chunk, order};
    const StackPresence presence(p, copy, first_step);
    const Items x_l{x_l_data, chunk}, x_r{x_r_data, chunk}, d_y{d_y_data, chunk}, inputs{input_data, chunk};
    const EdgePairs pairs{p.pairs + blockIdx.x * static_cast<int64_t>(entries) * p.chunk, chunk};
    const int first_row = copy * nodes * p.steps + first_step;
    // d_x_r overwrites the cotangents of the gates, which have been read by then.
    const auto d_x_r_row = [&](int node, int step) {
      return p.d_gates + static_cast<int64_t>(first_row + node * p.steps + step) * 3 * kHidden;
    };
    if constexpr (T::kShareWeightMemory) {
      fill_gate_weights<S, kHidden>(p.gates, channels + kHidden, gate_weights);
      __syncthreads();
    }
    input_projection_backward(p, gate_weights, items, first_row, d_y);
    find_loop_weights<kLanes>(items, p.graph, p.edge_weight, presence, loops);

    const auto project_layer = [&](int layer, const Items& to) {
      __syncthreads();
      conv.fill(p.convs[layer], layer == 0 ? channels : kHidden);
      __syncthreads();
      if (layer == 0) {
        project<false>(items, conv, StackInput<S>(p.x, copy, first_step), x_l, to);
      } else {
        project<false>(items, conv, inputs, x_l, to);
      }
      clear_absent(items, presence, x_l);
      __syncthreads();
    };
    for (int layer = p.conv_layers - 1; layer >= 0; --layer) {
      const int width = layer == 0 ? channels : kHidden;
      const int before_layer = layer == 0
                                   ? 0
                                   : static_cast<int>(conv_grad_values(channels, kHidden) +
                                                      (layer - 1) * conv_grad_values(kHidden, kHidden));
      float* partial = p.partial + static_cast<int>(blockIdx.x) * p.values + before_layer;
      const bool add = task != static_cast<int>(blockIdx.x);
      const PartialSum vectors{partial, add}, matrices{partial + 3 * kHidden, add};
      for (int before = 0; before < layer; ++before) {
        project_layer(before, inputs);
        attend(items, p.graph, p.edge_weight, presence.masked(), presence, loops, conv.vectors,
               Activation::kLeakyRelu, x_l, inputs);
      }
      project_layer(layer, x_r);
      sum_cotangents(items, d_y, warp_sums);
      {
        float att_sums[kChannels] = {}, edge_sums[kChannels] = {};
        const int64_t first_instance = copy * p.steps + first_step;
        const EdgeSums edge_weight_sums{kEdges ? p.d_edges + first_instance * entries : nullptr, entries,
                                        layer + 1 < p.conv_layers};
        if (kEdges && !edge_weight_sums.add) edge_weight_sums.clear_padding(p.graph.rowptr[nodes], chunk);
        target_sweep<kEdges>(items, p.graph, p.edge_weight, presence, loops, conv.vectors, x_l, x_r, d_y,
                             pairs, d_x_r_row, att_sums, edge_sums, edge_weight_sums);
        sum_over_warp<kHidden, kLanes>(att_sums, 0, 3, warp_sums);
        sum_over_warp<kHidden, kLanes>(edge_sums, 1, 3, warp_sums);
      }
      __syncthreads();
      for (int i = static_cast<int>(threadIdx.x); i < 3 * kHidden; i += static_cast<int>(blockDim.x)) {
        const float sum = sum_over_warps(warp_sums, i, 3 * kHidden);
        vectors.put(i, i / kHidden == 1 ? sum * conv.vectors.att()[i % kHidden] : sum);
      }
      source_sweep(items, p.graph, p.edge_weight, presence, loops, conv.vectors, x_l, x_r, d_y, pairs);
      __syncthreads();
      // Backward of the projections: d_y of the convolution below, or d_x.
      items.template for_each_with_mask<kLanes>([&](int node, int step, unsigned mask) {
        float d_x_l[kChannels], d_x_r[kChannels], d_below[kChannels];
        x_l.read(node, step, d_x_l);
        copy_channels<kHidden, kLanes>(d_x_r_row(node, step), d_x_r);
        x_r.write(node, step, d_x_r);
        const auto cotangent_at = [&](int k) {
          float lin_l[kChannels], lin_r[kChannels];
          copy_channels<kHidden, kLanes>(conv.lin_l + k * kHidden, lin_l);
          copy_channels<kHidden, kLanes>(conv.lin_r + k * kHidden, lin_r);
          return item_sum<kLanes>(inner_product(d_x_l, lin_l) + inner_product(d_x_r, lin_r), mask);
        };
        const int lane = lane_of_item<kLanes>();
        if (layer == 0) {
          if (p.d_x == nullptr) return;
          S* to = p.d_x + static_cast<int64_t>(first_row + node * p.steps + step) * channels;
          for (int k = 0; k < channels; ++k) {
            const float through = cotangent_at(k);
            if (k % kLanes == lane) store(to + k, load(to + k) + through);
          }
        } else {
          inputs.read(node, step, d_below);
#pragma unroll
          for (int c = 0; c < kChannels; ++c) {
            float mine = 0.0f;
#pragma unroll
            for (int l = 0; l < kLanes; ++l) {
              const float through = cotangent_at((c / 4 * kLanes + l) * 4 + c % 4);
              if (l == lane) mine = through;
            }
            d_below[c] = mine * activation_slope(Activation::kLeakyRelu, d_below[c]);
          }
          d_y.write(node, step, d_below);
        }
      });
      for (int first = 0; first < width; first += kHidden) {
        if (layer == 0) stage_input(items, StackInput<S>(p.x, copy, first_step), presence, first, inputs);
        __syncthreads();
        weight_products(nodes, x_l, x_r, inputs, first, width, matrices);
        __syncthreads();
      }
    }
  }
}

// How a layer is divided: steps of a task, tasks, blocks, and values of the partial sum of a block.
struct BackwardPlan {
  int64_t chunk, tasks, blocks, values;
  size_t shared_bytes;

  template <int kHidden, class S>
  static BackwardPlan of(const ConvStackForward<S>& p) {
    BackwardPlan plan{};
    const auto bytes = [&](int64_t chunk) { return StackMemory<kHidden>::bytes(p, chunk); };
    plan.chunk = steps_per_block(p.steps, p.graph.copies, shared_memory_limit(), bytes);
    plan.shared_bytes = bytes(plan.chunk);
    plan.tasks = p.graph.copies * ceil_div(p.steps, plan.chunk);
    plan.blocks = plan.tasks < kMaxStackBlocks ? plan.tasks : kMaxStackBlocks;
    for (int64_t k = 0; k < p.conv_layers; ++k) {
      plan.values += conv_grad_values(k == 0 ? p.x.channels : p.hidden, p.hidden);
    }
    return plan;
  }
};

struct BackwardWorkspace {
  Workspace memory;
  float* partial;
  float2* pairs;
  float* d_edges;  // nullptr if they are not wanted

  template <class S>
  BackwardWorkspace(void* base, const BackwardPlan& plan, const ConvStackForward<S>& p, bool edges)
      : memory(base),
        partial(memory.take<float>(plan.blocks * plan.values)),
        pairs(memory.take<float2>(plan.blocks * p.graph.num_entries * plan.chunk)),
        d_edges(edges ? memory.take<float>(p.graph.copies * p.steps * p.graph.num_entries) : nullptr) {}
};

}  // namespace

template <class S>
bool gatv2_stack_backward_fits(const ConvStackForward<S>& p) {
  if (!gatv2_stack_fits(p)) return false;
  if (prefers_tensor_cores<S>(p.hidden, p.tf32)) return false;
  return dispatch_stack(
      p.hidden,
      [&](auto hidden) {
        return BackwardPlan::of<decltype(hidden)::value>(p).shared_bytes <= shared_memory_limit();
      },
      false);
}

template <class S>
size_t gatv2_stack_backward_workspace(const ConvStackBackward<S, Compute<S>>& p) {
  return dispatch_stack(
      p.forward.hidden,
      [&](auto hidden) {
        const BackwardPlan plan = BackwardPlan::of<decltype(hidden)::value>(p.forward);
        return BackwardWorkspace(nullptr, plan, p.forward, p.d_edge_weight != nullptr).memory.bytes();
      },
      size_t{0});
}

template <class S>
int gatv2_stack_backward(const ConvStackBackward<S, Compute<S>>& p, const GateWeights<S>& gates,
                         Compute<S>* d_gates, const GateGradChunks<Compute<S>>& gate_grads, void* workspace,
                         void* stream_) {
  if constexpr (std::is_same_v<S, double>) {
    return cudaErrorInvalidValue;
  } else {
    const cudaStream_t stream = static_cast<cudaStream_t>(stream_);
    const ConvStackForward<S>& f = p.forward;
    StackBackward<S> stack{{f, f.gat, gates}, f.out, d_gates, p.d_x};
    StackGrads grads{{}, stack.conv_layers, static_cast<int>(f.x.channels), static_cast<int>(f.hidden)};
    for (int64_t k = 0; p.gat != nullptr && k < f.conv_layers; ++k) grads.convs[k] = p.gat[k];
    const auto run = [&](auto hidden) {
      constexpr int kHidden = decltype(hidden)::value;
      if constexpr (prefers_tensor_cores<S>(kHidden, false)) {
        return cudaErrorInvalidValue;
      } else {
        using T = BackwardTraits<kHidden>;
        const BackwardPlan plan = BackwardPlan::of<kHidden>(f);
        stack.chunk = static_cast<int>(plan.chunk);
        stack.tasks = static_cast<int>(plan.tasks);
        stack.chunks = ceil_div(stack.steps, stack.chunk);
        stack.values = static_cast<int>(plan.values);
        const int64_t items = f.graph.num_nodes * plan.chunk * T::kLanes;
        const int64_t wanted = items > kLeastThreads<kHidden> ? items : kLeastThreads<kHidden>;
        const bool edges = p.d_edge_weight != nullptr;
        const BackwardWorkspace memory(workspace, plan, f, edges);
        stack.partial = memory.partial;
        stack.pairs = memory.pairs;
        stack.d_edges = memory.d_edges;
        const int64_t threads = stack_threads(wanted, T::threads(edges));
        HIERMT_CUDA_RETURN_IF_ERROR(launch(
            edges ? gatv2_stack_bwd_kernel<S, kHidden, true> : gatv2_stack_bwd_kernel<S, kHidden, false>,
            dim3(static_cast<unsigned>(plan.blocks)), dim3(static_cast<unsigned>(threads)), plan.shared_bytes,
            stream, stack));
        // What is not wanted has no elements.
        const EdgeWeightGrads edge_grads{f.graph.rowptr, static_cast<int>(f.graph.num_nodes),
                                         p.d_edge_weight};
        return ordered_sum(
            stream, sum_of_gates(gate_grads),
            sum_of(stack.partial, plan.blocks, p.gat != nullptr ? plan.values : 0, grads),
            sum_of(stack.d_edges, f.graph.copies * f.steps, edges ? f.graph.num_entries : 0, edge_grads));
      }
    };
    return dispatch_stack(f.hidden, run, cudaErrorInvalidValue);
  }
}

}  // namespace hiermt::cuda

#define HIERMT_INSTANTIATE_GATV2_STACK_BACKWARD(S)                                                     \
  namespace hiermt::cuda {                                                                             \
  template bool gatv2_stack_backward_fits<S>(const ConvStackForward<S>&);                              \
  template size_t gatv2_stack_backward_workspace<S>(const ConvStackBackward<S, Compute<S>>&);          \
  template int gatv2_stack_backward<S>(const ConvStackBackward<S, Compute<S>>&, const GateWeights<S>&, \
                                       Compute<S>*, const GateGradChunks<Compute<S>>&, void*, void*);  \
  }
