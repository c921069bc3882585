// Gradients of the weights of dense layers: sums over rows (rows.cuh) of products of two rows.
//
//   weight_grad_kernel   partial(chunk, group, c, k) = sum_row left(row, group, c) right(row, k)   rows of a chunk
//
// Column F of a gradient, behind the F columns of `right`, is that of the bias: the sum of `left`.
#pragma once

#include "cuda/dense/mma.cuh"
#include "cuda/dense/ordered_sum.cuh"
#include "cuda/dense/rows.cuh"

namespace hiermt::cuda {

struct WeightGradTraits {
  static constexpr int kWarps = 4, kThreads = kWarps * kWarp;
  static constexpr int kChannels = 16;  // of each group, of a block
  static constexpr int kBlocks = 3;     // of columns: x, g and h of the default model
  static constexpr int kColumns = kBlocks * kBlockColumns;
  static constexpr int64_t kMaxChunks = 384;     // partial sums per gradient
  static constexpr int64_t kMinRows = kThreads;  // of a chunk
  // Of the sums of a warp in shared memory. Lanes that store quads side by side meet different banks.
  static constexpr int kStride = kColumns + 8;
};

inline RowChunks grad_chunks(int64_t rows) {
  using T = WeightGradTraits;
  return RowChunks(rows, T::kMaxChunks, T::kMinRows, T::kThreads);
}
inline int64_t weight_grad_values(int64_t rows, int64_t outputs, int64_t inputs) {
  return grad_chunks(rows).count * outputs * (inputs + 1);
}

// The sums of a warp over its rows. Of a group a lane (4 g + m) holds the channels 2g and 2g + 1 in the columns 4m to
// 4m + 3 of each block; it reads the channels and columns 2g and 2g + 1 of the rows m and m + 4 of a product.
//
// With kAlternative the last group multiplies another value in some of the columns.
template <class C, Products kHow, int kGroups, bool kAlternative>
struct GradSums {
  using T = WeightGradTraits;
  // Products of 8 rows whose operands a lane has at once: as many as its registers hold.
  static constexpr int kProducts = std::is_same_v<C, double> ? 1 : 2, kStep = 8 * kProducts;
  static constexpr int kRows = kStep / 4;  // of a lane, two of each product
  using Pairs = C[kRows][2];
  C sum[kGroups][T::kBlocks][2][4] = {};
  C bias[kGroups][2] = {};

