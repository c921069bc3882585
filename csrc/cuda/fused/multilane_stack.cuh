// Dense layers of a stack whose items are shared by several lanes (64 channels). The weights of a layer do
// not fit shared memory beside the tiles, so a matrix is copied when it is used. A thread computes its
// channels of two items at once, which share the loads of the weights.
#pragma once

#include "cuda/fused/stack_forward.cuh"

namespace hiermt::cuda {

// A matrix [inputs, H] in shared memory. `inputs` is rounded up to quads with zeros. The stride of its rows
// avoids bank conflicts when a column is written.
template <int kHidden>
struct StagedMatrix {
  static constexpr int kStride = kHidden + 4;
  float* data;

  __host__ __device__ static constexpr int64_t values(int64_t inputs) {
    return ceil_div<int64_t>(inputs, 4) * 4 * kStride;
  }
  // Transposes the first `inputs` columns of `from` [H, columns]. A warp reads contiguous parts of a row.
  template <class S>
  __device__ void fill(const S* from, int columns, int inputs) const {
    const int warp = static_cast<int>(threadIdx.x) / kWarp, lane = static_cast<int>(threadIdx.x) % kWarp;
    const int warps = static_cast<int>(blockDim.x) / kWarp, padded = ceil_div(inputs, 4) * 4;
    for (int k = lane; k < padded; k += kWarp) {
      const S* at = from + warp * columns + k;
      float* to = data + k * kStride + warp;
      if (k < inputs) {
#pragma unroll 4
        for (int c = warp; c < kHidden; c += warps, at += warps * columns, to += warps) *to = load(at);
      } else {
        for (int c = warp; c < kHidden; c += warps, to += warps) *to = 0.0f;
      }
    }
  }
};

// Copies x to a tile, with the channels rounded up to quads. Zeros where an item is not there.
template <class S, int kHidden, int kLanes>
__device__ void stage_rows(const StackItems& items, const StackInput<S>& x, const StackPresence& presence,
                           const Tile<kHidden, kLanes>& tile) {
  const int warp = static_cast<int>(threadIdx.x) / kWarp, lane = static_cast<int>(threadIdx.x) % kWarp;
  const int warps = static_cast<int>(blockDim.x) / kWarp, padded = ceil_div(x.channels, 4) * 4;
  for (int k = lane; k < padded; k += kWarp) {
#pragma unroll 4
    for (int item = warp; item < items.nodes * items.chunk; item += warps) {
      const int node = item / items.chunk, step = item - node * items.chunk;
      float* to = reinterpret_cast<float*>(tile.at(node, step) + k / 4 * items.chunk);
      to[k % 4] =
          k < x.channels && presence.has(node, step) ? load(x.row(node, step) + k * x.stride_channel) : 0.0f;
    }
  }
}

// The two items of a thread: item `pair` of the first half of a block, and the same one of the second half.
template <int kHidden, int kLanes>
struct ItemPair {
  static constexpr int kChannels = kHidden / kLanes;
  int node[2], step[2];
  bool both;

  __device__ ItemPair(const StackItems& items, int pair) {
    const int count = items.nodes * items.chunk, pairs = ceil_div(count, 2);
    both = pair + pairs < count;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int item = i == 1 && both ? pair + pairs : pair;
      node[i] = item / items.chunk;
      step[i] = item - node[i] * items.chunk;
    }
  }
  // sums[i] += item i * matrix, over the first `quads` quads of input channels.
  __device__ __forceinline__ void add(const Tile<kHidden, kLanes>& tile, int quads, const float* matrix,
                                      float (&sums)[2][kChannels]) const {
    constexpr int kStride = StagedMatrix<kHidden>::kStride;
    const float4 *first = tile.at(node[0], step[0]), *second = tile.at(node[1], step[1]);
#pragma unroll 2
    for (int q = 0; q < quads; ++q) {
      const float4 a = *first, b = *second;
      first += tile.chunk, second += tile.chunk;
      const float firsts[4] = {a.x, a.y, a.z, a.w}, seconds[4] = {b.x, b.y, b.z, b.w};
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        float weights[kChannels];
        copy_channels<kHidden, kLanes>(matrix + (4 * q + k) * kStride, weights);
#pragma unroll
        for (int c = 0; c < kChannels; ++c) {
          sums[0][c] += firsts[k] * weights[c];
          sums[1][c] += seconds[k] * weights[c];
        }
      }
    }
  }
};

// Calls f(pair, mask) for the pairs of this thread. All lanes of `mask` are in the same call.
template <int kHidden, int kLanes, class F>
__device__ __forceinline__ void for_each_pair(const StackItems& items, F&& f) {
  const int pairs = ceil_div(items.nodes * items.chunk, 2);
  const int width = static_cast<int>(blockDim.x) / kLanes, group = static_cast<int>(threadIdx.x) / kLanes;
  for (int first = 0; first < pairs; first += width) {
    const bool inside = first + group < pairs;
    const unsigned mask = __ballot_sync(kFullMask, inside);
    if (inside) f(ItemPair<kHidden, kLanes>(items, first + group), mask);
  }
}

