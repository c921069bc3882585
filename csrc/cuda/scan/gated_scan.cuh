// Parts of the gated scan for forward and backward (T-GCN cell, arXiv 1811.05320, eqs. 3 to 6).
//
// The input projection z = W [x, g] + b of the three gates does not read the state, so dense layers compute
// it for all steps. The scan multiplies [H] by [H, 3H] per node and step. Up to 32 channels the weights are
// in registers: a thread keeps its column, and the lanes of one warp own whole nodes, so that a step needs no
// barrier of the block. Above, the weights are in shared memory, or in a packed copy in global memory where
// they do not fit, and a thread reads each of them for several nodes.
#pragma once

#include "cuda/dense/linear.cuh"
#include "cuda/scan/gated_scan.h"
#include "cuda/support/windows.cuh"

namespace hiermt::cuda {

struct ScanTraits {
  // Weights in registers: small blocks, so that a hundred nodes reach many multiprocessors.
  static constexpr int kRegisterThreads = 64;
  static constexpr int kRegisterBlocks = 6;  // of a multiprocessor, with 32 channels
  // Weights in memory: as many nodes of H threads as fit.
  static constexpr int kMemoryThreads = 256;
  // Nodes of a thread, which read a weight from memory once. More would spill.
  static constexpr int kNodesPerThread = 4;
  static_assert(kRegisterThreads % kWarp == 0 && kMemoryThreads >= kMaxHidden);
};

template <class S>
__device__ __forceinline__ const S* gate_weight(const GateWeights<S>& weights, int gate) {
  return gate == 0 ? weights.u_weight : gate == 1 ? weights.r_weight : weights.c_weight;
}
template <class S>
__device__ __forceinline__ const S* gate_bias(const GateWeights<S>& weights, int gate) {
  return gate == 0 ? weights.u_bias : gate == 1 ? weights.r_bias : weights.c_bias;
}

// A thread of a scan with the weights in registers: channel `channel` of node `node`. Threads past the last
// node repeat it and write nothing.
template <int kHidden>
struct RegisterLane {
  static_assert(kWarp % kHidden == 0 && kHidden % 4 == 0);
  int local, channel, node;
  bool inside;

  __device__ explicit RegisterLane(int nodes)
      : local(static_cast<int>(threadIdx.x) / kHidden), channel(static_cast<int>(threadIdx.x) % kHidden) {
    const int wanted = static_cast<int>(blockIdx.x) * (ScanTraits::kRegisterThreads / kHidden) + local;
    inside = wanted < nodes;
    node = inside ? wanted : nodes - 1;
  }
  // Shared memory for a value per channel of the node. Only the lanes of one warp access it.
  template <class C>
  __device__ C* exchange(SharedMemory& memory) const {
    return memory.take<C>(ScanTraits::kRegisterThreads) + local * kHidden;
  }
  static dim3 grid(int64_t nodes) {
    return dim3(static_cast<unsigned>(ceil_div<int64_t>(nodes, ScanTraits::kRegisterThreads / kHidden)));
  }
};

// The recurrent weights of one channel: its row, or its column if `transposed`.
template <class C, int kHidden>
struct LaneRecurrent {
  C u[kHidden], r[kHidden], c[kHidden];

