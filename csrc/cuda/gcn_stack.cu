// The forward of a GCN stack: y_i = b + sum_j norm_ij W x_j, convolution after convolution, from shared
// memory. A thread that has summed an item's neighbours has all its channels in registers, so it goes on at
// once with the next projection, or with the gates: one barrier a convolution.
#include "gate_inputs.cuh"
#include "gcn_stack.h"

namespace hiermt::cuda {
namespace {

// Leaves room for a second block on a multiprocessor.
constexpr size_t kSharedBytes = 112 * 1024;

// Parameters by value: a kernel cannot follow the host arrays of a layer.
template <class S>
struct GcnStack {
  CsrGraph graph;
  SequenceView<S> x;
  const S* norm;
  GcnWeights<S> convs[kMaxStackConvs];
  GateWeights<S> gates;
  Activation last;
  int conv_layers, steps, chunk;
  S* g;
  float* from_input;
};

// Weights of all convolutions, input channel by input channel, and their biases.
template <int kHidden>
struct GcnMemory {
  float *weights, *biases;  // [F + (convs - 1) H, H], [convs, H]

  __device__ GcnMemory(SharedMemory& memory, int channels, int conv_layers)
      : weights(memory.take<float>(static_cast<size_t>(channels + (conv_layers - 1) * kHidden) * kHidden)),
        biases(memory.take<float>(conv_layers * kHidden)) {}

