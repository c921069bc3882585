// The last step of a stack kernel: the input projection W [x, g] + b of the three gates for each item, so
// that the recurrence reads neither x nor g.
#pragma once

#include "cuda/fused/stack.cuh"

namespace hiermt::cuda {

// weights[k][gate][c] of the columns that read [x, g], and biases[gate][c], in shared memory.
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

// Writes the input projection [3, H] of item i to row(i). The tile holds g.
template <class S, int kHidden, int kItems, class Row>
__device__ __forceinline__ void write_input_projection(const GateMemory<kHidden>& gates,
                                                       const StackInput<S>& x, const Tile<kHidden>& tile,
                                                       const ItemGroup<kItems>& group, Row&& row) {
  // One gate at a time if the sums of all three do not fit the registers.
  constexpr int kAtOnce = kItems * kHidden > 16 ? 1 : 3;
#pragma unroll 1
  for (int first = 0; first < 3; first += kAtOnce) {
    float sums[kAtOnce][kItems][kHidden];
#pragma unroll
    for (int gate = 0; gate < kAtOnce; ++gate) {
#pragma unroll
      for (int i = 0; i < kItems; ++i) {
        copy_channels<kHidden>(gates.biases + (first + gate) * kHidden, sums[gate][i]);
      }
    }
    const auto add = [&](int k, const float (&values)[kItems]) {
#pragma unroll
      for (int gate = 0; gate < kAtOnce; ++gate) {
        add_scaled<kHidden, 1>(gates.weights + (k * 3 + first + gate) * kHidden, values, sums[gate]);
      }
    };
    for_each_channel(x, group, add);
    for_each_channel(tile, group, [&](int k, const float (&values)[kItems]) { add(x.channels + k, values); });
#pragma unroll
    for (int i = 0; i < kItems; ++i) {
#pragma unroll
      for (int gate = 0; gate < kAtOnce; ++gate) {
        write_channels<kHidden, 1>(sums[gate][i], row(i) + (first + gate) * kHidden);
      }
    }
  }
}

}  // namespace hiermt::cuda
