// Dense layers over rows (rows.cuh). Columns of the output are groups of H channels, such as the gates:
//
//   linear_kernel        out(row, group, c) = bias(group, c) + sum_k in(row, k) weight(k, group, c)
//
// Weight:  C weight(int k, int group, int c); C bias(int group, int c)
// Out:     void write(int row, int group, int c, values)
#pragma once

#include "cuda/dense/rows.cuh"
#include "cuda/dense/tile_product.cuh"

namespace hiermt::cuda {

struct LinearTraits {
  static constexpr int kThreads = 128;
  static constexpr int kRows = kThreads / kWarp * ProductTraits::kWarpRows;
  // Threads that stage a weight of one channel and group: neighbouring k of eight lanes coalesce.
  static constexpr int kWeightThreads = kThreads / ProductTraits::kChannels;
};

// The tile of rows of a block in shared memory, and the weights of kGroups groups.
template <class C, int kGroups, class Rows>
struct LinearTile {
  using T = ProductTraits;
  typename Rows::Row* row_of;
  C *in, *weights;
  int first_row, rows;
  int staged = 0;  // columns of a row that the tile holds already

  __device__ LinearTile(const Rows& rows_in, int rows_) : rows(rows_) {
    SharedMemory memory;
    row_of = memory.take<typename Rows::Row>(LinearTraits::kRows);
    in = memory.take<C>(LinearTraits::kRows * T::kInStride);
    weights = memory.take<C>(T::kColumns * T::kGroupStride<kGroups>);
    const int thread = static_cast<int>(threadIdx.x);
    first_row = static_cast<int>(blockIdx.x) * LinearTraits::kRows;
    // Rows past the end repeat the last one and are not written.
    row_of[thread] = rows_in.row(first_row + thread < rows ? first_row + thread : rows - 1);
  }
  static size_t bytes() {
    return padded_bytes<typename Rows::Row>(LinearTraits::kRows) +
           padded_bytes<C>(LinearTraits::kRows * T::kInStride) +
           padded_bytes<C>(T::kColumns * T::kGroupStride<kGroups>);
  }
};
static_assert(LinearTraits::kRows == LinearTraits::kThreads, "a thread finds the addresses of a row");

// Channels from first_channel on of kGroups groups. `tile` may hold the rows' first columns from the last
// call, if a row fits it. With kAlternative it reads load_alternative instead of the last piece.
template <bool kTensor, int kGroups, bool kAlternative, class C, int kTileGroups, class Rows, class Weight,
          class Out>
__device__ void linear_tile(LinearTile<C, kTileGroups, Rows>& tile, const Rows& in, const Weight& weight,
                            const Out& out, int first_channel, int channels) {
  using T = ProductTraits;
  using Product = RowsProduct<C, kTensor, kGroups>;
  constexpr int kWeightThreads = LinearTraits::kWeightThreads, kStride = T::kGroupStride<kGroups>;
  static_assert(kGroups <= kTileGroups);
  const TileColumns<Rows::kPieces> columns(in);
  const int thread = static_cast<int>(threadIdx.x), end = columns.count();
  const int staged_channel = thread / kWeightThreads;
  Product product(thread, [&](int group, int channel) {
    channel += first_channel;
    return channel < channels ? weight.bias(group, channel) : C(0);
  });
  for (int first = 0; first < end; first += T::kColumns) {
    const int count = end - first < T::kColumns ? end - first : T::kColumns;
    __syncthreads();
    for_each_quad<LinearTraits::kRows, LinearTraits::kThreads>(
        columns, first + tile.staged, first + count, [&](int r, int column, const Place& at) {
          C values[4];
          in.load(tile.row_of[r], at, values);
          if constexpr (kAlternative) {
            if (at.piece == Rows::kPieces - 1) in.load_alternative(tile.row_of[r], at, values, values);
          }
#pragma unroll
          for (int i = 0; i < 4; ++i) values[i] = Product::operand(values[i]);
          store_quad(tile.in + quad_index(r * T::kInStride + column - first), values);
        });
    for (int k = thread % kWeightThreads; k < count; k += kWeightThreads) {
      const auto at = columns.place(first + k);
      const bool inside = at.offset < at.width && first_channel + staged_channel < channels;
#pragma unroll
      for (int group = 0; group < kGroups; ++group) {
        tile.weights[k * kStride + group * T::kChannels + staged_channel] =
            inside ? Product::operand(weight.weight(at.source, group, first_channel + staged_channel)) : C(0);
      }
    }
    __syncthreads();
#pragma unroll 2
    for (int k = 0; k < count; k += Product::kInner) product.step(tile.in + k, tile.weights + k * kStride);
  }
  if (end <= T::kColumns) tile.staged = end;
  product.for_each([&](int r, int group, int channel, const auto& sums) {
    channel += first_channel;
    if (tile.first_row + r < tile.rows && channel < channels) {
      out.write(tile.first_row + r, group, channel, sums);
    }
  });
}

template <class C, bool kTensor, int kGroups, class Rows, class Weight, class Out>
__global__ void __launch_bounds__(LinearTraits::kThreads)
    linear_kernel(Rows in, Weight weight, Out out, int rows, int channels) {
  LinearTile<C, kGroups, Rows> tile(in, rows);
  const int first_channel = static_cast<int>(blockIdx.y) * ProductTraits::kChannels;
  linear_tile<kTensor, kGroups, false>(tile, in, weight, out, first_channel, channels);
}

// `tensor` is the result of use_tensor_cores.
template <class C, int kGroups, class Rows, class Weight, class Out, class Tensor>
cudaError_t linear(const Rows& in, const Weight& weight, const Out& out, int64_t rows, int64_t channels,
                   cudaStream_t stream, Tensor tensor) {
  const dim3 grid(static_cast<unsigned>(ceil_div<int64_t>(rows, LinearTraits::kRows)),
                  static_cast<unsigned>(ceil_div<int64_t>(channels, ProductTraits::kChannels)));
  return dispatch_tensor_cores(tensor, [&](auto constant) {
    return launch(linear_kernel<C, decltype(constant)::value, kGroups, Rows, Weight, Out>, grid,
                  dim3(LinearTraits::kThreads), LinearTile<C, kGroups, Rows>::bytes(), stream, in, weight,
                  out, static_cast<int>(rows), static_cast<int>(channels));
  });
}

// A matrix of parameters without a bias: weight(k, c) = data[k * stride_inner + c * stride_channel].
template <class S>
struct PlainWeight {
  const S* data;
  int stride_inner, stride_channel;

  __device__ Compute<S> weight(int k, int, int c) const {
    return load(data + k * stride_inner + c * stride_channel);
  }
  __device__ Compute<S> bias(int, int) const { return Compute<S>(0); }
};

// The transpose of a Weight with groups of `hidden` channels, without its bias.
template <class Weight>
struct Transposed {
  Weight weights;
  int hidden;

  __device__ auto weight(int k, int, int c) const {
    return weights.weight(c, k / hidden, k - k / hidden * hidden);
  }
  __device__ auto bias(int, int) const { return decltype(weights.weight(0, 0, 0))(0); }
};

}  // namespace hiermt::cuda