  static size_t bytes(int64_t channels, int64_t conv_layers) {
    return padded_bytes<float>((channels + (conv_layers - 1) * kHidden) * kHidden) +
           padded_bytes<float>(conv_layers * kHidden);
  }
  // The first row of the weights of convolution k.
  __device__ const float* of(int k, int channels) const {
    return weights + (k == 0 ? 0 : channels + (k - 1) * kHidden) * kHidden;
  }
  template <class S>
  __device__ void fill(const GcnStack<S>& p, int channels) const {
    const int thread = static_cast<int>(threadIdx.x), width = static_cast<int>(blockDim.x);
    for (int k = 0; k < p.conv_layers; ++k) {
      const int inputs = k == 0 ? channels : kHidden;
      float* to = weights + (of(k, channels) - weights);
      for (int i = thread; i < inputs * kHidden; i += width) {
        to[i] = load(p.convs[k].lin_weight + i % kHidden * inputs + i / kHidden);
      }
      for (int c = thread; c < kHidden; c += width) biases[k * kHidden + c] = load(p.convs[k].bias + c);
    }
  }
};

template <class S, int kHidden>
__global__ void __launch_bounds__(kStackThreads<kHidden>, 1) gcn_stack_fwd_kernel(GcnStack<S> p) {
  SharedMemory memory;
  const int nodes = static_cast<int>(p.graph.num_nodes);
  const int chunks = ceil_div(p.steps, p.chunk);
  const int copy = static_cast<int>(blockIdx.x) / chunks;
  const int first_step = static_cast<int>(blockIdx.x) % chunks * p.chunk;
  const int chunk = p.steps - first_step < p.chunk ? p.steps - first_step : p.chunk;
  const StackInput<S> x(p.x, copy, first_step);
  // W x of the convolution at work, and of the one that follows.
  Tile<kHidden> projected{memory.take<float>(static_cast<size_t>(nodes) * p.chunk * kHidden), chunk};
  Tile<kHidden> next{memory.take<float>(static_cast<size_t>(nodes) * p.chunk * kHidden), chunk};
  const GateMemory<kHidden> gates(memory, x.channels);
  const GcnMemory<kHidden> convs(memory, x.channels, p.conv_layers);
  int* order = memory.take<int>(nodes);
  const StackItems items{nodes, chunk, order};

  order_by_degree(p.graph, nodes, order);
  gates.fill(p.gates, x.channels);
  convs.fill(p, x.channels);
  __syncthreads();
  items.for_each([&](int node, int step) {
    const S* row = x.row(node, step);
    float sum[kHidden] = {};
#pragma unroll 4
    for (int k = 0; k < x.channels; ++k) {
      add_scaled<kHidden>(convs.weights + k * kHidden, load(row + k * x.stride_channel), sum);
    }
    projected.write(node, step, sum);
  });

  for (int layer = 0; layer < p.conv_layers; ++layer) {
    const bool is_last = layer + 1 == p.conv_layers;
    const Activation activation = is_last ? p.last : Activation::kLeakyRelu;
    __syncthreads();
    items.for_each([&](int node, int step) {
      float y[kHidden] = {};
      const int end = p.graph.rowptr[node + 1];
#pragma unroll 2
      for (int entry = p.graph.rowptr[node]; entry < end; ++entry) {
        const float norm = load(p.norm + entry);
        float source[kHidden];
        projected.read(p.graph.col[entry], step, source);
#pragma unroll
        for (int c = 0; c < kHidden; ++c) y[c] += norm * source[c];
      }
#pragma unroll
      for (int c = 0; c < kHidden; ++c) y[c] = activate(activation, y[c] + convs.biases[layer * kHidden + c]);
      if (!is_last) {
        const float* weights = convs.of(layer + 1, x.channels);
        float sum[kHidden] = {};
#pragma unroll
        for (int k = 0; k < kHidden; ++k) add_scaled<kHidden>(weights + k * kHidden, y[k], sum);
        next.write(node, step, sum);
        return;
      }
      const int64_t row = (static_cast<int64_t>(copy) * nodes + node) * p.steps + first_step + step;
      if (p.g != nullptr) {
#pragma unroll
        for (int c = 0; c < kHidden; ++c) store(p.g + row * kHidden + c, y[c]);
      }
      write_gate_inputs<S, kHidden>(gates, x, x.row(node, step), y, p.from_input + row * 3 * kHidden);
    });
    const Tile<kHidden> used = projected;
    projected = next;
    next = used;
  }
}

template <int kHidden>
size_t stack_bytes(int64_t nodes, int64_t channels, int64_t conv_layers, int64_t chunk) {
  return 2 * padded_bytes<float>(nodes * chunk * kHidden) + GateMemory<kHidden>::bytes(channels) +
         GcnMemory<kHidden>::bytes(channels, conv_layers) + padded_bytes<int>(nodes);
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
bool gcn_stack_fits(const TgcnLayerForward<S>& p) {
  if (std::is_same_v<S, double> || p.gcn == nullptr || p.conv_layers > kMaxStackConvs || p.steps == 0)
    return false;
  const int64_t nodes = p.graph.num_nodes;
  if (nodes == 0 || nodes > 4096 || p.x.channels > 1024) return false;
  return dispatch_stack(
      p.hidden,
      [&](auto hidden) {
        return stack_bytes<decltype(hidden)::value>(nodes, p.x.channels, p.conv_layers, 1) <= kSharedBytes;
      },
      false);
}

template <class S>
int gcn_stack_forward(const TgcnLayerForward<S>& p, Compute<S>* from_input, void* stream_) {
  if constexpr (std::is_same_v<S, double>) {
    return cudaErrorInvalidValue;
  } else {
    const cudaStream_t stream = static_cast<cudaStream_t>(stream_);
    const int64_t nodes = p.graph.num_nodes, copies = p.graph.copies;
    if (!supported(copies * nodes, p.steps, p.hidden)) return cudaErrorInvalidValue;
    GcnStack<S> stack{};
    stack.graph = p.graph;
    stack.x = p.x;
    stack.norm = p.edge_weight;
    for (int64_t k = 0; k < p.conv_layers; ++k) stack.convs[k] = p.gcn[k];
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
      const int64_t chunk = steps_per_block(p.steps, copies, kSharedBytes, bytes);
      stack.chunk = static_cast<int>(chunk);
      return launch(gcn_stack_fwd_kernel<S, kHidden>,
                    dim3(static_cast<unsigned>(copies * ceil_div<int64_t>(p.steps, chunk))),
                    dim3(static_cast<unsigned>(stack_threads(nodes * chunk, kStackThreads<kHidden>))),
                    bytes(chunk), stream, stack);
    };
    return dispatch_stack(p.hidden, run, cudaErrorInvalidValue);
  }
}

#define HIERMT_INSTANTIATE(S)                                  \
  template bool gcn_stack_fits<S>(const TgcnLayerForward<S>&); \
  template int gcn_stack_forward<S>(const TgcnLayerForward<S>&, Compute<S>*, void*);
HIERMT_INSTANTIATE(float)
HIERMT_INSTANTIATE(double)
HIERMT_INSTANTIATE(BFloat16)
HIERMT_INSTANTIATE(Half)
#undef HIERMT_INSTANTIATE

}  // namespace hiermt::cuda
