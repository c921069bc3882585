// Dense layers over the rows of a sequence. What they read and write is told by small functors, so that a
// convolution, the gates, and the gradients of both share two kernels:
//
//   linear_kernel        out(row, n) = bias(n) + sum_k in(row, k) * weight(k, n)
//   weight_grad_kernel   partial(chunk, m, k) = sum over the rows of a chunk of cotangent(row, m) * in(row,
//   k)
//
// In:      struct Row; Row row(int r); C load(const Row&, int k)
// Weight:  C weight(int k, int n); C bias(int n)
// Out:     void write(int row, int n, C value)
#pragma once

#include <type_traits>

#include "cuda/dense/tile_product.cuh"
#include "cuda/support/device.cuh"

namespace hiermt::cuda {

constexpr int kTileRows = 64;
constexpr int kTileColumns = 32;
constexpr int kTileInner = 16;
constexpr int kLinearThreads = (kTileRows / kThreadTile) * (kTileColumns / kThreadTile);
// Keeps four neighbours of a row 16-byte aligned, and what the lanes of a warp read in different banks.
constexpr int kTilePad = 8;

template <class C, bool kTensor, class In, class Weight, class Out>
__global__ void __launch_bounds__(kLinearThreads, 8)
    linear_kernel(In in, Weight weight, Out out, int rows, int inner, int columns) {
  SharedMemory memory;
  typename In::Row* row_of = memory.take<typename In::Row>(kTileRows);
  C* in_tile = memory.take<C>(kTileInner * (kTileRows + kTilePad));
  C* weight_tile = memory.take<C>(kTileInner * (kTileColumns + kTilePad));
  const int thread = static_cast<int>(threadIdx.x);
  const int first_row = static_cast<int>(blockIdx.x) * kTileRows;
  const int first_column = static_cast<int>(blockIdx.y) * kTileColumns;
  TileProduct<C, kTensor, kTileRows + kTilePad, kTileColumns + kTilePad> product(thread, kTileColumns);
  using Product = decltype(product);

  for (int r = thread; r < kTileRows; r += kLinearThreads) {
    row_of[r] = in.row(first_row + r < rows ? first_row + r : rows - 1);
  }
  for (int first = 0; first < inner; first += kTileInner) {
    __syncthreads();
    for (int i = thread; i < kTileRows * kTileInner; i += kLinearThreads) {
      const int r = i / kTileInner, k = i % kTileInner;
      in_tile[k * (kTileRows + kTilePad) + r] =
          first + k < inner ? Product::operand(in.load(row_of[r], first + k)) : C(0);
    }
    for (int i = thread; i < kTileColumns * kTileInner; i += kLinearThreads) {
      const int n = i / kTileInner, k = i % kTileInner;
      weight_tile[k * (kTileColumns + kTilePad) + n] =
          first + k < inner && first_column + n < columns
              ? Product::operand(weight.weight(first + k, first_column + n))
              : C(0);
    }
    __syncthreads();
    const int count = inner - first < kTileInner ? inner - first : kTileInner;
#pragma unroll 4
    for (int k = 0; k < count; k += Product::kInner) {
      product.step(in_tile + k * (kTileRows + kTilePad), weight_tile + k * (kTileColumns + kTilePad));
    }
  }
  product.for_each([&](int m, int n, C sum) {
    const int row = first_row + m, column = first_column + n;
    if (row < rows && column < columns) out.write(row, column, sum + weight.bias(column));
  });
}

// tensor: by tensor cores, where C is float.
template <class C, class In, class Weight, class Out>
cudaError_t linear(const In& in, const Weight& weight, const Out& out, int64_t rows, int64_t inner,
                   int64_t columns, cudaStream_t stream, bool tensor = false) {
  const size_t shared = padded_bytes<typename In::Row>(kTileRows) +
                        padded_bytes<C>(kTileInner * (kTileRows + kTilePad)) +
                        padded_bytes<C>(kTileInner * (kTileColumns + kTilePad));
  const dim3 grid(static_cast<unsigned>(ceil_div<int64_t>(rows, kTileRows)),
                  static_cast<unsigned>(ceil_div<int64_t>(columns, kTileColumns)));
  const auto run = [&](auto kernel) {
    return launch(kernel, grid, dim3(kLinearThreads), shared, stream, in, weight, out, static_cast<int>(rows),
                  static_cast<int>(inner), static_cast<int>(columns));
  };
  if constexpr (std::is_same_v<C, float>) {
    if (tensor) return run(linear_kernel<C, true, In, Weight, Out>);
  }
  return run(linear_kernel<C, false, In, Weight, Out>);
}

constexpr int kGradTile = 32;
constexpr int kGradRows = 32;
constexpr int kGradSlices = 4;
constexpr int kGradSliceThreads = (kGradTile / kThreadTile) * (kGradTile / kThreadTile);
constexpr int kGradThreads = kGradSliceThreads * kGradSlices;

// Input `inputs` is a column of ones: its gradient is that of the bias.
template <class C, bool kTensor, class Cotangent, class In>
__global__ void __launch_bounds__(kGradThreads)
    weight_grad_kernel(Cotangent cotangent, In in, int rows, int rows_per_chunk, int outputs, int inputs,
                       C* partial) {
  SharedMemory memory;
  constexpr int kStride = kGradTile + kTilePad;
  C* left = memory.take<C>(kGradRows * kStride);
  C* right = memory.take<C>(kGradRows * kStride);
  C* slices = memory.take<C>(kGradSlices * kGradTile * kGradTile);
  const int thread = static_cast<int>(threadIdx.x);
  const int slice = thread / kGradSliceThreads, member = thread % kGradSliceThreads;
  TileProduct<C, kTensor, kStride, kStride> product(member, kGradTile);
  using Product = decltype(product);
  const int first_output = static_cast<int>(blockIdx.y) * kGradTile;
  const int first_input = static_cast<int>(blockIdx.z) * kGradTile;
  const int begin = static_cast<int>(blockIdx.x) * rows_per_chunk;
  const int end = rows - begin < rows_per_chunk ? rows : begin + rows_per_chunk;

  for (int first = begin; first < end; first += kGradRows) {
    __syncthreads();
    for (int i = thread; i < kGradRows * kGradTile; i += kGradThreads) {
      const int r = i / kGradTile, c = i % kGradTile;
      const bool inside = first + r < end;
      const int output = first_output + c, input = first_input + c;
      left[r * kStride + c] = inside && output < outputs
                                  ? Product::operand(cotangent.load(cotangent.row(first + r), output))
                                  : C(0);
      right[r * kStride + c] = !inside || input > inputs ? C(0)
                               : input == inputs ? C(1)
                                                 : Product::operand(in.load(in.row(first + r), input));
    }
    __syncthreads();
#pragma unroll 2
    for (int r = slice * Product::kInner; r < kGradRows; r += kGradSlices * Product::kInner) {
      product.step(left + r * kStride, right + r * kStride);
    }
  }
  product.for_each([&](int m, int n, C sum) { slices[(slice * kGradTile + m) * kGradTile + n] = sum; });
  __syncthreads();
  for (int i = thread; i < kGradTile * kGradTile; i += kGradThreads) {
    const int output = first_output + i / kGradTile, input = first_input + i % kGradTile;
    if (output >= outputs || input > inputs) continue;
    C total = C(0);
#pragma unroll
    for (int s = 0; s < kGradSlices; ++s) total += slices[s * kGradTile * kGradTile + i];
    partial[(static_cast<int64_t>(blockIdx.x) * outputs + output) * (inputs + 1) + input] = total;
  }
}

// How rows are cut into chunks: a function of the problem alone, so that sums come out the same everywhere.
struct GradChunks {
  static constexpr int64_t kMaxChunks = 512;
  int64_t rows_per_chunk, count;