// out = in * matrix + bias for each item, over `quads` quads of input channels. `out` may be `in`.
template <int kHidden, int kLanes>
__device__ __forceinline__ void project_tile(const StackItems& items, const float* matrix, const float* bias,
                                             const Tile<kHidden, kLanes>& in, int quads,
                                             const Tile<kHidden, kLanes>& out) {
  for_each_pair<kHidden, kLanes>(items, [&](const ItemPair<kHidden, kLanes>& pair, unsigned mask) {
    float sums[2][kHidden / kLanes] = {};
    if (bias != nullptr) {
#pragma unroll
      for (int i = 0; i < 2; ++i) copy_channels<kHidden, kLanes>(bias, sums[i]);
    }
    pair.add(in, quads, matrix, sums);
    // All lanes of the items have read their input.
    __syncwarp(mask);
    out.write(pair.node[0], pair.step[0], sums[0]);
    if (pair.both) out.write(pair.node[1], pair.step[1], sums[1]);
  });
}

// Writes g if the backward needs it, and the input projection of the gates. `matrix` has room for the columns
// of one gate, `rows` for x. The caller synchronises before.
template <class S, class Weights, int kHidden, int kLanes>
__device__ void finish_multilane(const StackForward<S, Weights>& p, const StackBlock& block,
                                 const StackItems& items, const StackPresence& presence,
                                 const StackInput<S>& x, const StagedMatrix<kHidden>& matrix,
                                 const Tile<kHidden, kLanes>& g, const Tile<kHidden, kLanes>& rows) {
  constexpr int kChannels = kHidden / kLanes;
  const int quads = ceil_div(x.channels, 4), columns = x.channels + 2 * kHidden;
  const StagedMatrix<kHidden> of_g{matrix.data + StagedMatrix<kHidden>::values(x.channels)};
  stage_rows(items, x, presence, rows);
  if (p.g != nullptr) {
    items.template for_each_with_mask<kLanes>([&](int node, int step, unsigned) {
      float values[kChannels];
      g.read(node, step, values);
      S* to = p.g + block.row(p.graph, p.steps, node, step) * kHidden + 4 * lane_of_item<kLanes>();
#pragma unroll
      for (int c = 0; c < kChannels; ++c) store(to + c / 4 * 4 * kLanes + c % 4, values[c]);
    });
  }
#pragma unroll 1
  for (int gate = 0; gate < 3; ++gate) {
    const S* weight = gate_weight(p.gates, gate);
    if (gate != 0) __syncthreads();
    matrix.fill(weight, columns, x.channels);
    of_g.fill(weight + x.channels, columns, kHidden);
    __syncthreads();
    const S* bias = gate_bias(p.gates, gate) + 4 * lane_of_item<kLanes>();
    for_each_pair<kHidden, kLanes>(items, [&](const ItemPair<kHidden, kLanes>& pair, unsigned) {
      float sums[2][kChannels];
#pragma unroll
      for (int c = 0; c < kChannels; ++c) {
        sums[0][c] = sums[1][c] = load(bias + c / 4 * 4 * kLanes + c % 4);
      }
      pair.add(rows, quads, matrix.data, sums);
      pair.add(g, kHidden / 4, of_g.data, sums);
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        if (i == 1 && !pair.both) break;
        const int64_t row = block.row(p.graph, p.steps, pair.node[i], pair.step[i]);
        write_channels<kHidden, kLanes>(sums[i], p.input_projection + (row * 3 + gate) * kHidden);
      }
    });
  }
}

// Values of the matrices in shared memory: the columns of one gate, or `at_once` matrices of a convolution.
template <int kHidden>
__host__ __device__ constexpr int64_t staged_matrix_values(int64_t channels, int64_t conv_layers,
                                                           int64_t at_once) {
  using Matrix = StagedMatrix<kHidden>;
  const int64_t convs = at_once * Matrix::values(max_inputs(channels, kHidden, conv_layers));
  const int64_t gate = Matrix::values(channels) + Matrix::values(kHidden);
  return convs > gate ? convs : gate;
}

// Shared memory of a frame and the matrices.
template <int kHidden, class S>
size_t multilane_stack_bytes(const ConvStackForward<S>& p, int64_t chunk, int64_t at_once) {
  using Frame = StackFrame<S, Tile<kHidden, StackTraits<kHidden>::kLanes>>;
  return Frame::bytes(p, chunk) +
         padded_bytes<float>(staged_matrix_values<kHidden>(p.x.channels, p.conv_layers, at_once));
}

}  // namespace hiermt::cuda
