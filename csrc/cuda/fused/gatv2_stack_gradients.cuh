// Dense parts of the backward of a GATv2 stack (gatv2_stack_backward.cuh), as products of the items of a block on
// tensor cores (item_products.cuh): the projections again, the cotangents of their inputs, and the gradients of their
// weights.
#pragma once

#include "cuda/dense/gatv2_grads.cuh"
#include "cuda/fused/gatv2_stack.cuh"
#include "cuda/fused/item_products.cuh"

namespace hiermt::cuda {

// The weights by which cotangents of groups of `hidden` channels become those of `columns` inputs.
template <class Weight>
struct InputColumns {
  Transposed<Weight> transposed;
  int columns;

  __device__ float weight(int k, int matrix, int c) const {
    const int column = matrix * transposed.hidden + c;
    return column < columns ? transposed.weight(k, 0, column) : 0.0f;
  }
  __device__ float bias(int, int) const { return 0.0f; }
};

// Items of a lane, blocks of 16 columns of cotangents, and of x_l and x_r, that are computed at once. More would spill
// the registers of the loops over the entries.
constexpr int kBackwardItems = 2;
constexpr int kCotangentBlocks = 1;
template <int kHidden>
constexpr int kProjectionBlocks = StackTraits<kHidden>::kConvBlocks;

// Values of the weights of a product in shared memory, the most of all products.
template <class S, int kHidden>
__host__ __device__ constexpr int64_t backward_weight_values(int64_t inputs) {
  const auto blocks = [](int64_t width) { return ceil_div<int64_t>(width, kBlockColumns); };
  using Cotangents = ProductWeights<S, kHidden, kCotangentBlocks, kBackwardItems>;
  const int64_t convs =
      ProductWeights<S, kHidden, kProjectionBlocks<kHidden>, kBackwardItems>::values(blocks(inputs));
  const int64_t cotangents = Cotangents::values(2 * blocks(kHidden));
  return convs > cotangents ? convs : cotangents;
}

// Stages the weights of kBlocks blocks of columns at a time and calls f(ProductWeights). They multiply `parts` inputs
// of `width` channels. Synchronises the block before f.
template <class S, int kHidden, int kBlocks, class Weight, class F>
__device__ __forceinline__ void for_each_matrix(float* memory, const Weight& weight, int columns, int parts,
                                                int width, F&& f) {
#pragma unroll 1
  for (int first = 0; first < columns; first += kBlocks * kBlockColumns) {
    const ProductWeights<S, kHidden, kBlocks, kBackwardItems> matrix{memory, first, columns};
    __syncthreads();
    matrix.fill_biases(weight);
    for (int part = 0; part < parts; ++part) {
      matrix.fill(weight, part * ceil_div(width, kBlockColumns), part * width, width);
    }
    __syncthreads();
    f(matrix);
  }
}

// x_l and x_r of the items from `inputs`, or from x in the first convolution; `x_r` may be the tile that is read. x_l of
// an item that is not there is zero. `linear` is as for attend().
template <class S, int kHidden, int kLanes, class Linear>
__device__ __forceinline__ void project(const StackItems& items, float* memory,
                                        const GatV2Weights<S>& weights, bool from_x, const StackInput<S>& x,
                                        const StackPresence& presence, const Tile<kHidden, kLanes>& inputs,
                                        const Tile<kHidden, kLanes>& x_l, const Tile<kHidden, kLanes>& x_r,
                                        const ConvVectors<kHidden>& vectors, const Linear& linear) {
  constexpr int kBlocks = kProjectionBlocks<kHidden>;
  constexpr bool kSplit = !std::is_same_v<Linear, std::nullptr_t>;
  static_assert(!kSplit || kBlocks * kBlockColumns >= 2 * kHidden);
  const int width = from_x ? x.channels : kHidden;
  const PairWeights<S> weight{weights, width};
  for_each_matrix<S, kHidden, kBlocks>(memory, weight, 2 * kHidden, 1, width, [&](const auto& matrix) {
    [[maybe_unused]] float att[4];
    if constexpr (kSplit) linear.load_att(vectors, att);
    const auto write = [&](int node, int step, float (&quads)[kBlocks][4], bool wanted) {
      const bool there = presence.has(node, step);
      if constexpr (kSplit) linear.write(att, quads[0], node, step, there, wanted);
      write_projections(x_l, x_r, node, step, there, wanted, matrix.first, quads);
    };
    for_each_lane_items<kBackwardItems>(items, [&](const auto& at) {
      if (from_x) {
        matrix.products(at, weight, write, SequenceInput<S>(x, presence));
      } else {
        matrix.products(at, weight, write, TileInput(inputs));
      }
    });
  });
}

// Sums d_y for the gradient of the bias, the third vector in `warp_sums`: over the items of a warp, of which its lanes
// have added up quad m of each block of columns from `first` on.
template <int kHidden, int kBlocks>
__device__ __forceinline__ void sum_cotangents(const float (&sums)[kBlocks][4], int first, float* warp_sums) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  float* to = warp_sums + (static_cast<int>(threadIdx.x) / kWarp * 3 + 2) * kHidden;
#pragma unroll
  for (int block = 0; block < kBlocks; ++block) {
    float totals[4];
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      totals[k] = sums[block][k];
#pragma unroll
      for (int bit = kWarp / 2; bit >= 4; bit /= 2) totals[k] += __shfl_xor_sync(kFullMask, totals[k], bit);
    }
    const int column = first + block * kBlockColumns + 4 * lane;
    if (lane < 4 && column < kHidden) store_quad(to + column, totals);
  }
}