  // Adds kStep rows. left(group, pairs) and right(block, alternative, pairs) have what a lane reads of them; the first
  // `blocks` blocks have columns. The last group multiplies the alternative where replaced(block).
  template <class LeftOf, class RightOf, class Replaced>
  __device__ __forceinline__ void add(int blocks, LeftOf&& left, RightOf&& right, Replaced&& replaced) {
    Operand<C, kHow, 4> of_left[kGroups][kProducts];
#pragma unroll
    for (int group = 0; group < kGroups; ++group) {
      Pairs a;
      left(group, a);
#pragma unroll
      for (int r = 0; r < kRows; ++r) bias[group][0] += a[r][0], bias[group][1] += a[r][1];
#pragma unroll
      for (int i = 0; i < kProducts; ++i) {
        const C(&low)[2] = a[2 * i], (&high)[2] = a[2 * i + 1];
        of_left[group][i] = Operand<C, kHow, 4>({low[0], low[1], high[0], high[1]});
      }
    }
#pragma unroll
    for (int i = 0; i < T::kBlocks; ++i) {
      if (i >= blocks) break;
      const auto multiply_groups = [&](const Pairs& values, int first, int end) {
#pragma unroll
        for (int column = 0; column < 2; ++column) {
          Operand<C, kHow, 2> of_right[kProducts];
#pragma unroll
          for (int k = 0; k < kProducts; ++k) {
            of_right[k] = Operand<C, kHow, 2>({values[2 * k][column], values[2 * k + 1][column]});
          }
#pragma unroll
          for (int group = first; group < end; ++group) {
            multiply(sum[group][i][column], of_left[group], of_right);
          }
        }
      };
      Pairs values;
      right(i, false, values);
      if (!kAlternative || !replaced(i)) {
        multiply_groups(values, 0, kGroups);
      } else {
        multiply_groups(values, 0, kGroups - 1);
        right(i, true, values);
        multiply_groups(values, kGroups - 1, kGroups);
      }
    }
  }
  // Puts the sums of a warp into shared memory, [group][channel][column]: all, or with kRepair in place of those that
  // are NaN or infinite. Returns whether one is.
  template <bool kRepair>
  __device__ __forceinline__ bool store_sums(C* to, C* to_bias) const {
    const int lane = static_cast<int>(threadIdx.x) % kWarp, channel = lane / 4 * 2, column = lane % 4 * 4;
    C probe = C(0);
#pragma unroll
    for (int group = 0; group < kGroups; ++group) {
#pragma unroll
      for (int i = 0; i < T::kBlocks; ++i) {
#pragma unroll
        for (int c = 0; c < 2; ++c) {
          const C(&even)[4] = sum[group][i][0], (&odd)[4] = sum[group][i][1];
          C values[4] = {even[2 * c], odd[2 * c], even[2 * c + 1], odd[2 * c + 1]};
          C* at = to + (group * T::kChannels + channel + c) * T::kStride + i * kBlockColumns + column;
          if constexpr (kRepair) {
            C before[4];
            load_quad(at, before);
#pragma unroll
            for (int k = 0; k < 4; ++k) values[k] = before[k] - before[k] == C(0) ? before[k] : values[k];
          }
#pragma unroll
          for (int k = 0; k < 4; ++k) probe += C(0) * values[k];
          store_quad(at, values);
        }
      }
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        const C total = group_sum(bias[group][c], 4);
        if (lane % 4 == 0) to_bias[group * T::kChannels + channel + c] = total;
      }
    }
    return probe != C(0);
  }
};

// Writes what GradSums::store_sums of kWarps warps left in shared memory to the partial sum of a block. They begin at a
// block of columns of `right` and at a channel.
template <int kGroups, int kWarps, class C, class Layout, class Right>
__device__ __forceinline__ void put_grad_sums(const C* sums, const C* biases, const Layout& layout,
                                              const Right& right, int first_block, int first_channel,
                                              int channels, C* out) {
  using T = WeightGradTraits;
  constexpr int kRows = kGroups * T::kChannels, kQuads = T::kColumns / 4;
  const int inputs = layout.inputs(right);
  const auto put = [&](int row, int column, C value) {
    const int group = row / T::kChannels, c = first_channel + row % T::kChannels;
    if (c < channels) out[(group * channels + c) * (inputs + 1) + column] = value;
  };
  for (int i = static_cast<int>(threadIdx.x); i < kRows * kQuads; i += static_cast<int>(blockDim.x)) {
    const int row = i / kQuads, column = i % kQuads * 4;
    const Place at = layout.place(right, first_block + column / kBlockColumns);
    const int offset = column % kBlockColumns;
    C total[4] = {};
#pragma unroll
    for (int w = 0; w < kWarps; ++w) {
      C values[4];
      load_quad(sums + (w * kRows + row) * T::kStride + column, values);
#pragma unroll
      for (int k = 0; k < 4; ++k) total[k] += values[k];
    }
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      if (at.offset + offset + k < at.width) put(row, at.source + offset + k, total[k]);
    }
  }
  for (int i = static_cast<int>(threadIdx.x); first_block == 0 && i < kRows;
       i += static_cast<int>(blockDim.x)) {
    C total = C(0);
#pragma unroll
    for (int w = 0; w < kWarps; ++w) total += biases[w * kRows + i];
    put(i, inputs, total);
  }
}

