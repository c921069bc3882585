// Dense layers over rows (rows.cuh). Columns of the output are groups of H channels, such as the gates:
//
//   linear_kernel        out(row, group, c) = bias(group, c) + sum_k in(row, k) weight(k, group, c)
//
// Weight:  C weight(int k, int group, int c); C bias(int group, int c)
// Out:     void write(int row, int group, int c, values of c to c + 3)
#pragma once

#include "cuda/dense/mma.cuh"
#include "cuda/dense/rows.cuh"

namespace hiermt::cuda {

struct LinearTraits {
  static constexpr int kWarps = 6, kThreads = kWarps * kWarp;
  static constexpr int kMinBlocks = 2;    // on a multiprocessor
  static constexpr int kRows = kThreads;  // of a block, 32 of a warp
  static constexpr int kChannels = 16;    // of each group
  static constexpr int kBlocks =
      3;  // of columns whose weights are staged at once: x, g and h of the default model
  // Of a block of columns: steps of 8 of them, and parts of 8 channels of a group.
  static constexpr int kSteps = 2, kParts = 2;
};

// The rows of a block, and in shared memory the weights of kGroups groups.
template <class C_, bool kRounded, int kGroups, class Rows>
struct LinearTile {
  using C = C_;
  using T = LinearTraits;
  static constexpr Products kHow = kProductsOf<C, kRounded>;
  // Values of a lane in an operand. Exact products read their weights where they are.
  using Stored = StoredOperand<C, kHow>;
  static constexpr int kOperand = kHow == Products::kExact ? 0 : Stored::kValues;
  static constexpr int kWeights = T::kBlocks * T::kSteps * kGroups * T::kParts * kWarp * kOperand;
  typename Rows::Row* row_of;
  C* weights;
  int first_row, rows;

  __device__ LinearTile(const Rows& rows_in, int rows_) : rows(rows_) {
    SharedMemory memory;
    row_of = memory.take<typename Rows::Row>(T::kRows);
    weights = memory.take<C>(kWeights);
    const int thread = static_cast<int>(threadIdx.x);
    first_row = static_cast<int>(blockIdx.x) * T::kRows;
    // Rows past the end repeat the last one and are not written.
    row_of[thread] = rows_in.row(first_row + thread < rows ? first_row + thread : rows - 1);
    __syncwarp();
  }
  // Operand i of this lane.
  __device__ __forceinline__ Stored& operand(int i) const {
    const int lane = static_cast<int>(threadIdx.x) % kWarp;
    return reinterpret_cast<Stored*>(weights)[i * kWarp + lane];
  }
  static size_t bytes() { return padded_bytes<typename Rows::Row>(T::kRows) + padded_bytes<C>(kWeights); }
  static int64_t blocks(int64_t rows) { return ceil_div<int64_t>(rows, T::kRows); }
};

// The sums of a warp. Of a block of columns, lane 4 g + m reads the columns 4m to 4m + 3 of the rows g, g + 8, g + 16
// and g + 24, two for each step; it holds the channels 4m to 4m + 3 of these rows, two of each part.
// Half of the rows with kHalves = 1.
template <class C, Products kHow, int kGroups, int kHalves = 2>
struct LinearSums {
  using T = LinearTraits;
  static constexpr int kLaneRows = 2 * kHalves;
  C sum[kGroups][kHalves][T::kParts][4] = {};  // of 16 rows