// Writes d_y, the products of the cotangents of x_l and x_r with `weight` times the slope of the activation, or zeros of
// an item that is not there, and its sum over the items of each warp to `warp_sums`. slope(node, step, quad, slopes) has
// those of a quad; products(at, matrix, write) computes the products of a group of items.
template <class S, int kLanes, int kHidden, class Weight, class Products, class Slope>
__device__ __forceinline__ void write_cotangents(const StackItems& items, const StackPresence& presence,
                                                 float* memory, const Weight& weight,
                                                 const Tile<kHidden, kLanes>& d_y, float* warp_sums,
                                                 Products&& products, Slope&& slope) {
  constexpr int kBlocks = kCotangentBlocks;
  for_each_matrix<S, kHidden, kBlocks>(memory, weight, kHidden, 2, kHidden, [&](const auto& matrix) {
    float bias_sums[kBlocks][4] = {};
    const auto write = [&](int node, int step, const float (&quads)[kBlocks][4], bool wanted) {
      if (!wanted) return;
#pragma unroll
      for (int block = 0; block < kBlocks; ++block) {
        const int quad = (matrix.first + block * kBlockColumns) / 4 + static_cast<int>(threadIdx.x) % 4;
        if (kHidden % kBlockColumns != 0 && quad >= kHidden / 4) break;
        float values[4];
        slope(node, step, quad, values);
#pragma unroll
        for (int k = 0; k < 4; ++k) values[k] *= quads[block][k];
        if (presence.masked()) clear_unless(presence.has(node, step), values);
#pragma unroll
        for (int k = 0; k < 4; ++k) bias_sums[block][k] += values[k];
        d_y.put(node, step, quad, values);
      }
    };
    for_each_lane_items<kBackwardItems>(items, [&](const auto& at) { products(at, matrix, write); });
    sum_cotangents<kHidden>(bias_sums, matrix.first, warp_sums);
  });
}

