// A block owns all nodes of one copy of the graph for a few time steps, so that no edge leaves it: what a
// convolution passes on stays in shared memory, and only x is read and only the gates' input is written. A
// thread owns one node at one step with all its channels, so a score needs no exchange between lanes; lanes
// are neighbouring steps of the same node first, which walk the same entries and read a neighbour's channels
// in one piece.
#include "gated_scan.cuh"
#include "gatv2_conv.cuh"
#include "gatv2_stack.h"

namespace hiermt::cuda {
namespace {

constexpr int kMaxConvs = 3;
// Blocks beyond one on each multiprocessor of a large GPU gain nothing; fewer leave some of them idle.
constexpr int64_t kWantedBlocks = 132;
// Leaves room for a second block on a multiprocessor.
constexpr size_t kStackSharedBytes = 112 * 1024;
// Above, to sort the nodes by degree would cost more than it saves.
constexpr int kMaxSortedNodes = 1024;

template <int kHidden>
constexpr int kStackThreads = kHidden <= 16 ? 384 : 256;

// Parameters by value: a kernel cannot follow the host arrays of a layer.
template <class S>
struct StackForward {
  CsrGraph graph;
  SequenceView<S> x;
  const S* edge_weight;
  GatV2Weights<S> convs[kMaxConvs];
  GateWeights<S> gates;
  Activation last;
  int conv_layers, steps, chunk;
  S* g;
  float* from_input;
};

// What a block copies of the weights of one convolution, input channel by input channel.
template <int kHidden>
struct ConvMemory {
  float *source, *target, *vectors;  // [F, H], [F, H], [5, H]: biases of both, att, edge, bias

  __device__ ConvMemory(SharedMemory& memory, int inputs)
      : source(memory.take<float>(inputs * kHidden)),
        target(memory.take<float>(inputs * kHidden)),
        vectors(memory.take<float>(5 * kHidden)) {}

  template <class S>
  __device__ void fill(const GatV2Weights<S>& weights, int inputs) const {
    for (int i = static_cast<int>(threadIdx.x); i < inputs * kHidden; i += static_cast<int>(blockDim.x)) {
      const int from = i % kHidden * inputs + i / kHidden;
      source[i] = load(weights.lin_l_weight + from);
      target[i] = load(weights.lin_r_weight + from);
    }
    for (int c = static_cast<int>(threadIdx.x); c < kHidden; c += static_cast<int>(blockDim.x)) {
      vectors[c] = load(weights.lin_l_bias + c);
      vectors[kHidden + c] = load(weights.lin_r_bias + c);
      vectors[2 * kHidden + c] = load(weights.att + c);
      vectors[3 * kHidden + c] =
          weights.lin_edge_weight != nullptr ? load(weights.lin_edge_weight + c) : 0.0f;
      vectors[4 * kHidden + c] = load(weights.bias + c);
    }
  }
};

template <int kHidden>
__device__ __forceinline__ void copy_channels(const float* from, float (&to)[kHidden]) {
#pragma unroll
  for (int c = 0; c < kHidden; c += 4) {
    const float4 quad = *reinterpret_cast<const float4*>(from + c);
    to[c] = quad.x, to[c + 1] = quad.y, to[c + 2] = quad.z, to[c + 3] = quad.w;
  }
}

// sum[c] += value * weights[c]
template <int kHidden>
__device__ __forceinline__ void add_scaled(const float* weights, float value, float (&sum)[kHidden]) {
#pragma unroll
  for (int c = 0; c < kHidden; c += 4) {
    const float4 quad = *reinterpret_cast<const float4*>(weights + c);
    sum[c] += value * quad.x;
    sum[c + 1] += value * quad.y;
    sum[c + 2] += value * quad.z;
    sum[c + 3] += value * quad.w;
  }
}

// Channels of (node, step) in shared memory, four by four, steps of a node side by side.
template <int kHidden>
struct Tile {
  float* data;
  int chunk;

