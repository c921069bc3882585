// Who computes what in a scan over steps. It multiplies [H] by [H, 3H] per node and step; a thread computes one channel
// of kNodes nodes. Up to 32 channels the weights are in registers. Above, they are in shared memory, or in a packed
// copy in global memory where they do not fit.
#pragma once

#include "cuda/scan/gated_scan.cuh"

namespace hiermt::cuda {

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

// The element of a recurrent weight by which state k adds to channel c, or if kTransposed channel k to state c.
template <bool kTransposed>
__device__ __forceinline__ int recurrent_at(int first, int hidden, int k, int c) {
  return (kTransposed ? k : c) * (first + hidden) + first + (kTransposed ? c : k);
}

// A thread keeps the weights of its channel. The lanes of one warp own whole nodes, so that a step needs no barrier of
// the block.
template <class C, int kHidden, bool kTransposed>
struct RegisterLane {
  static_assert(kWarp % kHidden == 0 && kHidden % 4 == 0);
  static constexpr int kNodes = 1;
  static constexpr int kThreads = 64;  // few, so that a hundred nodes reach many multiprocessors
  static constexpr int kMinBlocks = kTransposed ? 1 : 6;  // of a multiprocessor, with 32 channels
  static constexpr bool kPrefetch = true;                 // a step's values while the step before is computed
  int local, channel, first_node;
  C weights[3][kHidden];

  template <class S>
  __device__ RegisterLane(const GatedScanForward<S>& p, const C*, SharedMemory&)
      : local(static_cast<int>(threadIdx.x) / kHidden),
        channel(static_cast<int>(threadIdx.x) % kHidden),
        first_node(static_cast<int>(blockIdx.x) * (kThreads / kHidden) + local) {
    const int first = static_cast<int>(p.x.channels + p.g_channels);
#pragma unroll
    for (int k = 0; k < kHidden; ++k) {
      const int at = recurrent_at<kTransposed>(first, kHidden, k, channel);
#pragma unroll
      for (int gate = 0; gate < 3; ++gate) weights[gate][k] = load(gate_weight(p.weights, gate) + at);
    }
  }
  __device__ static constexpr int hidden() { return kHidden; }
  // Shared memory for a value per channel and node; node q of a thread begins at q * hidden.
  __device__ C* exchange(SharedMemory& memory) const { return memory.take<C>(kThreads) + local * kHidden; }
  // Waits for what the threads of the same nodes have put there.
  __device__ __forceinline__ void sync() const { __syncwarp(); }
  // sums[q] += the sum over k of the weight of `gate` and values[q * hidden + k].
  __device__ __forceinline__ void multiply(int gate, const C* values, C (&sums)[1]) const {
    sums[0] += dot(weights[gate], values);
  }
  // The same for two gates.
  __device__ __forceinline__ void multiply(int gate, const C* values, C (&sums)[1], int other,
                                           const C* other_values, C (&other_sums)[1]) const {
    multiply(gate, values, sums);
    multiply(other, other_values, other_sums);
  }
};

// Groups of H threads own kNodes nodes each: a thread reads a weight once for them.
template <class C, int kHidden, bool kShared, bool kTransposed>
struct MemoryLane {
  static constexpr int kNodes = 4;      // more would spill
  static constexpr int kThreads = 256;  // as many groups as fit
  static constexpr int kMinBlocks = 1;
  static constexpr bool kPrefetch = false;
  static_assert(kThreads >= kMaxHidden);
  int hidden_, groups, group, channel, first_node;
  const C* weights;  // [3, H, stride], from the channel on
  int stride;