  template <class S>
  __device__ __forceinline__ LaneRecurrent(const GatedScanForward<S>& p, int channel, bool transposed) {
    const int first = static_cast<int>(p.x.channels + p.g_channels), columns = first + kHidden;
#pragma unroll
    for (int k = 0; k < kHidden; ++k) {
      const int at = first + (transposed ? k * columns + channel : channel * columns + k);
      u[k] = load(p.weights.u_weight + at);
      r[k] = load(p.weights.r_weight + at);
      c[k] = load(p.weights.c_weight + at);
    }
  }
};

// sum_k weights[k] * state[k], as four independent sums.
template <class C, int kHidden>
__device__ __forceinline__ C dot(const C (&weights)[kHidden], const C* state) {
  C sums[4] = {};
#pragma unroll
  for (int k = 0; k < kHidden; k += 4) {
    C values[4];
    load_quad(state + k, values);
#pragma unroll
    for (int i = 0; i < 4; ++i) sums[i] += weights[k + i] * values[i];
  }
  return (sums[0] + sums[1]) + (sums[2] + sums[3]);
}

// packed[gate][k][c] is the recurrent weight of state k in channel c, or if `transposed` of state c in
// channel k.
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

// Stride of the rows of the weights in shared memory. Odd, so that writing a column has no bank conflicts.
__host__ __device__ constexpr int64_t shared_stride(int64_t hidden) {
  return hidden | 1;
}

// Launch configuration of a scan with the weights in memory; `exchanges` arrays hold a value per channel.
template <class C>
struct MemoryScan {
  static constexpr int kNodesPerThread = ScanTraits::kNodesPerThread;
  int64_t hidden;
  int groups;  // of H threads, which own kNodesPerThread nodes each
  bool shared_weights;
  size_t shared_bytes;

  MemoryScan(int64_t hidden_, int exchanges)
      : hidden(hidden_), groups(static_cast<int>(ScanTraits::kMemoryThreads / hidden_)) {
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
  return launch(pack_recurrent_kernel<S>, dim3(ceil_div(3 * hidden * hidden, ScanTraits::kMemoryThreads)),
                dim3(ScanTraits::kMemoryThreads), 0, stream, p.weights,
                static_cast<int>(p.x.channels + p.g_channels), hidden, transposed, packed);
}

// The recurrent weights of one channel in memory: gate(g)[k * stride].
template <class C>
struct ChannelWeights {
  const C* data;
  int hidden, stride;

  __device__ __forceinline__ const C* gate(int g) const { return data + g * hidden * stride; }
};

// Copies the weights to shared memory, or uses the packed copy. Does not synchronise.
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

// Calls in_registers(hidden) if the weights of a thread fit its registers, else in_memory(hidden). `hidden`
// is a constant, or 0 for the generic kernel, which the packed copy always takes: no supported GPU has too little shared
// memory for the weights of 64 channels.
template <class S, class F, class G>
cudaError_t dispatch_scan(int64_t hidden, F&& in_registers, G&& in_memory) {
  if constexpr (!std::is_same_v<S, double>) {
    if (hidden == 8) return in_registers(std::integral_constant<int, 8>{});
    if (hidden == 16) return in_registers(std::integral_constant<int, 16>{});
    if (hidden == 32) return in_registers(std::integral_constant<int, 32>{});
    if (hidden == 64) return in_memory(std::integral_constant<int, 64>{});
  }
  return in_memory(std::integral_constant<int, 0>{});
}

// Weights of the gates from `first_gate` on, [columns, H] each, from row `first` on.
template <class S>
struct GateColumns {
  GateWeights<S> weights;
  int columns, first_gate = 0, first = 0;

  __device__ Compute<S> weight(int k, int gate, int c) const {
    return load(gate_weight(weights, first_gate + gate) + c * columns + first + k);
  }
  __device__ Compute<S> bias(int gate, int c) const {
    return load(gate_bias(weights, first_gate + gate) + c);
  }
};

// The reset gate of each row; rows are `stride` values apart.
template <class S>
struct ResetGate {
  S* data;
  int stride;
};

// Rows [x_t, g_t, h_{t-1}] of the steps of nodes, of windows of a series (x and g of the day), or of its days
// (without h). x and g are zeros where the node is not there: not even a NaN counts. The alternative of h_{t-1} is
// r_t * h_{t-1}.
template <class S>
struct GateRows {
  static constexpr int kPieces = 3;
  static constexpr bool kAlternative = true;
  using Row = RowAddresses<S, 4>;
  GatedScanForward<S> p;
  int widths[kPieces];  // 0 leaves a piece out
  ResetGate<S> reset = {};
  WindowDays windows = {};    // if it has starts
  const int* used = nullptr;  // [D]: x and g of days outside all windows are zeros, too