  explicit GradChunks(int64_t rows) {
    rows_per_chunk =
        ceil_div<int64_t>(ceil_div<int64_t>(rows > 0 ? rows : 1, kMaxChunks), kGradRows) * kGradRows;
    if (rows_per_chunk < 4 * kGradRows) rows_per_chunk = 4 * kGradRows;
    count = ceil_div<int64_t>(rows, rows_per_chunk);
  }
};

constexpr int kReduceColumns = 32;
constexpr int kReduceSlices = 16;

// out.write(i, sum over the chunks of partial[chunk, i]), always added in the same order.
template <class C, class Out>
__global__ void __launch_bounds__(kReduceColumns* kReduceSlices)
    ordered_sum_kernel(const C* partial, int64_t chunks, int count, Out out) {
  SharedMemory memory;
  C* slices = memory.take<C>(kReduceColumns * kReduceSlices);
  const int column = static_cast<int>(threadIdx.x) % kReduceColumns;
  const int slice = static_cast<int>(threadIdx.x) / kReduceColumns;
  const int i = static_cast<int>(blockIdx.x) * kReduceColumns + column;
  C sum = C(0);
  if (i < count) {
#pragma unroll 4
    for (int64_t chunk = slice; chunk < chunks; chunk += kReduceSlices) sum += partial[chunk * count + i];
  }
  slices[threadIdx.x] = sum;
  __syncthreads();
  if (slice != 0 || i >= count) return;
  C total = C(0);
#pragma unroll
  for (int s = 0; s < kReduceSlices; ++s) total += slices[s * kReduceColumns + column];
  out.write(i, total);
}

// No chunk at all gives zeros: an empty batch has a gradient too.
template <class C, class Out>
cudaError_t ordered_sum(const C* partial, int64_t chunks, int64_t count, const Out& out,
                        cudaStream_t stream) {
  return launch(ordered_sum_kernel<C, Out>,
                dim3(static_cast<unsigned>(ceil_div<int64_t>(count, kReduceColumns))),
                dim3(kReduceColumns * kReduceSlices), padded_bytes<C>(kReduceColumns * kReduceSlices), stream,
                partial, chunks, static_cast<int>(count), out);
}

inline int64_t weight_grad_values(int64_t rows, int64_t outputs, int64_t inputs) {
  return GradChunks(rows).count * outputs * (inputs + 1);
}

// `partial` holds weight_grad_values(...) values. Out gets entry m * (inputs + 1) + k; k == inputs is the
// bias.
template <class C, class Cotangent, class In, class Out>
cudaError_t weight_grad(const Cotangent& cotangent, const In& in, int64_t rows, int64_t outputs,
                        int64_t inputs, C* partial, const Out& out, cudaStream_t stream,
                        bool tensor = false) {
  const GradChunks chunks(rows);
  const dim3 grid(static_cast<unsigned>(chunks.count),
                  static_cast<unsigned>(ceil_div<int64_t>(outputs, kGradTile)),
                  static_cast<unsigned>(ceil_div<int64_t>(inputs + 1, kGradTile)));
  const size_t shared = 2 * padded_bytes<C>(kGradRows * (kGradTile + kTilePad)) +
                        padded_bytes<C>(kGradSlices * kGradTile * kGradTile);
  const auto run = [&](auto kernel) {
    return launch(kernel, grid, dim3(kGradThreads), shared, stream, cotangent, in, static_cast<int>(rows),
                  static_cast<int>(chunks.rows_per_chunk), static_cast<int>(outputs),
                  static_cast<int>(inputs), partial);
  };
  if constexpr (std::is_same_v<C, float>) {
    HIERMT_CUDA_RETURN_IF_ERROR(run(tensor ? weight_grad_kernel<C, true, Cotangent, In>
                                           : weight_grad_kernel<C, false, Cotangent, In>));
  } else {
    HIERMT_CUDA_RETURN_IF_ERROR(run(weight_grad_kernel<C, false, Cotangent, In>));
  }
  return ordered_sum<C>(partial, chunks.count, outputs * (inputs + 1), out, stream);
}

// Rows of a sequence view.
template <class S>
struct SequenceRows {
  struct Row {
    int64_t offset;
  };
  SequenceView<S> view;
  int num_nodes, steps;

