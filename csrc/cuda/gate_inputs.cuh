// The last thing a stack kernel does for an item (stack.cuh): what the three gates take from x and g, so that
// the recurrence reads neither.
#pragma once

#include "gated_scan.cuh"
#include "stack.cuh"

namespace hiermt::cuda {

// weights[k][gate][c] of the columns that read [x, g], and biases[gate][c].
template <int kHidden>
struct GateMemory {
  float *weights, *biases;

  __device__ GateMemory(SharedMemory& memory, int channels)
      : weights(memory.take<float>(3 * static_cast<size_t>(channels + kHidden) * kHidden)),
        biases(memory.take<float>(3 * kHidden)) {}

  static size_t bytes(int64_t channels) {
    return padded_bytes<float>(3 * (channels + kHidden) * kHidden) + padded_bytes<float>(3 * kHidden);
  }

  template <class S>
  __device__ void fill(const GateWeights<S>& gates, int channels) const {
    fill_gate_weights<S, kHidden>(gates, channels + kHidden, weights);
    for (int i = static_cast<int>(threadIdx.x); i < 3 * kHidden; i += static_cast<int>(blockDim.x)) {
      biases[i] = load(gate_bias(gates, i / kHidden) + i % kHidden);
    }
  }
};

// to[gate][c] = W [x, g] + b, where `from` is the item's row of x.
template <class S, int kHidden>
__device__ __forceinline__ void write_gate_inputs(const GateMemory<kHidden>& gates, const StackInput<S>& x,
                                                  const S* from, const float (&g)[kHidden], float* to) {
  // Wide gates one after another: all sums of three would not fit the registers.
  constexpr int kAtOnce = kHidden > 16 ? 1 : 3;
  float4* quads = reinterpret_cast<float4*>(to);
#pragma unroll 1
  for (int first = 0; first < 3; first += kAtOnce) {
    float sum[kAtOnce][kHidden];
    const auto add = [&](int k, float value) {
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        add_scaled<kHidden>(gates.weights + (k * 3 + first + i) * kHidden, value, sum[i]);
      }
    };
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) copy_channels<kHidden>(gates.biases + (first + i) * kHidden, sum[i]);
#pragma unroll 2
    for (int k = 0; k < x.channels; ++k) add(k, load(from + k * x.stride_channel));
#pragma unroll
    for (int k = 0; k < kHidden; ++k) add(x.channels + k, g[k]);
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
#pragma unroll
      for (int q = 0; q < kHidden / 4; ++q) {
        quads[(first + i) * (kHidden / 4) + q] =
            float4{sum[i][4 * q], sum[i][4 * q + 1], sum[i][4 * q + 2], sum[i][4 * q + 3]};
      }
    }
  }
}

}  // namespace hiermt::cuda
