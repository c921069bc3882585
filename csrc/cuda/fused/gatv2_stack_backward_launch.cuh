// Backward of a GATv2 stack in one launch (equations in gatv2_stack_backward.cuh): from the cotangent of its output
// to those of x, of the edge weights and of the parameters of the convolutions. Activations between the
// convolutions are recomputed in shared memory. A file per storage type instantiates it: the kernels take longer to
// compile than all others.
#pragma once

#include "cuda/dense/gatv2_grads.cuh"
#include "cuda/fused/gatv2_stack.h"
#include "cuda/fused/gatv2_stack_backward.cuh"
#include "cuda/fused/stack_forward.cuh"
#include "cuda/scan/gate_grads.cuh"

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
  static constexpr bool kSplitScores = kLanes == 1;
  static constexpr int kLeastThreads = WeightUnits<kHidden>::kLeastThreads;
  static_assert(kThreads % kWarp == 0 && kWarp % kLanes == 0 && kLeastThreads <= threads(true));
};
// Each block has a partial sum of the gradients, so a block loops over its tasks if there are more of them.
constexpr int64_t kMaxStackBlocks = 2 * StackLimits::kBlocks;

template <class S>
struct StackBackward : StackProblem<S, GatV2Weights<S>> {
  const S *out, *d_out;
  float* d_x_r;  // [N * T, H]; may be d_out, which a task has read before
  S* d_x;
  bool accumulate_d_x;
  float* partial = nullptr;   // [blocks, values] sums of the gradients of all convolutions
  float2* pairs = nullptr;    // [blocks, E, chunk]
  float* d_edges = nullptr;   // [copies * T, E], or nullptr
  int tasks = 0, values = 0;  // tasks of all copies; values of a partial sum
};

template <class S, int kHidden>
struct StackMemory {
  using T = BackwardTraits<kHidden>;
  using Items = Tile<kHidden, T::kLanes>;

  __host__ __device__ static constexpr int64_t input_values(int64_t nodes, int64_t chunk) {
    const int64_t tile = Items::values(nodes, chunk), scratch = WeightUnits<kHidden>::values(T::kThreads);
    return tile > scratch ? tile : scratch;
  }
  static size_t bytes(const ConvStackForward<S>& p, int64_t chunk) {
    const int64_t nodes = p.graph.num_nodes, inputs = max_inputs(p.x.channels, kHidden, p.conv_layers);
    return 3 * padded_bytes<float>(Items::values(nodes, chunk)) +
           padded_bytes<float>(input_values(nodes, chunk)) +
           padded_bytes<float>(backward_weight_values<S, kHidden>(inputs)) + ConvVectors<kHidden>::bytes() +
           padded_bytes<float>(T::kThreads / kWarp * 3 * kHidden) +
           ItemNumbers::bytes(p.present != nullptr, nodes * chunk) +
           padded_bytes<float>(T::kSplitScores ? nodes * chunk : 0);
  }
};

// d_y of the last convolution, the cotangent of the output times the slope of the activation, and its sum over the
// items of each warp.
template <class S, int kHidden, int kLanes, class Row>
__device__ __forceinline__ void read_cotangents(const StackBackward<S>& p, const StackItems& items,
                                                const StackPresence& presence, const Row& row,
                                                const Tile<kHidden, kLanes>& d_y, float* warp_sums) {
  const bool packed = quad_aligned(p.out) && quad_aligned(p.d_out);
#pragma unroll
  for (int first = 0; first < kHidden; first += kBlockColumns) {
    const int quad = first / 4 + static_cast<int>(threadIdx.x) % 4;
    float sums[1][4] = {};
    for_each_lane_items<kBackwardItems>(items, [&](const auto& at) {
#pragma unroll
      for (int i = 0; i < kBackwardItems; ++i) {
        if (!at.inside(i) || quad >= kHidden / 4) break;
        const int node = at.node(i), step = at.step(i);
        const int64_t offset = static_cast<int64_t>(row(node, step)) * kHidden;
        float y[4], values[4];
        load_part(p.out + offset, 4 * quad, kHidden, 1, packed, y);
        load_part(p.d_out + offset, 4 * quad, kHidden, 1, packed, values);
        const bool there = presence.has(node, step);
#pragma unroll
        for (int k = 0; k < 4; ++k) {
          values[k] = there ? values[k] * activation_slope(p.last, y[k]) : 0.0f;
          sums[0][k] += values[k];
        }
        d_y.put(node, step, quad, values);
      }
    });
    sum_cotangents<kHidden>(sums, first, warp_sums);
  }
}

