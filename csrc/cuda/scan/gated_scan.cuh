// What the forward and the backward of the gated scan share.
//
// Everything that does not read the state is done for all steps at once, as dense layers. What is left for
// the scan is [H] x [H, 3H] per node and step. Up to 32 channels a thread keeps its column of the recurrent
// weights in registers, and the lanes of one warp own whole nodes, so that a step costs no barrier of the
// block. Beyond, weights are read from shared memory, or from a packed copy in global memory where they do
// not fit, for several nodes at once.
#pragma once

#include "cuda/dense/linear.cuh"
#include "cuda/scan/gated_scan.h"
#include "cuda/support/windows.cuh"

namespace hiermt::cuda {

constexpr int kScanThreads = 64;   // weights in registers
constexpr int kWideThreads = 256;  // weights in memory: at most that many, whole nodes of H threads
constexpr int kNodesPerThread = 4;

template <class S>
__device__ __forceinline__ const S* gate_weight(const GateWeights<S>& weights, int gate) {
  return gate == 0 ? weights.u_weight : gate == 1 ? weights.r_weight : weights.c_weight;
}
template <class S>
__device__ __forceinline__ const S* gate_bias(const GateWeights<S>& weights, int gate) {
  return gate == 0 ? weights.u_bias : gate == 1 ? weights.r_bias : weights.c_bias;
}

// Four values in sequence from shared memory; `from` is aligned to them.
__device__ __forceinline__ void load_four(const float* from, float (&values)[4]) {
  const float4 quad = *reinterpret_cast<const float4*>(from);
  values[0] = quad.x, values[1] = quad.y, values[2] = quad.z, values[3] = quad.w;
}
__device__ __forceinline__ void load_four(const double* from, double (&values)[4]) {
#pragma unroll
  for (int i = 0; i < 4; ++i) values[i] = from[i];
}

// A thread of a scan with the weights in registers: channel `channel` of node `node`; threads past the last
// node repeat it and write nothing.
template <int kHidden>
struct NarrowLane {
  static_assert(kWarp % kHidden == 0 && kHidden % 4 == 0);
  int local, channel, node;
  bool inside;

  __device__ explicit NarrowLane(int nodes)
      : local(static_cast<int>(threadIdx.x) / kHidden), channel(static_cast<int>(threadIdx.x) % kHidden) {
    const int wanted = static_cast<int>(blockIdx.x) * (kScanThreads / kHidden) + local;
    inside = wanted < nodes;
    node = inside ? wanted : nodes - 1;
  }
  // A value for each channel of the node, seen by the lanes of one warp alone.
  template <class C>
  __device__ C* exchange(SharedMemory& memory) const {
    return memory.take<C>(kScanThreads) + local * kHidden;
  }
  static dim3 grid(int64_t nodes) {
    return dim3(static_cast<unsigned>(ceil_div<int64_t>(nodes, kScanThreads / kHidden)));
  }
};

// The recurrent weights that channel c reads: those of its own row, or transposed those of its column.
template <class C, int kHidden>
struct LaneRecurrent {
  C u[kHidden], r[kHidden], c[kHidden];

  template <class S>
  __device__ __forceinline__ LaneRecurrent(const GatedScanForward<S>& p, int channel, bool transposed) {
    const int first = static_cast<int>(p.x.channels) + kHidden, columns = first + kHidden;
#pragma unroll
    for (int k = 0; k < kHidden; ++k) {
      const int at = first + (transposed ? k * columns + channel : channel * columns + k);
      u[k] = load(p.weights.u_weight + at);
      r[k] = load(p.weights.r_weight + at);
      c[k] = load(p.weights.c_weight + at);
    }
  }
};

// sum_k weights[k] * state[k], in four chains that do not wait for each other.
template <class C, int kHidden>
__device__ __forceinline__ C dot(const C (&weights)[kHidden], const C* state) {
  C sums[4] = {};
#pragma unroll
  for (int k = 0; k < kHidden; k += 4) {
    C values[4];
    load_four(state + k, values);
#pragma unroll
    for (int i = 0; i < 4; ++i) sums[i] += weights[k + i] * values[i];
  }
  return (sums[0] + sums[1]) + (sums[2] + sums[3]);
}

// packed[gate][k][c]: what channel c reads at position k of the recurrent weights. Forward, the weight of
// state k in channel c; transposed, the weight of state c in channel k.
template <class S>
__global__ void pack_recurrent_kernel(GateWeights<S> weights, int first, int hidden, bool transposed,
                                      Compute<S>* packed) {
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (i >= 3 * hidden * hidden) return;
  const int gate = i / (hidden * hidden), k = i / hidden % hidden, c = i % hidden;
  const int columns = first + hidden;
  packed[i] =
      load(gate_weight(weights, gate) + (transposed ? k * columns + first + c : c * columns + first + k));
}

// Distance between rows of the weights in shared memory. Odd: lanes that write a column meet no bank twice.
__host__ __device__ constexpr int64_t shared_stride(int64_t hidden) {
  return hidden | 1;
}

// How a scan whose weights live in memory is laid out.
template <class C>
struct WideScan {
  int64_t hidden;
  int groups;  // of H threads
  bool shared_weights;
  size_t shared_bytes;

