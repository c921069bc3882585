// Gradients of the weights of dense layers: sums over rows (rows.cuh) of products of two tiles.
//
//   weight_grad_kernel   partial(chunk, group, c, k) = sum_row left(row, group, c) right(row, k)   rows of a chunk
//
// Column F of `right`, behind its F columns, is ones: its gradient is that of the bias.
#pragma once

#include "cuda/dense/rows.cuh"
#include "cuda/dense/tile_product.cuh"

namespace hiermt::cuda {

struct WeightGradTraits {
  static constexpr int kThreads = 96;
  static constexpr int kRows = 48;                // in shared memory at once
  static constexpr int64_t kMaxChunks = 512;      // partial sums per gradient
  static constexpr int64_t kMinRows = 3 * kRows;  // of a chunk: amortise its partial sum
  static_assert(kThreads % ProductTraits::kColumns == 0);
};

inline RowChunks grad_chunks(int64_t rows) {
  using T = WeightGradTraits;
  return RowChunks(rows, T::kMaxChunks, T::kMinRows, T::kRows);
}

// The tiles of a block; the sums of its slices take their place at the end.
template <class C, class Product, class Left, class Right>
struct WeightGradMemory {
  using T = WeightGradTraits;
  using P = ProductTraits;
  static constexpr int kGroups = Left::kPieces, kSums = kGroups * P::kChannels * P::kColumns;
  static constexpr int kLeft = P::kGroupStride<kGroups>;
  static constexpr int kRight = P::kRightStride * (Right::kAlternative ? 2 : 1);
  static constexpr int kTiles = T::kRows * (kLeft + kRight), kSlices = Product::kSlices * kSums;
  static constexpr int kValues = kTiles > kSlices ? kTiles : kSlices;
  static_assert(T::kThreads == Product::kSlices * Product::kSliceThreads);
  static_assert(T::kRows % (Product::kSlices * Product::kInner) == 0);

  static size_t bytes() {
    return padded_bytes<typename Left::Row>(T::kRows) + padded_bytes<typename Right::Row>(T::kRows) +
           padded_bytes<C>(kValues);
  }
};

// The pieces of `left` are groups of `channels` channels. With kAlternative the last group multiplies by
// another last piece of `right`, load_alternative.
template <class C, bool kTensor, class Left, class Right>
__global__ void __launch_bounds__(WeightGradTraits::kThreads)
    weight_grad_kernel(Left left, Right right, int rows, int rows_per_chunk, int columns_per_block,
                       int channels, C* partial) {
  using T = WeightGradTraits;
  using P = ProductTraits;
  constexpr int kPieces = Right::kPieces;
  using Product = GradProduct<C, kTensor, Left::kPieces, Right::kAlternative>;
  using Memory = WeightGradMemory<C, Product, Left, Right>;
  SharedMemory memory;
  auto* left_row = memory.take<typename Left::Row>(T::kRows);
  auto* right_row = memory.take<typename Right::Row>(T::kRows);
  C* const left_tile = memory.take<C>(Memory::kValues);
  C* const right_tile = left_tile + T::kRows * Memory::kLeft;
  const int thread = static_cast<int>(threadIdx.x);
  const int first_channel = static_cast<int>(blockIdx.y) * P::kChannels;
  const int first_column = static_cast<int>(blockIdx.z) * columns_per_block;
  const TileColumns<kPieces> layout(right, true);
  const TileColumns<Left::kPieces> left_layout(P::kChannels);
  const int columns_left = layout.count() - first_column;
  const int columns = columns_left < columns_per_block ? columns_left : columns_per_block;
  const int alternative_from = layout.first[kPieces - 1] - first_column;
  const int begin = static_cast<int>(blockIdx.x) * rows_per_chunk;
  const int end = rows - begin < rows_per_chunk ? rows : begin + rows_per_chunk;
  Product product(thread);

  for (int first = begin; first < end; first += T::kRows) {
    __syncthreads();
    if (thread < T::kRows) {
      const bool inside = first + thread < end;
      left_row[thread] = inside ? left.row(first + thread) : typename Left::Row{};
      right_row[thread] = inside ? right.row(first + thread) : typename Right::Row{};
    }
    __syncthreads();
    for_each_quad<T::kRows, T::kThreads>(left_layout, 0, left_layout.count(),
                                         [&](int r, int column, Place at) {
                                           at.offset += first_channel, at.width = channels;
                                           C values[4];
                                           left.load(left_row[r], at, values);
#pragma unroll
                                           for (int i = 0; i < 4; ++i)
                                             values[i] = Product::operand(values[i]);
                                           store_quad(left_tile + r * Memory::kLeft + column, values);
                                         });
    for_each_quad<T::kRows, T::kThreads>(
        layout, first_column, first_column + columns, [&](int r, int column, const Place& at) {
          C* const to = right_tile + quad_index(r * Memory::kRight + column - first_column);
          C values[4], other[4];
          right.load(right_row[r], at, values);
          if constexpr (Right::kAlternative) {
            if (at.piece == kPieces - 1) {
              right.load_alternative(right_row[r], at, values, other);
#pragma unroll
              for (int i = 0; i < 4; ++i) other[i] = Product::operand(other[i]);
              store_quad(to + P::kRightStride, other);
            }
          }
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            values[i] = at.piece == 0 && at.offset + i == at.width ? C(1) : Product::operand(values[i]);
          }
          store_quad(to, values);
        });
    __syncthreads();
#pragma unroll 2
    for (int r = product.slice * Product::kInner; r < T::kRows; r += Product::kSlices * Product::kInner) {
      product.template step<Memory::kLeft, Memory::kRight>(
          left_tile + r * Memory::kLeft, right_tile + r * Memory::kRight, columns, alternative_from);
    }
  }
  __syncthreads();
  C* const sums = left_tile;
  product.for_each([&](int group, int channel, int column, C sum) {
    sums[product.slice * Memory::kSums + (group * P::kChannels + channel) * P::kColumns + column] = sum;
  });
  __syncthreads();
  const int column = thread % P::kColumns;
  const auto at = layout.place(first_column + column);
  const int inputs = layout.source[kPieces];
  const bool is_bias = at.piece == 0 && at.offset == at.width;
  if (column >= columns || !(at.offset < at.width || is_bias)) return;
  C* out = partial + static_cast<int64_t>(blockIdx.x) * Left::kPieces * channels * (inputs + 1) +
           (is_bias ? inputs : at.source);
#pragma unroll
  for (int group = 0; group < Left::kPieces; ++group) {
    for (int c = thread / P::kColumns; c < P::kChannels; c += T::kThreads / P::kColumns) {
      if (first_channel + c >= channels) break;
      const C* from = sums + (group * P::kChannels + c) * P::kColumns + column;
      C total = C(0);
#pragma unroll
      for (int s = 0; s < Product::kSlices; ++s) total += from[s * Memory::kSums];
      out[(group * channels + first_channel + c) * (inputs + 1)] = total;
    }
  }
}