// Writes to or adds to d_x the products of these cotangents with `weight`.
template <class S, int kHidden, class Weight, class Row, class Products>
__device__ __forceinline__ void write_d_x(const StackItems& items, float* memory, const Weight& weight,
                                          const InputGradientOut<S>& d_x, Row&& row, Products&& products) {
  constexpr int kBlocks = kCotangentBlocks;
  const int channels = d_x.out.channels;
  for_each_matrix<S, kHidden, kBlocks>(memory, weight, channels, 2, kHidden, [&](const auto& matrix) {
    const auto write = [&](int node, int step, const float (&quads)[kBlocks][4], bool wanted) {
      if (!wanted) return;
#pragma unroll
      for (int block = 0; block < kBlocks; ++block) {
        const int column = matrix.first + block * kBlockColumns + static_cast<int>(threadIdx.x) % 4 * 4;
        if (column < channels) d_x.write(row(node, step), 0, column, quads[block]);
      }
    };
    for_each_lane_items<kBackwardItems>(items, [&](const auto& at) { products(at, matrix, write); });
  });
}

// The partial sum of a block: set by its first task, added to by the others.
struct PartialSum {
  float* at;
  bool add;

  __device__ void put(int i, float value) const { at[i] = add ? at[i] + value : value; }
};

// Values of the partial sum of one convolution: att, lin_edge and bias, then the matrices as in MatrixGrads.
__host__ __device__ constexpr int64_t conv_grad_values(int64_t inputs, int64_t hidden) {
  return 3 * hidden + 2 * hidden * (inputs + 1);
}

// Products of 32 rows of [d_x_l; d_x_r] with kColumns input channels, the unit of a warp, and how many there are. Several
// warps share a unit and divide its items.
template <int kHidden>
struct WeightUnits {
  static constexpr int kRows = 32, kColumns = kHidden > 32 ? 32 : 16;
  static constexpr int kColumnUnits = ceil_div(kHidden, kColumns);
  static constexpr int kUnits = ceil_div(2 * kHidden, kRows) * kColumnUnits;
  static constexpr int kLeastThreads = kUnits * kWarp;
  static constexpr int kValues = kRows * kColumns + kRows;  // with the sums of the rows

  // Of the sums of a block in shared memory.
  __host__ __device__ static constexpr int64_t values(int64_t threads) { return threads / kWarp * kValues; }
};

// The sums of a warp. Lane 4 g + m reads the rows 4g to 4g + 3 and the columns 2g and 2g + 1 of each block of the items m
// and m + 4 of eight; it has the columns 4m to 4m + 3 of each block.
template <class S, int kHidden, int kLanes>
struct WeightSums {
  using Units = WeightUnits<kHidden>;
  using Items = Tile<kHidden, kLanes>;
  static constexpr int kBlocks = Units::kColumns / kBlockColumns, kQuads = kHidden / 4;
  static constexpr int kProducts = 2, kStep = 8 * kProducts;  // items whose products are added up at once
  float sum[2][kBlocks][2][4] = {};
  float rows[4] = {};

