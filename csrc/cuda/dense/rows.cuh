// Rows that a dense layer reads: up to three pieces side by side, each anywhere in memory. A tile of them in
// shared memory is staged once, coalesced, four values at a time.
//
// Rows:  kPieces, Row (addresses), width(piece), Row row(int r), load(row, place, values)
#pragma once

#include "cuda/support/device.cuh"

namespace hiermt::cuda {

// A piece of a tile begins at a multiple of 8 columns, the inner size of a product on tensor cores.
constexpr int kPieceAlignment = 8;

__host__ __device__ constexpr int padded_columns(int width) {
  return ceil_div(width, kPieceAlignment) * kPieceAlignment;
}

// Column `offset` of a piece of `width` columns, which is column `source` of the row.
struct Place {
  int piece, offset, source, width;
};

// Where the columns of a row are in a tile. With `ones`, a column of ones follows those of the first piece.
template <int kPieces>
struct TileColumns {
  int first[kPieces + 1] = {};   // in the tile
  int source[kPieces + 1] = {};  // in the row

  template <class Rows>
  __host__ __device__ explicit TileColumns(const Rows& rows, bool ones = false) {
    for (int i = 0; i < kPieces; ++i) {
      source[i + 1] = source[i] + rows.width(i);
      first[i + 1] = first[i] + padded_columns(rows.width(i) + (ones && i == 0));
    }
  }
  // All pieces of `width` columns, a multiple of the alignment.
  __host__ __device__ explicit TileColumns(int width) {
    for (int i = 0; i <= kPieces; ++i) first[i] = source[i] = i * width;
  }
  __host__ __device__ int count() const { return first[kPieces]; }
  __device__ int width(int piece) const { return source[piece + 1] - source[piece]; }
  __device__ __forceinline__ Place place(int column) const {
    Place at{0, column, column, source[1]};
#pragma unroll
    for (int i = 1; i < kPieces; ++i) {
      if (column >= first[i]) {
        at = {i, column - first[i], source[i] + column - first[i], source[i + 1] - source[i]};
      }
    }
    return at;
  }
};

// Calls f(row, column, place) for the thread's quads of the columns [from, to) of a tile of kRows rows. Four
// neighbouring lanes read 64 contiguous bytes of a row.
template <int kRows, int kThreads, int kPieces, class F>
__device__ __forceinline__ void for_each_quad(const TileColumns<kPieces>& columns, int from, int to, F&& f) {
  constexpr int kLanes = 4, kRowStep = kThreads / kLanes;
  static_assert(kRows % kRowStep == 0);
  const int thread = static_cast<int>(threadIdx.x);
#pragma unroll
  for (int piece = 0; piece < kPieces; ++piece) {
    const int first = columns.first[piece], last = columns.first[piece + 1];
    const int end = last < to ? last : to;
    for (int column = (first > from ? first : from) + 4 * (thread % kLanes); column < end;
         column += 4 * kLanes) {
      const Place at{piece, column - first, 0, columns.width(piece)};
#pragma unroll
      for (int i = 0; i < kRows / kRowStep; ++i) f(thread / kLanes + i * kRowStep, column, at);
    }
  }
}

// A multiple of four, which the compiler then knows: else it splits the store of a quad.
__device__ __forceinline__ int quad_index(int i) {
  return i & ~3;
}

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
  __device__ __forceinline__ void load(const Row& row, const Place& at, Compute<S> (&values)[4]) const {
    load_part(row.at[0], at.offset, at.width, view.stride_channel, values);
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
  __device__ __forceinline__ void load(const Row& row, const Place& at, C (&values)[4]) const {
    load_part(row.at[0] == nullptr ? nullptr : row.at[0] + at.piece * stride_piece, at.offset, at.width, 1,
              values);
  }
};

// A tensor [rows, groups, channels], overwritten or added to.
template <class S>
struct DenseOut {
  S* out;
  int channels;
  int64_t stride_row, stride_group;
  bool accumulate = false;

  template <class C, int n>
  __device__ __forceinline__ void write(int row, int group, int channel, const C (&values)[n]) const {
    S* at = out + row * stride_row + group * stride_group;
    if (!accumulate) return store_part(at, channel, channels, values);
#pragma unroll
    for (int i = 0; i < n; ++i) {
      if (channel + i < channels) store(at + channel + i, load(at + channel + i) + values[i]);
    }
  }
};

}  // namespace hiermt::cuda