template <class C, class Left, class Right>
struct WeightGradMemory {
  using T = WeightGradTraits;
  static constexpr int kRows = Left::kPieces * T::kChannels;  // of the sums
  typename Left::Row* left_rows;
  typename Right::Row* right_rows;
  C *sums, *biases;  // of each warp

  __device__ WeightGradMemory() {
    SharedMemory memory;
    left_rows = memory.take<typename Left::Row>(T::kThreads);
    right_rows = memory.take<typename Right::Row>(T::kThreads);
    sums = memory.take<C>(T::kWarps * kRows * T::kStride);
    biases = memory.take<C>(T::kWarps * kRows);
  }
  static size_t bytes() {
    return padded_bytes<typename Left::Row>(T::kThreads) + padded_bytes<typename Right::Row>(T::kThreads) +
           padded_bytes<C>(T::kWarps * kRows * T::kStride) + padded_bytes<C>(T::kWarps * kRows);
  }
};

// The pieces of `left` are groups of `channels` channels. With kAlternative the last group multiplies by another last
// piece of `right`, load_alternative.
template <class C, bool kRounded, class Left, class Right>
__global__ void __launch_bounds__(WeightGradTraits::kThreads)
    weight_grad_kernel(Left left, Right right, int rows, int rows_per_chunk, int channels, C* partial) {
  using T = WeightGradTraits;
  constexpr Products kHow = kProductsOf<C, kRounded>;
  const WeightGradMemory<C, Left, Right> memory;
  constexpr int kRows = memory.kRows, kGroups = Left::kPieces;
  const int thread = static_cast<int>(threadIdx.x), warp = thread / kWarp, lane = thread % kWarp;
  const int first_channel = static_cast<int>(blockIdx.y) * T::kChannels;
  const int first_block = static_cast<int>(blockIdx.z) * T::kBlocks;
  const int begin = static_cast<int>(blockIdx.x) * rows_per_chunk;
  const int end = rows - begin < rows_per_chunk ? rows : begin + rows_per_chunk;
  const auto layout = ColumnBlocks<Right::kPieces>::template in_packs<2>(right);
  Place groups[kGroups], blocks[T::kBlocks];
#pragma unroll
  for (int group = 0; group < kGroups; ++group) {
    groups[group] = {group, first_channel + lane / 4 * 2, 0, channels, left.template packed<2>(group)};
  }
#pragma unroll
  for (int i = 0; i < T::kBlocks; ++i) {
    blocks[i] = layout.place(right, first_block + i);
    blocks[i].offset += lane / 4 * 2;
  }
  C* const sums = memory.sums + warp * kRows * T::kStride;
  C* const biases = memory.biases + warp * kRows;

  int present = 0;  // blocks with columns
#pragma unroll
  for (int i = 0; i < T::kBlocks; ++i) present += blocks[i].width != 0 ? 1 : 0;
  const auto replaced = [&](int i) { return blocks[i].piece == Right::kPieces - 1; };
  const auto accumulate = [&](auto how, auto repair) {
    using Sums = GradSums<C, decltype(how)::value, kGroups, Right::kAlternative>;
    Sums products;
    const auto step = [&](const typename Left::Row* left_row, const typename Right::Row* right_row) {
      // All loads come before the first product.
      typename Sums::Pairs a[kGroups], b[T::kBlocks], other[T::kBlocks];
#pragma unroll
      for (int r = 0; r < Sums::kRows; ++r) {
#pragma unroll
        for (int group = 0; group < kGroups; ++group) left.load(left_row[4 * r], groups[group], a[group][r]);
#pragma unroll
        for (int i = 0; i < T::kBlocks; ++i) {
          right.load(right_row[4 * r], blocks[i], b[i][r]);
          if constexpr (Right::kAlternative) {
            other[i][r][0] = b[i][r][0], other[i][r][1] = b[i][r][1];
            if (replaced(i)) right.load_alternative(right_row[4 * r], blocks[i], other[i][r]);
          }
        }
      }
      const auto copy = [](const typename Sums::Pairs& from, typename Sums::Pairs& to) {
#pragma unroll
        for (int r = 0; r < Sums::kRows; ++r) to[r][0] = from[r][0], to[r][1] = from[r][1];
      };
      products.add(
          present, [&](int group, typename Sums::Pairs& pairs) { copy(a[group], pairs); },
          [&](int i, bool alternative, typename Sums::Pairs& pairs) {
            copy(alternative ? other[i] : b[i], pairs);
          },
          replaced);
    };
    // A lane finds the addresses of a row.
    for (int first = begin + warp * kWarp; first < end; first += T::kThreads) {
      const bool inside = first + lane < end;
      __syncwarp();
      memory.left_rows[thread] = inside ? left.row(first + lane) : typename Left::Row{};
      memory.right_rows[thread] = inside ? right.row(first + lane) : typename Right::Row{};
      __syncwarp();
#pragma unroll 1
      for (int r = 0; r < kWarp && first + r < end; r += products.kStep) {
        const int row = warp * kWarp + r + lane % 4;
        step(memory.left_rows + row, memory.right_rows + row);
      }
    }
    return products.template store_sums<decltype(repair)::value>(sums, biases);
  };
  const bool wrong = accumulate(std::integral_constant<Products, kHow>{}, std::false_type{});
  if constexpr (kHow == Products::kSplit) {
    // Columns without Inf keep their bits.
    if (__ballot_sync(kFullMask, wrong) != 0) {
      accumulate(std::integral_constant<Products, Products::kExact>{}, std::true_type{});
    }
  }
  __syncthreads();
  const int inputs = layout.inputs(right);
  put_grad_sums<kGroups, T::kWarps>(
      memory.sums, memory.biases, layout, right, first_block, first_channel, channels,
      partial + static_cast<int64_t>(blockIdx.x) * kGroups * channels * (inputs + 1));
}