  WideScan(int64_t hidden_, int exchanges)
      : hidden(hidden_), groups(static_cast<int>(kWideThreads / hidden_)) {
    const size_t state = exchanges * padded_bytes<C>(groups * kNodesPerThread * hidden);
    const size_t weights = padded_bytes<C>(3 * hidden * shared_stride(hidden));
    shared_weights = state + weights <= shared_memory_limit();
    shared_bytes = state + (shared_weights ? weights : 0);
  }
  dim3 grid(int64_t nodes) const {
    return dim3(static_cast<unsigned>(ceil_div<int64_t>(nodes, groups * kNodesPerThread)));
  }
  dim3 block() const { return dim3(static_cast<unsigned>(groups * hidden)); }
};

template <class S>
cudaError_t pack_recurrent(const GatedScanForward<S>& p, bool transposed, Compute<S>* packed,
                           cudaStream_t stream) {
  const int hidden = static_cast<int>(p.hidden);
  return launch(pack_recurrent_kernel<S>, dim3(ceil_div(3 * hidden * hidden, kWideThreads)),
                dim3(kWideThreads), 0, stream, p.weights, static_cast<int>(p.x.channels) + hidden, hidden,
                transposed, packed);
}

// The packed weights as the threads of channel c read them: gate(g)[k * stride].
template <class C>
struct ChannelWeights {
  const C* data;
  int hidden, stride;

  __device__ __forceinline__ const C* gate(int g) const { return data + g * hidden * stride; }
};

// Packs the weights into shared memory, or takes the packed copy where they do not fit. No barrier.
template <bool kShared, bool kTransposed, class S, class C>
__device__ __forceinline__ ChannelWeights<C> place_weights(const GateWeights<S>& weights, int first,
                                                           int hidden, const C* packed, int c,
                                                           SharedMemory& memory) {
  if constexpr (kShared) {
    const int stride = static_cast<int>(shared_stride(hidden));
    C* copy = memory.take<C>(3 * static_cast<size_t>(hidden) * stride);
    for (int i = static_cast<int>(threadIdx.x); i < 3 * hidden * hidden; i += static_cast<int>(blockDim.x)) {
      const int gate = i / (hidden * hidden), row = i / hidden % hidden, column = i % hidden;
      const int k = kTransposed ? row : column, channel = kTransposed ? column : row;
      copy[(gate * hidden + k) * stride + channel] =
          load(gate_weight(weights, gate) + row * (first + hidden) + first + column);
    }
    return {copy + c, hidden, stride};
  } else {
    return {packed + c, hidden, hidden};
  }
}

// Calls f(hidden) when a thread can keep its weights in registers, else wide(hidden): compile-time channels
// or 0.
template <class S, class F, class G>
cudaError_t dispatch_scan(int64_t hidden, F&& f, G&& wide) {
  if constexpr (!std::is_same_v<S, double>) {
    if (hidden == 8) return f(std::integral_constant<int, 8>{});
    if (hidden == 16) return f(std::integral_constant<int, 16>{});
    if (hidden == 32) return f(std::integral_constant<int, 32>{});
    if (hidden == 64) return wide(std::integral_constant<int, 64>{});
  }
  return wide(std::integral_constant<int, 0>{});
}

// Columns of the weights of the gates, those of gate `first_gate` first, as one matrix [F + 2H, gates * H].
template <class S>
struct GateColumns {
  GateWeights<S> weights;
  int columns, hidden, first_gate;

  __device__ Compute<S> weight(int k, int n) const {
    const int gate = n / hidden;
    return load(gate_weight(weights, first_gate + gate) + (n - gate * hidden) * columns + k);
  }
  __device__ Compute<S> bias(int n) const {
    const int gate = n / hidden;
    return load(gate_bias(weights, first_gate + gate) + n - gate * hidden);
  }
};

// The reset gate of every row, `stride` values apart.
template <class S>
struct ResetGate {
  S* data;
  int stride;
};

// [x_t, g_t], and for the gradient of the weights also the state before the step, reset or not.
template <class S, bool kReset>
struct GateInputs {
  struct Row {
    int64_t x, dense, node, reset;
    bool first_step;
  };
  GatedScanForward<S> p;
  ResetGate<S> reset = {};

  __device__ Row row(int r) const {
    const int steps = static_cast<int>(p.steps);
    const RowIndex at(r, static_cast<int>(p.num_nodes), steps);
    return {sequence_offset(p.x, at), static_cast<int64_t>(r) * p.hidden,
            static_cast<int64_t>(r / steps) * p.hidden, static_cast<int64_t>(r) * reset.stride, at.step == 0};
  }
  __device__ Compute<S> load(const Row& row, int k) const {
    const int channels = static_cast<int>(p.x.channels), hidden = static_cast<int>(p.hidden);
    if (k < channels) return cuda::load(p.x.data + row.x + k * p.x.stride_channel);
    k -= channels;
    if (k < hidden) return cuda::load(p.g + row.dense + k);
    k -= hidden;
    Compute<S> state = Compute<S>(0);
    if (!row.first_step) {
      state = cuda::load(p.h + row.dense - hidden + k);
    } else if (p.h0 != nullptr) {
      state = cuda::load(p.h0 + row.node + k);
    }
    return kReset ? state * cuda::load(reset.data + row.reset + k) : state;
  }
};

// The recurrence alone, over windows: p describes the windows, from_days [S * D, 3H] holds what the gates
// take from a day, packed 3 H * H values of scratch memory.
template <class S>
cudaError_t scan_windows(const GatedScanForward<S>& p, const Compute<S>* from_days, const WindowDays& windows,
                         Compute<S>* packed, cudaStream_t stream);

}  // namespace hiermt::cuda