  template <class S>
  __device__ MemoryLane(const GatedScanForward<S>& p, const C* packed, SharedMemory& memory)
      : hidden_(static_cast<int>(p.hidden)),
        groups(static_cast<int>(blockDim.x) / hidden()),
        group(static_cast<int>(threadIdx.x) / hidden()),
        channel(static_cast<int>(threadIdx.x) % hidden()),
        first_node((static_cast<int>(blockIdx.x) * groups + group) * kNodes),
        weights(packed + channel),
        stride(hidden()) {
    if constexpr (kShared) {
      stride = static_cast<int>(shared_stride(hidden()));
      C* copy = memory.take<C>(3 * static_cast<size_t>(hidden()) * stride);
      const int first = static_cast<int>(p.x.channels + p.g_channels), square = hidden() * hidden();
      for (int i = static_cast<int>(threadIdx.x); i < 3 * square; i += static_cast<int>(blockDim.x)) {
        const int gate = i / square, row = i / hidden() % hidden(), column = i % hidden();
        const int k = kTransposed ? row : column, c = kTransposed ? column : row;
        copy[(gate * hidden() + k) * stride + c] =
            load(gate_weight(p.weights, gate) + recurrent_at<kTransposed>(first, hidden(), k, c));
      }
      weights = copy + channel;
    }
  }
  // Odd, so that writing a column has no bank conflicts.
  static __host__ __device__ int64_t shared_stride(int64_t hidden) { return hidden | 1; }
  __device__ __forceinline__ int hidden() const { return kHidden != 0 ? kHidden : hidden_; }
  __device__ C* exchange(SharedMemory& memory) const {
    return memory.take<C>(groups * kNodes * hidden()) + group * kNodes * hidden();
  }
  __device__ __forceinline__ void sync() const { __syncthreads(); }
  __device__ __forceinline__ void multiply(int gate, const C* values, C (&sums)[kNodes]) const {
    const C* of_gate = weights + gate * hidden() * stride;
#pragma unroll 4
    for (int k = 0; k < hidden(); ++k) {
      const C weight = of_gate[k * stride];
#pragma unroll
      for (int q = 0; q < kNodes; ++q) sums[q] += weight * values[q * hidden() + k];
    }
  }
  __device__ __forceinline__ void multiply(int gate, const C* values, C (&sums)[kNodes], int other,
                                           const C* other_values, C (&other_sums)[kNodes]) const {
    const C* of_gate = weights + gate * hidden() * stride;
    const C* of_other = weights + other * hidden() * stride;
#pragma unroll 4
    for (int k = 0; k < hidden(); ++k) {
      const C weight = of_gate[k * stride], other_weight = of_other[k * stride];
#pragma unroll
      for (int q = 0; q < kNodes; ++q) {
        sums[q] += weight * values[q * hidden() + k];
        other_sums[q] += other_weight * other_values[q * hidden() + k];
      }
    }
  }
};

// packed[gate][k][c], see recurrent_at.
template <class S, bool kTransposed>
__global__ void pack_recurrent_kernel(GateWeights<S> weights, int first, int hidden, Compute<S>* packed) {
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (i >= 3 * hidden * hidden) return;
  const int gate = i / (hidden * hidden), k = i / hidden % hidden, c = i % hidden;
  packed[i] = load(gate_weight(weights, gate) + recurrent_at<kTransposed>(first, hidden, k, c));
}

// How the kernel of a kind of lane is launched.
template <class Lane_, class C>
struct ScanLaunch {
  using Lane = Lane_;
  int64_t blocks, threads;
  size_t shared_bytes;
  const C* packed;  // the packed copy of the weights, or nullptr
};

// Calls f(ScanLaunch) for the lanes of a scan whose kernel takes `exchanges` arrays.
template <class S, bool kTransposed, class F>
void dispatch_lane(const GatedScanForward<S>& p, int exchanges, Stream& on, F&& f) {
  using C = Compute<S>;
  const int64_t hidden = p.hidden, nodes = p.copies * p.num_nodes;
  const auto in_registers = [&](auto constant) {
    using Lane = RegisterLane<C, constant, kTransposed>;
    f(ScanLaunch<Lane, C>{ceil_div<int64_t>(nodes, Lane::kThreads / constant), Lane::kThreads,
                          exchanges * padded_bytes<C>(Lane::kThreads), nullptr});
  };
  // The packed copy is always read by the generic kernel: no supported GPU has too little shared memory for the weights
  // of 64 channels.
  const auto in_memory = [&](auto constant) {
    using Shared = MemoryLane<C, constant, true, kTransposed>;
    using Packed = MemoryLane<C, 0, false, kTransposed>;
    const int64_t groups = Shared::kThreads / hidden,
                  blocks = ceil_div<int64_t>(nodes, groups * Shared::kNodes);
    const size_t state = exchanges * padded_bytes<C>(groups * Shared::kNodes * hidden);
    const size_t weights = padded_bytes<C>(3 * hidden * Shared::shared_stride(hidden));
    if (state + weights <= shared_memory_limit()) {
      return f(ScanLaunch<Shared, C>{blocks, groups * hidden, state + weights, nullptr});
    }
    C* const packed = on.take<C>(3 * hidden * hidden);
    launch(pack_recurrent_kernel<S, kTransposed>, ceil_div<int64_t>(3 * hidden * hidden, Packed::kThreads),
           Packed::kThreads, 0, on, p.weights, p.x.channels + p.g_channels, hidden, packed);
    f(ScanLaunch<Packed, C>{blocks, groups * hidden, state, packed});
  };
  if constexpr (!std::is_same_v<S, double>) {
    if (hidden == 8) return in_registers(std::integral_constant<int, 8>{});
    if (hidden == 16) return in_registers(std::integral_constant<int, 16>{});
    if (hidden == 32) return in_registers(std::integral_constant<int, 32>{});
    if (hidden == 64) return in_memory(std::integral_constant<int, 64>{});
  }
  in_memory(std::integral_constant<int, 0>{});
}

}  // namespace hiermt::cuda