  // `left` and `right` are the first item's quads of this lane; `offsets` those of the items m, m + 4, ...
  template <Products kHow>
  __device__ __forceinline__ void step(const float4* left, bool left_inside, const float4* right,
                                       const bool (&right_inside)[kBlocks], int stride,
                                       const int (&offsets)[kStep / 4], int count) {
    float a[kStep / 4][4], b[kStep / 4][kBlocks][2];
#pragma unroll
    for (int i = 0; i < kStep / 4; ++i) {
      load_quad(left + offsets[i], a[i]);
#pragma unroll
      for (int block = 0; block < kBlocks; ++block) {
        const int lane = static_cast<int>(threadIdx.x) % kWarp;
        const auto pair = reinterpret_cast<const float2*>(
            right + offsets[i] +
            (right_inside[block] ? block * kBlockColumns / 4 * stride : 0))[lane / 4 % 2];
        b[i][block][0] = pair.x, b[i][block][1] = pair.y;
      }
    }
    // Zeros past the end, and behind the last row and column.
    if (count < kStep || kHidden < kBlockColumns) {
#pragma unroll
      for (int i = 0; i < kStep / 4; ++i) {
        const bool inside = static_cast<int>(threadIdx.x) % 4 + 4 * i < count;
#pragma unroll
        for (int k = 0; k < 4; ++k) a[i][k] = inside && left_inside ? a[i][k] : 0.0f;
#pragma unroll
        for (int block = 0; block < kBlocks; ++block) {
#pragma unroll
          for (int k = 0; k < 2; ++k) b[i][block][k] = inside && right_inside[block] ? b[i][block][k] : 0.0f;
        }
      }
    }
    Operand<float, kHow, 4> of_left[2][kProducts];
#pragma unroll
    for (int i = 0; i < kProducts; ++i) {
      const float (&low)[4] = a[2 * i], (&high)[4] = a[2 * i + 1];
#pragma unroll
      for (int tile = 0; tile < 2; ++tile) {
        of_left[tile][i] =
            Operand<float, kHow, 4>({low[2 * tile], low[2 * tile + 1], high[2 * tile], high[2 * tile + 1]});
      }
#pragma unroll
      for (int k = 0; k < 4; ++k) rows[k] += low[k] + high[k];
    }
#pragma unroll
    for (int block = 0; block < kBlocks; ++block) {
#pragma unroll
      for (int column = 0; column < 2; ++column) {
        Operand<float, kHow, 2> of_right[kProducts];
#pragma unroll
        for (int i = 0; i < kProducts; ++i) {
          of_right[i] = Operand<float, kHow, 2>({b[2 * i][block][column], b[2 * i + 1][block][column]});
        }
#pragma unroll
        for (int tile = 0; tile < 2; ++tile) multiply(sum[tile][block][column], of_left[tile], of_right);
      }
    }
  }
  // Adds the items of every `slices`-th group of 32 from `slice` on.
  template <Products kHow>
  __device__ __forceinline__ void add(const StackItems& items, const Items& x_l, const Items& x_r,
                                      const Items& inputs, int unit, int slice, int slices) {
    const int lane = static_cast<int>(threadIdx.x) % kWarp, count = items.nodes * items.chunk;
    const int row = unit / Units::kColumnUnits * (Units::kRows / 4) + lane / 4;
    const int column = unit % Units::kColumnUnits * (Units::kColumns / 4) + lane / 8;
    const bool left_inside = row < 2 * kQuads;
    bool right_inside[kBlocks];
#pragma unroll
    for (int i = 0; i < kBlocks; ++i) right_inside[i] = column + i * kBlockColumns / 4 < kQuads;
    const float4* left = row < kQuads || !left_inside ? x_l.at(0, 0) + row % kQuads * x_l.stride()
                                                      : x_r.at(0, 0) + row % kQuads * x_l.stride();
    const float4* right = inputs.at(0, 0) + column % kQuads * inputs.stride();
    for (int first = slice * kWarp; first < count; first += slices * kWarp) {
      const int item = first + lane < count ? first + lane : count - 1, node = item / items.chunk;
      const int offset = static_cast<int>(inputs.at(node, item - node * items.chunk) - inputs.at(0, 0));
#pragma unroll 1
      for (int i = 0; i < kWarp && first + i < count; i += kStep) {
        int offsets[kStep / 4];
#pragma unroll
        for (int k = 0; k < kStep / 4; ++k) {
          offsets[k] = __shfl_sync(kFullMask, offset, i + lane % 4 + 4 * k);
        }
        step<kHow>(left, left_inside, right, right_inside, inputs.stride(), offsets, count - first - i);
      }
    }
  }
  // Takes the sums that are NaN or infinite from `exact`. Others keep their bits.
  __device__ __forceinline__ void repair(const WeightSums& exact) {
#pragma unroll
    for (int tile = 0; tile < 2; ++tile) {
#pragma unroll
      for (int i = 0; i < 8 * kBlocks; ++i) {
        float& value = sum[tile][i / 8][i / 4 % 2][i % 4];
        if (!(fabsf(value) < INFINITY)) value = exact.sum[tile][i / 8][i / 4 % 2][i % 4];
      }
    }
  }
  __device__ __forceinline__ bool finite() const {
    float probe = 0.0f;
#pragma unroll
    for (int tile = 0; tile < 2; ++tile) {
#pragma unroll
      for (int i = 0; i < 8 * kBlocks; ++i) probe += 0.0f * sum[tile][i / 8][i / 4 % 2][i % 4];
    }
    return probe == 0.0f;
  }
  __device__ __forceinline__ void put(float* to) {
    const int lane = static_cast<int>(threadIdx.x) % kWarp, row = lane / 4 * 4, column = lane % 4 * 4;
#pragma unroll
    for (int k = 0; k < 4; ++k) {
#pragma unroll
      for (int block = 0; block < kBlocks; ++block) {
        const float (&even)[4] = sum[k / 2][block][0], (&odd)[4] = sum[k / 2][block][1];
        const float values[4] = {even[k % 2 * 2], odd[k % 2 * 2], even[k % 2 * 2 + 1], odd[k % 2 * 2 + 1]};
        store_quad(to + (row + k) * Units::kColumns + block * kBlockColumns + column, values);
      }
      rows[k] = group_sum(rows[k], 4);
    }
    if (lane % 4 == 0) store_quad(to + Units::kRows * Units::kColumns + row, rows);
  }
};