struct OrderedSumTraits {
  static constexpr int kColumns = 32;  // neighbouring sums of a block: one warp reads a row of them
  static constexpr int kSlices = 16;   // threads that share a sum
  static constexpr int kThreads = kColumns * kSlices;
};

// out.write(i, sum over the chunks of partial[chunk, i]), in a fixed order.
template <class C, class Out>
__global__ void __launch_bounds__(OrderedSumTraits::kThreads)
    ordered_sum_kernel(const C* partial, int64_t chunks, int count, Out out) {
  using T = OrderedSumTraits;
  SharedMemory memory;
  C* slices = memory.take<C>(T::kThreads);
  const int column = static_cast<int>(threadIdx.x) % T::kColumns;
  const int slice = static_cast<int>(threadIdx.x) / T::kColumns;
  const int i = static_cast<int>(blockIdx.x) * T::kColumns + column;
  C sum = C(0);
  if (i < count) {
#pragma unroll 4
    for (int64_t chunk = slice; chunk < chunks; chunk += T::kSlices) sum += partial[chunk * count + i];
  }
  slices[threadIdx.x] = sum;
  __syncthreads();
  if (slice != 0 || i >= count) return;
  C total = C(0);
#pragma unroll
  for (int s = 0; s < T::kSlices; ++s) total += slices[s * T::kColumns + column];
  out.write(i, total);
}

// The sum over no chunks is zero, the gradient of an empty batch.
template <class C, class Out>
cudaError_t ordered_sum(const C* partial, int64_t chunks, int64_t count, const Out& out,
                        cudaStream_t stream) {
  using T = OrderedSumTraits;
  return launch(ordered_sum_kernel<C, Out>,
                dim3(static_cast<unsigned>(ceil_div<int64_t>(count, T::kColumns))), dim3(T::kThreads),
                padded_bytes<C>(T::kThreads), stream, partial, chunks, static_cast<int>(count), out);
}

inline int64_t weight_grad_values(int64_t rows, int64_t outputs, int64_t inputs) {
  return grad_chunks(rows).count * outputs * (inputs + 1);
}

// `partial` holds weight_grad_values(rows, groups * channels, inputs) values. Element
// (group * channels + c) * (inputs + 1) + k of `out` is the gradient of a weight; k == inputs is the bias.
template <class C, class Left, class Right, class Out, class Tensor>
cudaError_t weight_grad(const Left& left, const Right& right, int64_t rows, C* partial, const Out& out,
                        cudaStream_t stream, Tensor tensor) {
  const RowChunks chunks = grad_chunks(rows);
  const TileColumns<Right::kPieces> layout(right, true);
  const int columns = layout.count(), parts = ceil_div(columns, ProductTraits::kColumns);
  const int channels = left.width(0), per_block = padded_columns(ceil_div(columns, parts));
  const dim3 grid(static_cast<unsigned>(chunks.count),
                  static_cast<unsigned>(ceil_div(channels, ProductTraits::kChannels)),
                  static_cast<unsigned>(parts));
  HIERMT_CUDA_RETURN_IF_ERROR(dispatch_tensor_cores(tensor, [&](auto constant) {
    constexpr bool kTensor = decltype(constant)::value;
    using Product = GradProduct<C, kTensor, Left::kPieces, Right::kAlternative>;
    return launch(weight_grad_kernel<C, kTensor, Left, Right>, grid, dim3(WeightGradTraits::kThreads),
                  WeightGradMemory<C, Product, Left, Right>::bytes(), stream, left, right,
                  static_cast<int>(rows), static_cast<int>(chunks.rows), per_block, channels, partial);
  }));
  const int64_t count = int64_t{Left::kPieces} * channels * (layout.source[Right::kPieces] + 1);
  return ordered_sum<C>(partial, chunks.count, count, out, stream);
}

}  // namespace hiermt::cuda