  __device__ Row row(int r) const { return {sequence_offset(view, RowIndex(r, num_nodes, steps))}; }
  __device__ Compute<S> load(const Row& row, int k) const {
    return cuda::load(view.data + row.offset + k * view.stride_channel);
  }
};

// A matrix of parameters without a bias: weight(k, n) lies at k * stride_inner + n * stride_column.
template <class S>
struct PlainWeight {
  const S* data;
  int stride_inner, stride_column;

  __device__ Compute<S> weight(int k, int n) const {
    return load(data + k * stride_inner + n * stride_column);
  }
  __device__ Compute<S> bias(int) const { return Compute<S>(0); }
};

// Rows of one or two dense arrays of the same width, side by side.
template <class C>
struct PairRows {
  struct Row {
    int64_t offset;
  };
  const C* left;
  const C* right;
  int width;

  __device__ Row row(int r) const { return {static_cast<int64_t>(r) * width}; }
  __device__ C load(const Row& row, int k) const {
    return k < width ? left[row.offset + k] : right[row.offset + k - width];
  }
};

template <class C>
struct PairOut {
  C* left;
  C* right;
  int width;

  __device__ void write(int row, int n, C value) const {
    const int64_t offset = static_cast<int64_t>(row) * width;
    if (n < width) {
      left[offset + n] = value;
    } else {
      right[offset + n - width] = value;
    }
  }
};

// A dense array of the caller, written or added to.
template <class S>
struct DenseOut {
  S* out;
  int width;
  bool accumulate;

  __device__ void write(int row, int n, Compute<S> value) const {
    S* at = out + static_cast<int64_t>(row) * width + n;
    store(at, accumulate ? load(at) + value : value);
  }
};

}  // namespace hiermt::cuda