// Copies the channels [first, first + H) of x to a tile; zeros past the end and where an item is not there.
template <class S, int kHidden, int kLanes>
__device__ __forceinline__ void stage_input(const StackItems& items, const StackInput<S>& x,
                                            const StackPresence& presence, int first,
                                            const Tile<kHidden, kLanes>& inputs) {
  const bool packed = x.packed();
  for_each_lane_items<kBackwardItems>(items, [&](const auto& at) {
#pragma unroll
    for (int i = 0; i < kBackwardItems; ++i) {
      if (!at.inside(i)) break;
      const int node = at.node(i), step = at.step(i);
      const S* row = presence.has(node, step) ? x.row(node, step) : nullptr;
#pragma unroll
      for (int quad = static_cast<int>(threadIdx.x) % 4; quad < kHidden / 4; quad += 4) {
        float values[4];
        load_part(row, first + 4 * quad, x.channels, x.stride_channel, packed, values);
        inputs.put(node, step, quad, values);
      }
    }
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
  const size_t room = Items::values(nodes, p.chunk);
  // Pieces at constant offsets come first: their addresses need no registers.
  float* warp_sums = memory.take<float>(T::kThreads / kWarp * 3 * kHidden);
  const ConvVectors<kHidden> conv_vectors(memory);
  const int most_inputs = static_cast<int>(max_inputs(channels, kHidden, p.conv_layers));
  float* weights = memory.take<float>(backward_weight_values<S, kHidden>(most_inputs));
  float* x_l_data = memory.take<float>(room);
  float* x_r_data = memory.take<float>(room);
  float* d_y_data = memory.take<float>(room);
  float* input_data = memory.take<float>(StackMemory<S, kHidden>::input_values(nodes, p.chunk));
  const ItemNumbers loops(p, memory);
  float* linear_data = memory.take<float>(T::kSplitScores ? static_cast<size_t>(nodes) * p.chunk : 0);

  for (int index = static_cast<int>(blockIdx.x); index < p.tasks; index += static_cast<int>(gridDim.x)) {
    const StackTask task(p, index);
    const int copy = task.copy, first_step = task.first_step, chunk = task.steps;
    const StackItems items{nodes, chunk, p.graph.order};
    const StackPresence presence(p, copy, first_step);
    const Items x_l(x_l_data, chunk), x_r(x_r_data, chunk), d_y(d_y_data, chunk), inputs(input_data, chunk);
    const auto row = [&](int node, int step) { return task.row(p.graph, p.steps, node, step); };
    const auto d_x_r_row = [&](int node, int step) {
      return p.d_x_r + static_cast<int64_t>(row(node, step)) * kHidden;
    };
    const EdgePairs pairs{p.pairs + blockIdx.x * static_cast<int64_t>(entries) * p.chunk, chunk};
    read_cotangents(p, items, presence, row, d_y, warp_sums);
    find_loop_weights<kLanes>(items, p.graph, p.edge_weight, presence, loops);

    const auto linear = [&] {
      if constexpr (T::kSplitScores) return LinearScores<kHidden>{linear_data, chunk};
      if constexpr (!T::kSplitScores) return nullptr;
    }();
    const auto project_layer = [&](int layer, const Items& to) {
      __syncthreads();
      conv_vectors.fill(p.convs[layer]);
      project(items, weights, p.convs[layer], layer == 0, StackInput<S>(p.x, copy, first_step), presence,
              inputs, x_l, to, conv_vectors, linear);
      __syncthreads();
    };
    for (int layer = p.conv_layers - 1; layer >= 0; --layer) {
      const int width = layer == 0 ? channels : kHidden;
      const int before_layer = layer == 0
                                   ? 0
                                   : static_cast<int>(conv_grad_values(channels, kHidden) +
                                                      (layer - 1) * conv_grad_values(kHidden, kHidden));
      float* partial = p.partial + static_cast<int>(blockIdx.x) * p.values + before_layer;
      const bool add = index != static_cast<int>(blockIdx.x);
      const PartialSum vectors{partial, add}, matrices{partial + 3 * kHidden, add};
      for (int before = 0; before < layer; ++before) {
        project_layer(before, inputs);
        attend(items, p.graph, p.edge_weight, presence.masked(), presence, loops, conv_vectors,
               Activation::kLeakyRelu, x_l, inputs, linear);
      }
      project_layer(layer, x_r);
      {
        float att_sums[kChannels] = {}, edge_sums[kChannels] = {};
        const int64_t first_instance = copy * p.steps + first_step;
        const EdgeSums edge_weight_sums{kEdges ? p.d_edges + first_instance * entries : nullptr, entries,
                                        layer + 1 < p.conv_layers};
        if (kEdges && !edge_weight_sums.add) edge_weight_sums.clear_padding(p.graph.rowptr[nodes], chunk);
        target_sweep<kEdges>(items, p.graph, p.edge_weight, presence, loops, conv_vectors, x_l, x_r, d_y,
                             pairs, d_x_r_row, att_sums, edge_sums, edge_weight_sums, linear);
        sum_over_warp<kHidden, kLanes>(att_sums, 0, 3, warp_sums);
        sum_over_warp<kHidden, kLanes>(edge_sums, 1, 3, warp_sums);
      }
      __syncthreads();
      for (int i = static_cast<int>(threadIdx.x); i < 3 * kHidden; i += static_cast<int>(blockDim.x)) {
        const float sum = sum_over_warps(warp_sums, i, 3 * kHidden);
        // Nothing times an infinite att is nothing, where no stock is there.
        vectors.put(i, i / kHidden == 1 && sum != 0.0f ? sum * conv_vectors.att()[i % kHidden] : sum);
      }
      source_sweep(items, p.graph, p.edge_weight, presence, loops, conv_vectors, x_l, x_r, d_y, pairs);
      __syncthreads();
      // Backward of the projections: d_y of the convolution below, or d_x.
      const InputColumns<PairWeights<S>> weight{{{p.convs[layer], width}, kHidden}, width};
      const auto take_d_x_r = [&](const auto& at) {
#pragma unroll
        for (int i = 0; i < kBackwardItems; ++i) {
          if (!at.inside(i)) break;
          const int node = at.node(i), step = at.step(i);
          const float* from = d_x_r_row(node, step);
#pragma unroll
          for (int quad = static_cast<int>(threadIdx.x) % 4; quad < kHidden / 4; quad += 4) {
            float values[4];
            load_quad(from + 4 * quad, values);
            x_r.put(node, step, quad, values);
          }
        }
      };
      const auto products = [&](const auto& at, const auto& matrix, const auto& write) {
        if (matrix.first == 0) take_d_x_r(at);
        __syncwarp();
        matrix.products(at, weight, write, TileInput(x_l), TileInput(x_r));
      };
      if (layer > 0) {
        write_cotangents<S>(items, presence, weights, weight, d_y, warp_sums, products,
                            [&](int node, int step, int quad, float (&slopes)[4]) {
                              load_quad(inputs.quad(node, step, quad), slopes);
#pragma unroll
                              for (int k = 0; k < 4; ++k)
                                slopes[k] = activation_slope(Activation::kLeakyRelu, slopes[k]);
                            });
      } else if (p.d_x != nullptr) {
        write_d_x<S, kHidden>(
            items, weights, weight,
            InputGradientOut<S>{{p.d_x, channels, channels, 0, p.accumulate_d_x}, p.present}, row, products);
      } else {
        for_each_lane_items<kBackwardItems>(items, take_d_x_r);
      }
      // Also without inputs: the sums for the biases are in the first product.
      int first = 0;
      do {
        if (layer == 0) stage_input(items, StackInput<S>(p.x, copy, first_step), presence, first, inputs);
        __syncthreads();
        weight_products<S>(items, x_l, x_r, inputs, first, width, matrices);
        __syncthreads();
        first += kHidden;
      } while (first < width);
    }
  }
}

// How a layer is divided: steps of a task, tasks, blocks, and values of the partial sum of a block.
struct BackwardPlan {
  int64_t chunk, chunks, tasks, blocks, values;
  size_t shared_bytes;

  template <int kHidden, class S>
  static BackwardPlan of(const ConvStackForward<S>& p) {
    BackwardPlan plan{};
    const auto bytes = [&](int64_t chunk) { return StackMemory<S, kHidden>::bytes(p, chunk); };
    plan.chunk = steps_per_block(p.steps, p.graph.copies, shared_memory_limit(), bytes);
    plan.shared_bytes = bytes(plan.chunk);
    plan.chunks = ceil_div(p.steps, plan.chunk);
    plan.tasks = p.graph.copies * plan.chunks;
    plan.blocks = plan.tasks < kMaxStackBlocks ? plan.tasks : kMaxStackBlocks;
    for (int64_t k = 0; k < p.conv_layers; ++k) {
      plan.values += conv_grad_values(k == 0 ? p.x.channels : p.hidden, p.hidden);
    }
    return plan;
  }
};

}  // namespace

template <class S>
bool gatv2_stack_backward_fits(const ConvStackForward<S>& p) {
  if (!gatv2_stack_fits(p)) return false;
  if (dense_backward_instead<S>(p.hidden, p.tf32)) return false;
  return dispatch_stack(p.hidden, [&](auto hidden) {
    const BackwardPlan plan = BackwardPlan::of<decltype(hidden)::value>(p);
    return plan.shared_bytes <= shared_memory_limit() && p.graph.num_entries * plan.chunk <= kMaxRows;
  });
}

template <class S>
void gatv2_stack_backward(const ConvStackBackward<S, Compute<S>>& p, const GateGradChunks<Compute<S>>& gates,
                          S* d_out, Stream& on) {
  if constexpr (!std::is_same_v<S, double>) {
    const ConvStackForward<S>& f = p.forward;
    const bool edges = p.d_edge_weight != nullptr;
    StackBackward<S> stack{{f, f.gat, {}}, f.out, p.d_out, nullptr, p.d_x, p.accumulate_d_x};
    StackGrads grads{{}, stack.conv_layers, static_cast<int>(f.x.channels), static_cast<int>(f.hidden)};
    for (int64_t k = 0; p.gat != nullptr && k < f.conv_layers; ++k) grads.convs[k] = p.gat[k];
    dispatch_stack(f.hidden, [&](auto hidden) {
      constexpr int kHidden = decltype(hidden)::value;
      if constexpr (!dense_backward_instead<S>(kHidden, false)) {
        using T = BackwardTraits<kHidden>;
        const BackwardPlan plan = BackwardPlan::of<kHidden>(f);
        stack.chunk = static_cast<int>(plan.chunk);
        stack.chunks = static_cast<int>(plan.chunks);
        stack.tasks = static_cast<int>(plan.tasks);
        stack.values = static_cast<int>(plan.values);
        stack.partial = on.take<float>(plan.blocks * plan.values);
        stack.pairs = on.take<float2>(plan.blocks * f.graph.num_entries * plan.chunk);
        if constexpr (std::is_same_v<S, float>) stack.d_x_r = d_out;
        if (stack.d_x_r == nullptr) {
          stack.d_x_r = on.take<float>(f.graph.copies * f.graph.num_nodes * f.steps * kHidden);
        }
        if (edges) stack.d_edges = on.take<float>(f.graph.copies * f.steps * f.graph.num_entries);
        // What spreads the items evenly, but no fewer than the weight products have units.
        const int64_t evenly = stack_threads(f.graph.num_nodes * plan.chunk * T::kLanes, T::threads(edges));
        const int64_t threads = evenly > T::kLeastThreads ? evenly : T::kLeastThreads;
        launch(edges ? gatv2_stack_bwd_kernel<S, kHidden, true> : gatv2_stack_bwd_kernel<S, kHidden, false>,
               plan.blocks, threads, plan.shared_bytes, on, stack);
        // What is not wanted has no elements.
        ordered_sum(on, sum_of_gates(gates),
                    sum_of(stack.partial, plan.blocks, p.gat != nullptr ? plan.values : 0, grads),
                    sum_of(stack.d_edges, f.graph.copies * f.steps, edges ? f.graph.num_entries : 0,
                           EdgeWeightGrads{p.d_edge_weight}));
      }
    });
  }
}

}  // namespace hiermt::cuda

#define HIERMT_INSTANTIATE_GATV2_STACK_BACKWARD(S)                                       \
  namespace hiermt::cuda {                                                               \
  template bool gatv2_stack_backward_fits<S>(const ConvStackForward<S>&);                \
  template void gatv2_stack_backward<S>(const ConvStackBackward<S, Compute<S>>&,         \
                                        const GateGradChunks<Compute<S>>&, S*, Stream&); \
  }
