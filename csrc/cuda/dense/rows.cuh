// Rows that a dense layer reads: up to three pieces side by side, each anywhere in memory. The lanes of a warp read
// them as operands of a product, without a copy in shared memory.
//
// Rows:  kPieces, kAlternative, Row (addresses), width(piece), Row row(int r), packed<n>(piece),
//        load(row, place, values); with kAlternative load_alternative(row, place, values)
#pragma once

#include "cuda/support/device.cuh"

namespace hiermt::cuda {

// Columns of a row in a block of columns, which belongs to one piece.
constexpr int kBlockColumns = 16;

// Columns from `offset` on of a piece of `width` columns, which begin at column `source` of the row. `packed`: they
// are as packs of what a lane loads.
struct Place {
  int piece, offset, source, width;
  bool packed;
};

// The columns of a row in blocks.
template <int kPieces>
struct ColumnBlocks {
  int first[kPieces + 1] = {};  // of a piece
  unsigned packed = 0;          // a bit for each piece

  template <class Rows>
  __host__ __device__ explicit ColumnBlocks(const Rows& rows) {
    for (int i = 0; i < kPieces; ++i) first[i + 1] = first[i] + ceil_div(rows.width(i), kBlockColumns);
  }
  __host__ __device__ int count() const { return first[kPieces]; }
  // Columns of a row.
  template <class Rows>
  __host__ __device__ static int inputs(const Rows& rows) {
    int sum = 0;
    for (int i = 0; i < kPieces; ++i) sum += rows.width(i);
    return sum;
  }

  // In packs of n columns.
  template <int n, class Rows>
  __device__ static ColumnBlocks in_packs(const Rows& rows) {
    ColumnBlocks blocks(rows);
#pragma unroll
    for (int i = 0; i < kPieces; ++i) blocks.packed |= rows.template packed<n>(i) ? 1u << i : 0u;
    return blocks;
  }
  // Block `block`; behind the last one it has no columns.
  template <class Rows>
  __device__ __forceinline__ Place place(const Rows& rows, int block) const {
    int piece = 0, source = 0, before = 0;
#pragma unroll
    for (int i = 1; i < kPieces; ++i) {
      if (block >= first[i]) piece = i, source += rows.width(i - 1), before = first[i];
    }
    const int width = block < count() ? rows.width(piece) : 0, offset = (block - before) * kBlockColumns;
    return {piece, offset, source + offset, width, (packed >> piece & 1) != 0};
  }
};

// Addresses of the pieces of a row; nullptr is a piece of zeros.
template <class S, int kAddresses>
struct RowAddresses {
  const S* at[kAddresses];
};

// Rows of a sequence view, zeros where the node is not there: not even a NaN counts.
template <class S>
struct SequenceRows {
  static constexpr int kPieces = 1;
  static constexpr bool kAlternative = false;
  using Row = RowAddresses<S, 1>;
  SequenceView<S> view;
  int num_nodes, steps;
  const bool* present;  // or nullptr

  template <class P>
  static SequenceRows of(const P& conv) {
    return {conv.x, static_cast<int>(conv.graph.num_nodes), static_cast<int>(conv.steps), conv.present};
  }
  __host__ __device__ int width(int) const { return static_cast<int>(view.channels); }
  __device__ Row row(int r) const {
    if (present != nullptr && !present[r]) return {};
    return {{view.data + sequence_offset(view, RowIndex(r, num_nodes, steps))}};
  }
  template <int n>
  __device__ bool packed(int) const {
    return packs<n>(view);
  }
  template <int n>
  __device__ __forceinline__ void load(const Row& row, const Place& at, Compute<S> (&values)[n]) const {
    load_part(row.at[0], at.offset, at.width, view.stride_channel, at.packed, values);
  }
};

// Rows of one to three dense arrays of the same width.
template <class C, int kPieces_>
struct DenseRows {
  static constexpr int kPieces = kPieces_;
  static constexpr bool kAlternative = false;
  using Row = RowAddresses<C, 1>;
  const C* data;
  int channels;  // of a piece
  int64_t stride_row, stride_piece;

  __host__ __device__ int width(int) const { return channels; }
  __device__ Row row(int r) const { return {{data + r * stride_row}}; }
  template <int n>
  __device__ bool packed(int) const {
    return packs<n>(data, stride_row, stride_piece);
  }
  template <int n>
  __device__ __forceinline__ void load(const Row& row, const Place& at, C (&values)[n]) const {
    load_part(row.at[0] == nullptr ? nullptr : row.at[0] + at.piece * stride_piece, at.offset, at.width, 1,
              at.packed, values);
  }
};

// A tensor [rows, groups, channels], overwritten or added to.
template <class S>
struct DenseOut {
  S* out;
  int channels;
  int64_t stride_row, stride_group;
  bool accumulate, packed;

  __host__ __device__ DenseOut(S* out_, int channels_, int64_t stride_row_, int64_t stride_group_,
                               bool accumulate_ = false)
      : out(out_),
        channels(channels_),
        stride_row(stride_row_),
        stride_group(stride_group_),
        accumulate(accumulate_),
        packed(packs<4>(out_, stride_row_, stride_group_)) {}

  template <class C>
  __device__ __forceinline__ void write(int row, int group, int channel, const C (&values)[4]) const {
    S* at = out + row * stride_row + group * stride_group;
    if (!accumulate) return store_part(at, channel, channels, packed, values);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (channel + i < channels) store(at + channel + i, load(at + channel + i) + values[i]);
    }
  }
};

// The gradient of an input, zero where its node is not there and on days of no window: there the cotangents are zero,
// and zero times a weight that is not finite is not zero.
template <class S>
struct InputGradientOut {
  DenseOut<S> out;
  const bool* present;        // [rows], or nullptr
  const int* used = nullptr;  // [days], or nullptr
  int days = 1;

  template <class C>
  __device__ __forceinline__ void write(int row, int group, int channel, const C (&values)[4]) const {
    const bool there = (present == nullptr || present[row]) && (used == nullptr || used[row % days] != 0);
    C kept[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) kept[i] = there ? values[i] : C(0);
    out.write(row, group, channel, kept);
  }
};

}  // namespace hiermt::cuda
