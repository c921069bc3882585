// Dense layers over the rows of a sequence. Two kernels serve the convolutions, the gates and the gradients
// of both; small functors read the operands and write the result:
//
//   linear_kernel        out(row, n) = bias(n) + sum_k in(row, k) * weight(k, n)
//   weight_grad_kernel   partial(chunk, m, k) = sum_row cotangent(row, m) * in(row, k)   rows of a chunk
//
// In:      struct Row; Row row(int r); C load(const Row&, int k)
// Weight:  C weight(int k, int n); C bias(int n)
// Out:     void write(int row, int n, C value)
#pragma once

#include <type_traits>

#include "cuda/dense/tile_product.cuh"
#include "cuda/support/device.cuh"

namespace hiermt::cuda {

// Keeps four neighbours of a row 16-byte aligned, and the loads of a warp in different banks.
constexpr int kTilePad = 8;

struct LinearTraits {
  static constexpr int kRows = 64, kColumns = 32;  // of the output tile of a block
  static constexpr int kInner = 16;                // values of k in shared memory at once
  static constexpr int kThreads = kRows * kColumns / (TileTraits::kThreadTile * TileTraits::kThreadTile);
  static constexpr int kMinBlocks = 8;  // per multiprocessor: hides the latency of the loads
  static constexpr int kInStride = kRows + kTilePad, kWeightStride = kColumns + kTilePad;
  static_assert(kColumns == TileTraits::kWarpColumns && kRows == kThreads / kWarp * TileTraits::kWarpRows,
                "the warps of a block cover the tile on tensor cores");
  static_assert(kInner % TileTraits::kMmaInner == 0);
};

template <class C, bool kTensor, class In, class Weight, class Out>
__global__ void __launch_bounds__(LinearTraits::kThreads, LinearTraits::kMinBlocks)
    linear_kernel(In in, Weight weight, Out out, int rows, int inner, int columns) {
  using T = LinearTraits;
  SharedMemory memory;
  typename In::Row* row_of = memory.take<typename In::Row>(T::kRows);
  C* in_tile = memory.take<C>(T::kInner * T::kInStride);
  C* weight_tile = memory.take<C>(T::kInner * T::kWeightStride);
  const int thread = static_cast<int>(threadIdx.x);
  const int first_row = static_cast<int>(blockIdx.x) * T::kRows;
  const int first_column = static_cast<int>(blockIdx.y) * T::kColumns;
  TileProduct<C, kTensor, T::kInStride, T::kWeightStride> product(thread, T::kColumns);
  using Product = decltype(product);

  for (int r = thread; r < T::kRows; r += T::kThreads) {
    row_of[r] = in.row(first_row + r < rows ? first_row + r : rows - 1);
  }
  for (int first = 0; first < inner; first += T::kInner) {
    __syncthreads();
    for (int i = thread; i < T::kRows * T::kInner; i += T::kThreads) {
      const int r = i / T::kInner, k = i % T::kInner;
      in_tile[k * T::kInStride + r] =
          first + k < inner ? Product::operand(in.load(row_of[r], first + k)) : C(0);
    }
    for (int i = thread; i < T::kColumns * T::kInner; i += T::kThreads) {
      const int n = i / T::kInner, k = i % T::kInner;
      weight_tile[k * T::kWeightStride + n] =
          first + k < inner && first_column + n < columns
              ? Product::operand(weight.weight(first + k, first_column + n))
              : C(0);
    }
    __syncthreads();
    const int count = inner - first < T::kInner ? inner - first : T::kInner;
#pragma unroll 4
    for (int k = 0; k < count; k += Product::kInner) {
      product.step(in_tile + k * T::kInStride, weight_tile + k * T::kWeightStride);
    }
  }
  product.for_each([&](int m, int n, C sum) {
    const int row = first_row + m, column = first_column + n;
    if (row < rows && column < columns) out.write(row, column, sum + weight.bias(column));
  });
}

// `tensor` is the result of use_tensor_cores.
template <class C, class In, class Weight, class Out, class Tensor>
cudaError_t linear(const In& in, const Weight& weight, const Out& out, int64_t rows, int64_t inner,
                   int64_t columns, cudaStream_t stream, Tensor tensor) {
  using T = LinearTraits;
  const size_t shared = padded_bytes<typename In::Row>(T::kRows) + padded_bytes<C>(T::kInner * T::kInStride) +
                        padded_bytes<C>(T::kInner * T::kWeightStride);
  const dim3 grid(static_cast<unsigned>(ceil_div<int64_t>(rows, T::kRows)),
                  static_cast<unsigned>(ceil_div<int64_t>(columns, T::kColumns)));
  return dispatch_tensor_cores(tensor, [&](auto constant) {
    return launch(linear_kernel<C, decltype(constant)::value, In, Weight, Out>, grid, dim3(T::kThreads),
                  shared, stream, in, weight, out, static_cast<int>(rows), static_cast<int>(inner),
                  static_cast<int>(columns));
  });
}

struct WeightGradTraits {
  static constexpr int kTile = 32;   // outputs and inputs of a block
  static constexpr int kRows = 32;   // rows in shared memory at once
  static constexpr int kSlices = 4;  // threads that share a sum; each takes every fourth row
  static constexpr int kSliceThreads = kTile * kTile / (TileTraits::kThreadTile * TileTraits::kThreadTile);
  static constexpr int kThreads = kSliceThreads * kSlices;
  static constexpr int kStride = kTile + kTilePad;
  static constexpr int64_t kMaxChunks = 512;      // partial sums per gradient
  static constexpr int64_t kMinRows = 4 * kRows;  // of a chunk: amortise its partial sum
  static_assert(kTile == TileTraits::kWarpColumns && kTile == kSliceThreads / kWarp * TileTraits::kWarpRows,
                "the warps of a slice cover the tile on tensor cores");
  static_assert(kRows % (kSlices * TileTraits::kMmaInner) == 0);
};

// Column `inputs` of the input is ones: its gradient is that of the bias.
template <class C, bool kTensor, class Cotangent, class In>
__global__ void __launch_bounds__(WeightGradTraits::kThreads)
    weight_grad_kernel(Cotangent cotangent, In in, int rows, int rows_per_chunk, int outputs, int inputs,
                       C* partial) {
  using T = WeightGradTraits;
  constexpr int kStride = T::kStride;
  SharedMemory memory;
  C* left = memory.take<C>(T::kRows * kStride);
  C* right = memory.take<C>(T::kRows * kStride);
  C* slices = memory.take<C>(T::kSlices * T::kTile * T::kTile);
  const int thread = static_cast<int>(threadIdx.x);
  const int slice = thread / T::kSliceThreads, member = thread % T::kSliceThreads;
  TileProduct<C, kTensor, kStride, kStride> product(member, T::kTile);
  using Product = decltype(product);
  const int first_output = static_cast<int>(blockIdx.y) * T::kTile;
  const int first_input = static_cast<int>(blockIdx.z) * T::kTile;
  const int begin = static_cast<int>(blockIdx.x) * rows_per_chunk;
  const int end = rows - begin < rows_per_chunk ? rows : begin + rows_per_chunk;

  for (int first = begin; first < end; first += T::kRows) {
    __syncthreads();
    for (int i = thread; i < T::kRows * T::kTile; i += T::kThreads) {
      const int r = i / T::kTile, c = i % T::kTile;
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
    for (int r = slice * Product::kInner; r < T::kRows; r += T::kSlices * Product::kInner) {
      product.step(left + r * kStride, right + r * kStride);
    }
  }
  product.for_each([&](int m, int n, C sum) { slices[(slice * T::kTile + m) * T::kTile + n] = sum; });
  __syncthreads();
  for (int i = thread; i < T::kTile * T::kTile; i += T::kThreads) {
    const int output = first_output + i / T::kTile, input = first_input + i % T::kTile;
    if (output >= outputs || input > inputs) continue;
    C total = C(0);
#pragma unroll
    for (int s = 0; s < T::kSlices; ++s) total += slices[s * T::kTile * T::kTile + i];
    partial[(static_cast<int64_t>(blockIdx.x) * outputs + output) * (inputs + 1) + input] = total;
  }
}

inline RowChunks grad_chunks(int64_t rows) {
  using T = WeightGradTraits;
  return RowChunks(rows, T::kMaxChunks, T::kMinRows, T::kRows);
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

// `partial` holds weight_grad_values(...) values. Element m * (inputs + 1) + k of `out` is the gradient of
// weight (m, k); k == inputs is the bias.
template <class C, class Cotangent, class In, class Out, class Tensor>
cudaError_t weight_grad(const Cotangent& cotangent, const In& in, int64_t rows, int64_t outputs,
                        int64_t inputs, C* partial, const Out& out, cudaStream_t stream, Tensor tensor) {
  using T = WeightGradTraits;
  const RowChunks chunks = grad_chunks(rows);
  const dim3 grid(static_cast<unsigned>(chunks.count),
                  static_cast<unsigned>(ceil_div<int64_t>(outputs, T::kTile)),
                  static_cast<unsigned>(ceil_div<int64_t>(inputs + 1, T::kTile)));
  const size_t shared =
      2 * padded_bytes<C>(T::kRows * T::kStride) + padded_bytes<C>(T::kSlices * T::kTile * T::kTile);
  HIERMT_CUDA_RETURN_IF_ERROR(dispatch_tensor_cores(tensor, [&](auto constant) {
    return launch(weight_grad_kernel<C, decltype(constant)::value, Cotangent, In>, grid, dim3(T::kThreads),
                  shared, stream, cotangent, in, static_cast<int>(rows), static_cast<int>(chunks.rows),
                  static_cast<int>(outputs), static_cast<int>(inputs), partial);
  }));
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

  template <class P>
  static SequenceRows of(const P& conv) {
    return {conv.x, static_cast<int>(conv.graph.num_nodes), static_cast<int>(conv.steps)};
  }
  __device__ Row row(int r) const { return {sequence_offset(view, RowIndex(r, num_nodes, steps))}; }
  __device__ Compute<S> load(const Row& row, int k) const {
    return cuda::load(view.data + row.offset + k * view.stride_channel);
  }
};

// A matrix of parameters without a bias: weight(k, n) = data[k * stride_inner + n * stride_column].
template <class S>
struct PlainWeight {
  const S* data;
  int stride_inner, stride_column;

  __device__ Compute<S> weight(int k, int n) const {
    return load(data + k * stride_inner + n * stride_column);
  }
  __device__ Compute<S> bias(int) const { return Compute<S>(0); }
};

// The transpose of a Weight, without its bias.
template <class Weight>
struct Transposed {
  Weight weights;

  __device__ auto weight(int k, int n) const { return weights.weight(n, k); }
  __device__ auto bias(int) const { return decltype(weights.weight(0, 0))(0); }
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

// A dense tensor of the caller, overwritten or added to.
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