  // The channel of a lane in an operand of weights.
  __device__ static int channel(int part) {
    const int n = static_cast<int>(threadIdx.x) % kWarp / 4;
    return n / 2 * 4 + n % 2 + 2 * part;
  }
  // Adds a block of columns, values[row / 8][column]. weight(step, group, part) is an operand.
  template <class Weight>
  __device__ __forceinline__ void add(const C (&values)[kLaneRows][4], Weight&& weight) {
    Operand<C, kHow, 4> a[kHalves][T::kSteps];
#pragma unroll
    for (int i = 0; i < kHalves * T::kSteps; ++i) {
      const int half = i / T::kSteps, step = i % T::kSteps;
      const C(&low)[4] = values[2 * half], (&high)[4] = values[2 * half + 1];
      a[half][step] =
          Operand<C, kHow, 4>({low[2 * step], high[2 * step], low[2 * step + 1], high[2 * step + 1]});
    }
#pragma unroll
    for (int group = 0; group < kGroups; ++group) {
#pragma unroll
      for (int part = 0; part < T::kParts; ++part) {
        Operand<C, kHow, 2> b[T::kSteps];
#pragma unroll
        for (int step = 0; step < T::kSteps; ++step) b[step] = weight(step, group, part);
#pragma unroll
        for (int half = 0; half < kHalves; ++half) multiply(sum[group][half][part], a[half], b);
      }
    }
  }
  // A bit for each quad of channels that write() writes: whether a sum is NaN or infinite.
  __device__ __forceinline__ unsigned wrong() const {
    unsigned found = 0;
#pragma unroll
    for (int i = 0; i < kLaneRows * kGroups; ++i) {
      float probe = 0.0f;
#pragma unroll
      for (int k = 0; k < 4; ++k) probe += 0.0f * value(i, k);
      found |= probe == 0.0f ? 0u : 1u << i;
    }
    return found;
  }
  // Whether all sums are finite, or those of quad i. Products show it of two at once; they are not for some
  // finite sums above 1e19.
  __device__ __forceinline__ bool finite() const { return fabsf(probe(0, kLaneRows * kGroups)) < INFINITY; }
  __device__ __forceinline__ bool finite(int i) const { return fabsf(probe(i, i + 1)) < INFINITY; }
  __device__ __forceinline__ C probe(int begin, int end) const {
    C sums = C(0);
#pragma unroll
    for (int i = begin; i < end; ++i) {
      sums = fmaf(value(i, 0), value(i, 1), sums);
      sums = fmaf(value(i, 2), value(i, 3), sums);
    }
    return sums;
  }
  // Value k of a quad, the row i % kLaneRows of the lane in group i / kLaneRows.
  __device__ __forceinline__ C value(int i, int k) const {
    return sum[i / kLaneRows][i % kLaneRows / 2][k / 2][i % 2 * 2 + k % 2];
  }
  __device__ __forceinline__ void set(int i, const C (&values)[4]) {
#pragma unroll
    for (int k = 0; k < 4; ++k) sum[i / kLaneRows][i % kLaneRows / 2][k / 2][i % 2 * 2 + k % 2] = values[k];
  }
  __device__ __forceinline__ void get(int i, C (&values)[4]) const {
#pragma unroll
    for (int k = 0; k < 4; ++k) values[k] = value(i, k);
  }
  // Writes the rows from first_row on, those of the warp, that are less than `rows`: the quads in `wanted`.
  template <class Weight, class Out>
  __device__ __forceinline__ void write(const Weight& weight, const Out& out, int first_row, int rows,
                                        int first_channel, int channels, unsigned wanted = ~0u) const {
    const int lane = static_cast<int>(threadIdx.x) % kWarp, channel = first_channel + lane % 4 * 4;
#pragma unroll
    for (int group = 0; group < kGroups; ++group) {
      C bias[4];
#pragma unroll
      for (int k = 0; k < 4; ++k) bias[k] = channel + k < channels ? weight.bias(group, channel + k) : C(0);
#pragma unroll
      for (int i = 0; i < kLaneRows; ++i) {
        const int row = first_row + lane / 4 + 8 * i;
        C values[4];
#pragma unroll
        for (int k = 0; k < 4; ++k) {
          values[k] = value(kLaneRows * group + i, k) + bias[k];
        }
        if (row < rows && channel < channels && wanted >> (kLaneRows * group + i) & 1) {
          out.write(row, group, channel, values);
        }
      }
    }
  }
};

// Channels from first_channel on of kGroups groups. With kAlternative the rows are those of load_alternative.
template <int kGroups, bool kAlternative, class Tile, class Rows, class Weight, class Out>
__device__ __forceinline__ void linear_tile(const Tile& tile, const Rows& in, const Weight& weight,
                                            const Out& out, int first_channel, int channels) {
  using T = LinearTraits;
  using C = typename Tile::C;
  constexpr Products kHow = Tile::kHow;
  constexpr int kOperands = T::kSteps * kGroups * T::kParts;  // of a block of columns
  const int thread = static_cast<int>(threadIdx.x), warp = thread / kWarp, lane = thread % kWarp;
  const auto layout = ColumnBlocks<Rows::kPieces>::template in_packs<4>(in);
  const auto weights_of = [&](const Place& at, int step, int group, int part, C(&pair)[2]) {
    const int k = lane % 4 * 4 + 2 * step, c = first_channel + LinearSums<C, kHow, kGroups>::channel(part);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const bool inside = at.offset + k + i < at.width && c < channels;
      pair[i] = inside ? weight.weight(at.source + k + i, group, c) : C(0);
    }
  };
  const auto add = [&](auto& sums, int block, auto&& weight_at) {
    Place at = layout.place(in, block);
    at.offset += lane % 4 * 4;
    C values[4][4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const auto& row = tile.row_of[warp * kWarp + lane / 4 + 8 * i];
      in.load(row, at, values[i]);
      if constexpr (kAlternative) {
        if (at.piece == Rows::kPieces - 1) in.load_alternative(row, at, values[i]);
      }
    }
    sums.add(values, weight_at);
  };
  const int first_row = tile.first_row + warp * kWarp;
  unsigned wrong = kHow == Products::kExact ? ~0u : 0u;
  if constexpr (kHow != Products::kExact) {
    LinearSums<C, kHow, kGroups> sums;
    for (int first = 0; first < layout.count(); first += T::kBlocks) {
      const int count = layout.count() - first < T::kBlocks ? layout.count() - first : T::kBlocks;
      __syncthreads();
      for (unsigned of = warp; of < kOperands; of += T::kWarps) {
        const int step = of / (kGroups * T::kParts), group = of / T::kParts % kGroups, part = of % T::kParts;
        for (int block = 0; block < count; ++block) {
          C pair[2];
          weights_of(layout.place(in, first + block), step, group, part, pair);
          tile.operand(block * kOperands + of).store(pair);
        }
      }
      __syncthreads();
#pragma unroll 1
      for (int block = 0; block < count; ++block) {
        add(sums, first + block, [&](int step, int group, int part) {
          const int i = ((block * T::kSteps + step) * kGroups + group) * T::kParts + part;
          return tile.operand(i).load();
        });
      }
    }
    if constexpr (kHow == Products::kSplit) wrong = sums.wrong();
    sums.write(weight, out, first_row, tile.rows, first_channel, channels, ~wrong);
  }
  // A row with Inf does not change the bits of another one.
  if constexpr (kHow != Products::kRounded) {
    if (kHow == Products::kSplit && __ballot_sync(kFullMask, wrong != 0) == 0) return;
    LinearSums<C, Products::kExact, kGroups> sums;
#pragma unroll 1
    for (int block = 0; block < layout.count(); ++block) {
      const Place at = layout.place(in, block);
      add(sums, block, [&](int step, int group, int part) {
        C pair[2];
        weights_of(at, step, group, part, pair);
        return Operand<C, Products::kExact, 2>(pair);
      });
    }
    sums.write(weight, out, first_row, tile.rows, first_channel, channels, wrong);
  }
}

template <class C, bool kRounded, int kGroups, class Rows, class Weight, class Out>
__global__ void __launch_bounds__(LinearTraits::kThreads, LinearTraits::kMinBlocks)
    linear_kernel(Rows in, Weight weight, Out out, int rows, int channels) {
  const LinearTile<C, kRounded, kGroups, Rows> tile(in, rows);
  const int first_channel = static_cast<int>(blockIdx.y) * LinearTraits::kChannels;
  linear_tile<kGroups, false>(tile, in, weight, out, first_channel, channels);
}

// `rounded` is the result of rounds_operands.
template <class C, int kGroups, class Rows, class Weight, class Out, class Rounded>
void linear(const Rows& in, const Weight& weight, const Out& out, int64_t rows, int64_t channels,
            Rounded rounded, Stream& on) {
  dispatch_rounded(rounded, [&](auto constant) {
    using Tile = LinearTile<C, constant, kGroups, Rows>;
    launch(linear_kernel<C, constant, kGroups, Rows, Weight, Out>,
           {Tile::blocks(rows), ceil_div<int64_t>(channels, LinearTraits::kChannels)}, LinearTraits::kThreads,
           Tile::bytes(), on, in, weight, out, rows, channels);
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