  GateRows(const GatedScanForward<S>& p_, bool inputs, bool state)
      : p(p_),
        widths{inputs ? static_cast<int>(p.x.channels) : 0, inputs ? static_cast<int>(p.g_channels) : 0,
               state ? static_cast<int>(p.hidden) : 0} {}

  __host__ __device__ int width(int piece) const {
    return piece == 0 ? widths[0] : piece == 1 ? widths[1] : widths[2];
  }
  // Whether the node is there, and its day in a window.
  __device__ static bool has_input(const Row& row) { return row.at[0] != nullptr; }
  __device__ Row row(int r) const {
    const int steps = static_cast<int>(p.steps);
    RowIndex at(r, static_cast<int>(p.num_nodes), steps);
    const int64_t node = r / steps, step = at.step;
    int64_t row_g = r;
    if (windows.starts != nullptr) {
      at.step += windows.first(at.copy);
      row_g = static_cast<int64_t>(at.node) * windows.days + at.step;
      at.copy = 0;
    }
    Row row = {};
    if ((used == nullptr || used[at.step] != 0) && (p.present == nullptr || p.present[row_g])) {
      // x without channels has no address; any other says that the node is there.
      row.at[0] = p.x.channels != 0 ? p.x.data + sequence_offset(p.x, at) : p.weights.u_weight;
      row.at[1] = p.g + row_g * p.g_channels;
    }
    if (widths[2] == 0) return row;
    row.at[2] = step > 0          ? p.h + (int64_t{r} - 1) * p.hidden
                : p.h0 != nullptr ? p.h0 + node * p.hidden
                                  : nullptr;
    row.at[3] = reset.data + static_cast<int64_t>(r) * reset.stride;
    return row;
  }
  template <int n>
  __device__ bool packed(int piece) const {
    if (piece == 0) return packs<n>(p.x);
    if (piece == 1) return packs<n>(p.g, p.g_channels);
    return packs<n>(p.h, p.hidden) && packs<n>(p.h0) && packs<n>(reset.data, reset.stride);
  }
  template <int n>
  __device__ __forceinline__ void load(const Row& row, const Place& at, Compute<S> (&values)[n]) const {
    load_part(row.at[at.piece], at.offset, at.width, at.piece == 0 ? p.x.stride_channel : 1, at.packed,
              values);
  }
  // From the values of the last piece.
  template <int n>
  __device__ __forceinline__ void load_alternative(const Row& row, const Place& at,
                                                   Compute<S> (&values)[n]) const {
    Compute<S> r[n];
    load_part(row.at[3], at.offset, at.width, 1, at.packed, r);
#pragma unroll
    for (int i = 0; i < n; ++i) values[i] *= r[i];
  }
};

// Workspace of a scan.
template <class C>
struct ScanMemory {
  Workspace memory;
  C* input_projection;  // [N * T, 3H], or [V * D, 3H] for windows
  C* packed;            // [3, H, H]

  ScanMemory(void* base, int64_t rows, int64_t hidden)
      : memory(base),
        input_projection(memory.take<C>(rows * 3 * hidden)),
        packed(memory.take<C>(3 * hidden * hidden)) {}
};

// Input projection of all rows, [rows, 3H].
template <class S>
cudaError_t project_input(const GatedScanForward<S>& p, Compute<S>* out, cudaStream_t stream) {
  using C = Compute<S>;
  const int hidden = static_cast<int>(p.hidden);
  const int columns = static_cast<int>(p.x.channels + p.g_channels) + hidden;
  return linear<C, 3>(GateRows<S>(p, true, false), GateColumns<S>{p.weights, columns},
                      DenseOut<C>{out, hidden, 3 * p.hidden, p.hidden}, p.copies * p.num_nodes * p.steps,
                      p.hidden, stream, rounds_operands<S>(p.tf32));
}

// The recurrence alone, over the windows that p describes. day_projection [V * D, 3H] is the input projection
// of each day; `packed` is a workspace of 3 H * H values.
template <class S>
cudaError_t scan_windows(const GatedScanForward<S>& p, const Compute<S>* day_projection,
                         const WindowDays& windows, Compute<S>* packed, cudaStream_t stream);

}  // namespace hiermt::cuda