// Products of [d_x_l; d_x_r] with `inputs`, the input channels from `first` on of `channels`. Overwrites the tile of the
// inputs.
template <class S, int kHidden, int kLanes>
__device__ __forceinline__ void weight_products(const StackItems& items, const Tile<kHidden, kLanes>& x_l,
                                                const Tile<kHidden, kLanes>& x_r,
                                                const Tile<kHidden, kLanes>& inputs, int first, int channels,
                                                const PartialSum& out) {
  using Units = WeightUnits<kHidden>;
  constexpr Products kHow = kProductsOf<float, sizeof(S) == 2>;
  const int thread = static_cast<int>(threadIdx.x), warp = thread / kWarp;
  const int slices = static_cast<int>(blockDim.x) / kWarp / Units::kUnits;
  const int unit = warp % Units::kUnits, slice = warp / Units::kUnits;
  WeightSums<S, kHidden, kLanes> sums;
  if (slice < slices) {
    sums.template add<kHow>(items, x_l, x_r, inputs, unit, slice, slices);
    if constexpr (kHow == Products::kSplit) {
      if (__ballot_sync(kFullMask, !sums.finite()) != 0) {
        WeightSums<S, kHidden, kLanes> exact;
        exact.template add<Products::kExact>(items, x_l, x_r, inputs, unit, slice, slices);
        sums.repair(exact);
      }
    }
  }
  __syncthreads();
  float* scratch = inputs.data;
  if (slice < slices) sums.put(scratch + warp * Units::kValues);
  __syncthreads();
  for (int i = thread; i < 2 * kHidden * (kHidden + 1); i += static_cast<int>(blockDim.x)) {
    const int row = i / (kHidden + 1), column = i % (kHidden + 1);
    const bool bias = column == kHidden;
    if (bias ? first != 0 : first + column >= channels) continue;
    const int of = row / Units::kRows * Units::kColumnUnits + (bias ? 0 : column / Units::kColumns);
    const int from = bias ? Units::kRows * Units::kColumns + row % Units::kRows
                          : row % Units::kRows * Units::kColumns + column % Units::kColumns;
    float total = 0.0f;
    for (int s = 0; s < slices; ++s) total += scratch[(s * Units::kUnits + of) * Units::kValues + from];
    out.put(row * (channels + 1) + (bias ? channels : first + column), total);
  }
}

}  // namespace hiermt::cuda