// Sums over chunks of the rows, weight_grad_values(rows, groups * channels, inputs) values: element
// (group * channels + c) * (inputs + 1) + k is of the gradient of a weight; k == inputs is the bias. `rounded` is the
// result of rounds_operands.
template <class C, class Left, class Right, class Rounded>
void weight_grad_chunks(const Left& left, const Right& right, int64_t rows, C* partial, Rounded rounded,
                        Stream& on) {
  using T = WeightGradTraits;
  const RowChunks chunks = grad_chunks(rows);
  const ColumnBlocks<Right::kPieces> layout(right);
  const int channels = left.width(0);
  const int64_t column_blocks = layout.count() > 0 ? ceil_div(layout.count(), T::kBlocks) : 1;
  dispatch_rounded(rounded, [&](auto constant) {
    launch(weight_grad_kernel<C, constant, Left, Right>,
           {chunks.count, ceil_div(channels, T::kChannels), column_blocks}, T::kThreads,
           WeightGradMemory<C, Left, Right>::bytes(), on, left, right, rows, chunks.rows, channels, partial);
  });
}

// The sum of the chunks: element i goes to out.write(i, value).
template <class C, class Left, class Right, class Out, class Rounded>
void weight_grad(const Left& left, const Right& right, int64_t rows, const Out& out, Rounded rounded,
                 Stream& on) {
  const int64_t inputs = ColumnBlocks<Right::kPieces>(right).inputs(right);
  const int64_t outputs = int64_t{Left::kPieces} * left.width(0);
  const Stream::Frame frame(on);
  C* const partial = on.take<C>(weight_grad_values(rows, outputs, inputs));
  weight_grad_chunks(left, right, rows, partial, rounded, on);
  ordered_sum(on, sum_of<C>(partial, grad_chunks(rows).count, outputs * (inputs + 1), out));
}

}  // namespace hiermt::cuda