  __device__ __forceinline__ float4* at(int node, int step) const {
    return reinterpret_cast<float4*>(data) + node * (kHidden / 4) * chunk + step;
  }
  __device__ __forceinline__ void read(int node, int step, float (&values)[kHidden]) const {
    const float4* from = at(node, step);
#pragma unroll
    for (int q = 0; q < kHidden / 4; ++q) {
      const float4 quad = from[q * chunk];
      values[4 * q] = quad.x, values[4 * q + 1] = quad.y, values[4 * q + 2] = quad.z,
                 values[4 * q + 3] = quad.w;
    }
  }
  __device__ __forceinline__ void write(int node, int step, const float (&values)[kHidden]) const {
    float4* to = at(node, step);
#pragma unroll
    for (int q = 0; q < kHidden / 4; ++q) {
      to[q * chunk] = float4{values[4 * q], values[4 * q + 1], values[4 * q + 2], values[4 * q + 3]};
    }
  }
};

// order[rank] = node, by falling degree: the nodes of a warp then have about the same number of entries.
__device__ void order_by_degree(const CsrGraph& graph, int nodes, int* order) {
  for (int node = static_cast<int>(threadIdx.x); node < nodes; node += static_cast<int>(blockDim.x)) {
    const int degree = graph.rowptr[node + 1] - graph.rowptr[node];
    int rank = node;
    if (nodes <= kMaxSortedNodes) {
      rank = 0;
      for (int other = 0; other < nodes; ++other) {
        const int theirs = graph.rowptr[other + 1] - graph.rowptr[other];
        rank += theirs > degree || (theirs == degree && other < node) ? 1 : 0;
      }
    }
    order[rank] = node;
  }
}

// Calls f(node, step) for the items of this thread. Every second round runs backwards, so that a thread that
// had a node of high degree gets one of low degree next.
template <class F>
__device__ __forceinline__ void for_each_item(int items, int chunk, const int* order, F&& f) {
  const int width = static_cast<int>(blockDim.x), thread = static_cast<int>(threadIdx.x);
  bool backwards = false;
  for (int first = 0; first < items; first += width, backwards = !backwards) {
    const int count = items - first < width ? items - first : width;
    if (thread >= count) continue;
    const int item = first + (backwards ? count - 1 - thread : thread);
    const int rank = item / chunk;
    f(order[rank], item - rank * chunk);
  }
}

template <class S, int kHidden>
__global__ void __launch_bounds__(kStackThreads<kHidden>, 1) gatv2_stack_fwd_kernel(StackForward<S> p) {
  SharedMemory memory;
  const int nodes = static_cast<int>(p.graph.num_nodes), channels = static_cast<int>(p.x.channels);
  const int chunks = ceil_div(p.steps, p.chunk);
  const int copy = static_cast<int>(blockIdx.x) / chunks;
  const int first_step = static_cast<int>(blockIdx.x) % chunks * p.chunk;
  const int chunk = p.steps - first_step < p.chunk ? p.steps - first_step : p.chunk;
  // What neighbours read, and a thread's own rows: input of a convolution, its target side, its output.
  const Tile<kHidden> sources{memory.take<float>(static_cast<size_t>(nodes) * p.chunk * kHidden), chunk};
  const Tile<kHidden> own{memory.take<float>(static_cast<size_t>(nodes) * p.chunk * kHidden), chunk};
  const int inputs_of_gates = channels + kHidden, columns = inputs_of_gates + kHidden;
  float* gate_weights = memory.take<float>(3 * static_cast<size_t>(inputs_of_gates) * kHidden);
  float* gate_biases = memory.take<float>(3 * kHidden);
  const int widest = channels > kHidden || p.conv_layers == 1 ? channels : kHidden;
  const ConvMemory<kHidden> conv(memory, widest);
  int* order = memory.take<int>(nodes);
  const int items = nodes * chunk;
  const S* x = p.x.data + copy * p.x.stride_copy + first_step * p.x.stride_time;

  order_by_degree(p.graph, nodes, order);
  // gate_weights[k][gate][c]
  for (int i = static_cast<int>(threadIdx.x); i < 3 * inputs_of_gates * kHidden;
       i += static_cast<int>(blockDim.x)) {
    const int c = i % kHidden, gate = i / kHidden % 3, k = i / (3 * kHidden);
    gate_weights[i] = load(gate_weight(p.gates, gate) + c * columns + k);
  }
  for (int i = static_cast<int>(threadIdx.x); i < 3 * kHidden; i += static_cast<int>(blockDim.x)) {
    gate_biases[i] = load(gate_bias(p.gates, i / kHidden) + i % kHidden);
  }

  for (int layer = 0; layer < p.conv_layers; ++layer) {
    const Activation activation = layer + 1 == p.conv_layers ? p.last : Activation::kLeakyRelu;
    __syncthreads();
    conv.fill(p.convs[layer], layer == 0 ? channels : kHidden);
    __syncthreads();
    for_each_item(items, chunk, order, [&](int node, int step) {
      float source[kHidden], target[kHidden];
      copy_channels<kHidden>(conv.vectors, source);
      copy_channels<kHidden>(conv.vectors + kHidden, target);
      const auto add = [&](int k, float value) {
        add_scaled<kHidden>(conv.source + k * kHidden, value, source);
        add_scaled<kHidden>(conv.target + k * kHidden, value, target);
      };
      if (layer == 0) {
        const S* row = x + node * p.x.stride_node + step * p.x.stride_time;
#pragma unroll 4
        for (int k = 0; k < channels; ++k) add(k, load(row + k * p.x.stride_channel));
      } else {
        const float4* row = own.at(node, step);
#pragma unroll 2
        for (int q = 0; q < kHidden / 4; ++q) {
          const float4 quad = row[q * chunk];
          add(4 * q + 0, quad.x);
          add(4 * q + 1, quad.y);
          add(4 * q + 2, quad.z);
          add(4 * q + 3, quad.w);
        }
      }
      sources.write(node, step, source);
      own.write(node, step, target);
    });
    __syncthreads();
    float att[kHidden], edge[kHidden];
    copy_channels<kHidden>(conv.vectors + 2 * kHidden, att);
    copy_channels<kHidden>(conv.vectors + 3 * kHidden, edge);
    for_each_item(items, chunk, order, [&](int node, int step) {
      float target[kHidden], sum[kHidden] = {};
      own.read(node, step, target);
      OnlineSoftmax<float> softmax;
      const int begin = p.graph.rowptr[node], end = p.graph.rowptr[node + 1];
      const auto visit = [&](int entry, float (&source)[kHidden]) {
        const float edge_weight = p.edge_weight != nullptr ? load(p.edge_weight + entry) : 0.0f;
        float scores[4] = {};
        sources.read(p.graph.col[entry], step, source);
#pragma unroll
        for (int c = 0; c < kHidden; ++c) {
          const float z = source[c] + (target[c] + edge_weight * edge[c]);
          scores[c % 4] += att[c] * attention_leaky(z);
        }
        return (scores[0] + scores[1]) + (scores[2] + scores[3]);
      };
      int entry = begin;
      for (; entry + 1 < end; entry += 2) {
        float first[kHidden], second[kHidden];
        const float first_score = visit(entry, first), second_score = visit(entry + 1, second);
        softmax.see(first_score, second_score);
#pragma unroll
        for (int c = 0; c < kHidden; ++c) {
          sum[c] = sum[c] * softmax.keep + softmax.weight * first[c] + softmax.second_weight * second[c];
        }
      }
      if (entry < end) {
        float source[kHidden];
        softmax.see(visit(entry, source));
#pragma unroll
        for (int c = 0; c < kHidden; ++c) sum[c] = sum[c] * softmax.keep + softmax.weight * source[c];
      }
      const float scale = end > begin ? softmax.scale() : 0.0f;
#pragma unroll
      for (int c = 0; c < kHidden; ++c) {
        sum[c] = activate(activation, sum[c] * scale + conv.vectors[4 * kHidden + c]);
      }
      own.write(node, step, sum);
    });
  }

  // What the gates read of x and g.
  for_each_item(items, chunk, order, [&](int node, int step) {
    const int64_t row = (static_cast<int64_t>(copy) * nodes + node) * p.steps + first_step + step;
    const S* from = x + node * p.x.stride_node + step * p.x.stride_time;
    float g[kHidden], sum[3][kHidden];
    own.read(node, step, g);
    if (p.g != nullptr) {
#pragma unroll
      for (int c = 0; c < kHidden; ++c) store(p.g + row * kHidden + c, g[c]);
    }
    const auto add = [&](int k, float value) {
#pragma unroll
      for (int gate = 0; gate < 3; ++gate) {
        add_scaled<kHidden>(gate_weights + (k * 3 + gate) * kHidden, value, sum[gate]);
      }
    };
#pragma unroll
    for (int gate = 0; gate < 3; ++gate) copy_channels<kHidden>(gate_biases + gate * kHidden, sum[gate]);
#pragma unroll 2
    for (int k = 0; k < channels; ++k) add(k, load(from + k * p.x.stride_channel));
#pragma unroll
    for (int k = 0; k < kHidden; ++k) add(channels + k, g[k]);
    float4* to = reinterpret_cast<float4*>(p.from_input + row * 3 * kHidden);
#pragma unroll
    for (int gate = 0; gate < 3; ++gate) {
#pragma unroll
      for (int q = 0; q < kHidden / 4; ++q) {
        to[gate * (kHidden / 4) + q] =
            float4{sum[gate][4 * q], sum[gate][4 * q + 1], sum[gate][4 * q + 2], sum[gate][4 * q + 3]};
      }
    }
  });
}

size_t fixed_bytes(int64_t nodes, int64_t channels, int64_t hidden, int64_t conv_layers) {
  const int64_t widest = channels > hidden || conv_layers == 1 ? channels : hidden;
  return padded_bytes<float>(3 * (channels + hidden) * hidden) + padded_bytes<float>(3 * hidden) +
         2 * padded_bytes<float>(widest * hidden) + padded_bytes<float>(5 * hidden) +
         padded_bytes<int>(nodes);
}
size_t step_bytes(int64_t nodes, int64_t chunk, int64_t hidden) {
  return 2 * padded_bytes<float>(nodes * chunk * hidden);
}

// Steps a block takes: as few as keep every multiprocessor busy, and no more than fit.
template <class S>
int64_t steps_per_block(const TgcnLayerForward<S>& p) {
  const int64_t nodes = p.graph.num_nodes, copies = p.graph.copies > 0 ? p.graph.copies : 1;
  const size_t fixed = fixed_bytes(p.graph.num_nodes, p.x.channels, p.hidden, p.conv_layers);
  const int64_t blocks_per_copy = kWantedBlocks / copies > 0 ? kWantedBlocks / copies : 1;
  int64_t chunk = ceil_div<int64_t>(p.steps, blocks_per_copy < p.steps ? blocks_per_copy : p.steps);
  while (chunk > 1 && fixed + step_bytes(nodes, chunk, p.hidden) > kStackSharedBytes) --chunk;
  return chunk;
}

}  // namespace

template <class S>
bool gatv2_stack_fits(const TgcnLayerForward<S>& p) {
  if (std::is_same_v<S, double> || p.gat == nullptr || p.conv_layers > kMaxConvs || p.steps == 0)
    return false;
  if (p.hidden != 8 && p.hidden != 16 && p.hidden != 32) return false;
  const int64_t nodes = p.graph.num_nodes;
  if (nodes == 0 || nodes > 4096 || p.x.channels > 1024) return false;
  return fixed_bytes(p.graph.num_nodes, p.x.channels, p.hidden, p.conv_layers) +
             step_bytes(nodes, 1, p.hidden) <=
         kStackSharedBytes;
}

template <class S>
int gatv2_stack_forward(const TgcnLayerForward<S>& p, Compute<S>* from_input, void* stream_) {
  if constexpr (std::is_same_v<S, double>) {
    return cudaErrorInvalidValue;
  } else {
    const cudaStream_t stream = static_cast<cudaStream_t>(stream_);
    if (!supported(p.graph.copies * p.graph.num_nodes, p.steps, p.hidden)) return cudaErrorInvalidValue;
    const int64_t chunk = steps_per_block(p);
    StackForward<S> stack{};
    stack.graph = p.graph;
    stack.x = p.x;
    stack.edge_weight = p.edge_weight;
    for (int64_t k = 0; k < p.conv_layers; ++k) stack.convs[k] = p.gat[k];
    stack.gates = p.gate_weights;
    stack.last = p.between ? Activation::kSigmoid : Activation::kLeakySigmoid;
    stack.conv_layers = static_cast<int>(p.conv_layers);
    stack.steps = static_cast<int>(p.steps);
    stack.chunk = static_cast<int>(chunk);
    stack.g = p.g;
    stack.from_input = from_input;
    const int64_t blocks = p.graph.copies * ceil_div<int64_t>(p.steps, chunk);
    const size_t shared = fixed_bytes(p.graph.num_nodes, p.x.channels, p.hidden, p.conv_layers) +
                          step_bytes(p.graph.num_nodes, chunk, p.hidden);
    const auto run = [&](auto constant) {
      constexpr int kHidden = decltype(constant)::value;
      // Every thread gets the same number of items, give or take one warp.
      const int64_t items = p.graph.num_nodes * chunk;
      const int64_t rounds = ceil_div<int64_t>(items, kStackThreads<kHidden>);
      const int64_t threads = ceil_div<int64_t>(ceil_div(items, rounds), kWarp) * kWarp;
      return launch(gatv2_stack_fwd_kernel<S, kHidden>, dim3(static_cast<unsigned>(blocks)),
                    dim3(static_cast<unsigned>(threads)), shared, stream, stack);
    };
    if (p.hidden == 8) return run(std::integral_constant<int, 8>{});
    if (p.hidden == 16) return run(std::integral_constant<int, 16>{});
    return run(std::integral_constant<int, 32>{});
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
