// Products of tiles in shared memory, as FMA or on tensor cores.
//
//   RowsProduct   a warp: 32 rows x 16 channels of each group, sum(row, channel) = sum_k in[row][k] w[k][channel]
//   GradProduct   a slice of threads: 16 channels of each group x 48 columns, sum over rows l[row][m] r[row][k]
#pragma once

#include <type_traits>

#include "cuda/dense/mma.cuh"
#include "cuda/support/device.cuh"

namespace hiermt::cuda {

struct ProductTraits {
  static constexpr int kWarpRows = 32;
  static constexpr int kChannels = 16;  // of each group
  static constexpr int kColumns = 48;   // of a tile of rows: x, g and h of the default model
  // Strides of tiles. A lane reads a quad of its own row, or fragments of eight rows: 4 modulo 8 spreads rows
  // over all banks. Fragments of four rows: 8 or 24 modulo 32.
  static constexpr int kInStride = kColumns + 4;
  static constexpr int kRightStride = kColumns + 8;
  template <int kGroups>
  static constexpr int kGroupStride = kGroups * kChannels + 8;
};

template <class C, int kGroups>
struct FmaRows {
  using T = ProductTraits;
  static constexpr int kInner = 4;  // values of k per step
  int row, channel;
  C sum[kGroups][4][4];

  // start(group, channel) is the first summand of all rows.
  template <class F>
  __device__ FmaRows(int thread, F&& start)
      : row(thread / kWarp * T::kWarpRows + thread % 8), channel(thread % kWarp / 8 * 4) {
#pragma unroll
    for (int i = 0; i < 4 * kGroups; ++i) {
      const C value = start(i / 4, channel + i % 4);
#pragma unroll
      for (int r = 0; r < 4; ++r) sum[i / 4][r][i % 4] = value;
    }
  }
  __device__ static C operand(C value) { return value; }
  __device__ __forceinline__ void step(const C* in, const C* weights) {
    C a[4][4];
#pragma unroll
    for (int i = 0; i < 4; ++i) load_quad(in + (row + 8 * i) * T::kInStride, a[i]);
#pragma unroll
    for (int k = 0; k < 4; ++k) {
#pragma unroll
      for (int group = 0; group < kGroups; ++group) {
        C b[4];
        load_quad(weights + k * T::kGroupStride<kGroups> + group * T::kChannels + channel, b);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
#pragma unroll
          for (int c = 0; c < 4; ++c) sum[group][i][c] += a[i][k] * b[c];
        }
      }
    }
  }
  // Calls f(row, group, channel, sums of four channels).
  template <class F>
  __device__ __forceinline__ void for_each(F&& f) const {
#pragma unroll
    for (int group = 0; group < kGroups; ++group) {
#pragma unroll
      for (int i = 0; i < 4; ++i) f(row + 8 * i, group, channel, sum[group][i]);
    }
  }
};

template <int kGroups>
struct TensorRows {
  using T = ProductTraits;
  static constexpr int kInner = 8;
  int row, lane_row, member;
  float sum[kGroups][2][2][4];  // [rows / 16][channels / 8] of two rows, 8 apart, and two channels

  template <class F>
  __device__ TensorRows(int thread, F&& start)
      : row(thread / kWarp * T::kWarpRows), lane_row(thread % kWarp / 4), member(thread % 4) {
#pragma unroll
    for (int i = 0; i < 4 * kGroups; ++i) {
      const float value = start(i / 4, i / 2 % 2 * 8 + 2 * member + i % 2);
#pragma unroll
      for (int r = 0; r < 4; ++r) sum[i / 4][r / 2][i / 2 % 2][r % 2 * 2 + i % 2] = value;
    }
  }
  __device__ static float operand(float value) { return round_to_tf32(value); }
  __device__ __forceinline__ void step(const float* in, const float* weights) {
    float a[2][4];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float* at = in + (row + 16 * half + lane_row) * T::kInStride + member;
      a[half][0] = at[0], a[half][1] = at[8 * T::kInStride];
      a[half][2] = at[4], a[half][3] = at[8 * T::kInStride + 4];
    }
#pragma unroll
    for (int group = 0; group < kGroups; ++group) {
#pragma unroll
      for (int part = 0; part < 2; ++part) {
        const float* at =
            weights + member * T::kGroupStride<kGroups> + group * T::kChannels + 8 * part + lane_row;
        const float b[2] = {at[0], at[4 * T::kGroupStride<kGroups>]};
#pragma unroll
        for (int half = 0; half < 2; ++half) mma_tf32(sum[group][half][part], a[half], b);
      }
    }
  }
  // Calls f(row, group, channel, sums of two channels).
  template <class F>
  __device__ __forceinline__ void for_each(F&& f) const {
#pragma unroll
    for (int group = 0; group < kGroups; ++group) {
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        const float (&four)[4] = sum[group][i / 4][i % 2];
        const float pair[2] = {four[i / 2 % 2 * 2], four[i / 2 % 2 * 2 + 1]};
        f(row + i / 4 * 16 + i / 2 % 2 * 8 + lane_row, group, i % 2 * 8 + 2 * member, pair);
      }
    }
  }
};

template <class C, bool kTensor, int kGroups>
using RowsProduct = std::conditional_t<kTensor, TensorRows<kGroups>, FmaRows<C, kGroups>>;

// With kAlternative the last group multiplies by the columns kRightStride further.
template <class C, int kGroups, bool kAlternative>
struct FmaGrad {
  using T = ProductTraits;
  static constexpr int kSlices = 2;
  static constexpr int kSliceThreads = T::kChannels * T::kColumns / 16;
  static constexpr int kInner = 1;  // rows per step
  int slice, channel, column;
  C sum[kGroups][4][4] = {};

  __device__ explicit FmaGrad(int thread)
      : slice(thread / kSliceThreads),
        channel(thread % kSliceThreads % 4 * 4),
        column(thread % kSliceThreads / 4 * 4) {}
  __device__ static C operand(C value) { return value; }
  template <int kLeft, int kRight>
  __device__ __forceinline__ void step(const C* left, const C* right, int columns, int alternative_from) {
    if (column >= columns) return;
    C plain[4], other[4];
    load_quad(right + column, plain);
    if constexpr (kAlternative) {
      load_quad(right + column + (column >= alternative_from ? T::kRightStride : 0), other);
    }
#pragma unroll
    for (int group = 0; group < kGroups; ++group) {
      C a[4];
      load_quad(left + group * T::kChannels + channel, a);
#pragma unroll
      for (int m = 0; m < 4; ++m) {
#pragma unroll
        for (int k = 0; k < 4; ++k) {
          sum[group][m][k] += a[m] * (kAlternative && group == kGroups - 1 ? other[k] : plain[k]);
        }
      }
    }
  }
  // Calls f(group, channel, column, sum).
  template <class F>
  __device__ __forceinline__ void for_each(F&& f) const {
#pragma unroll
    for (int i = 0; i < 16 * kGroups; ++i) {
      f(i / 16, channel + i / 4 % 4, column + i % 4, sum[i / 16][i / 4 % 4][i % 4]);
    }
  }
};

template <int kGroups, bool kAlternative>
struct TensorGrad {
  using T = ProductTraits;
  static constexpr int kSlices = 3, kSliceThreads = kWarp;
  static constexpr int kInner = 8;
  static constexpr int kParts = T::kColumns / 8;
  int slice, lane_row, member;
  float sum[kGroups][kParts][4] = {};

  __device__ explicit TensorGrad(int thread)
      : slice(thread / kWarp), lane_row(thread % kWarp / 4), member(thread % 4) {}
  __device__ static float operand(float value) { return round_to_tf32(value); }
  template <int kLeft, int kRight>
  __device__ __forceinline__ void step(const float* left, const float* right, int columns,
                                       int alternative_from) {
    float a[kGroups][4];
#pragma unroll
    for (int group = 0; group < kGroups; ++group) {
      const float* at = left + member * kLeft + group * T::kChannels + lane_row;
      a[group][0] = at[0], a[group][1] = at[8], a[group][2] = at[4 * kLeft], a[group][3] = at[4 * kLeft + 8];
    }
#pragma unroll
    for (int part = 0; part < kParts; ++part) {
      if (8 * part >= columns) break;
      const float* at = right + member * kRight + 8 * part + lane_row;
      const float plain[2] = {at[0], at[4 * kRight]};
      if (kAlternative && 8 * part >= alternative_from) at += T::kRightStride;
      const float other[2] = {at[0], at[4 * kRight]};
#pragma unroll
      for (int group = 0; group < kGroups; ++group) {
        mma_tf32(sum[group][part], a[group], kAlternative && group == kGroups - 1 ? other : plain);
      }
    }
  }
  template <class F>
  __device__ __forceinline__ void for_each(F&& f) const {
#pragma unroll
    for (int i = 0; i < kGroups * kParts * 4; ++i) {
      f(i / (4 * kParts), lane_row + i / 2 % 2 * 8, i / 4 % kParts * 8 + 2 * member + i % 2,
        sum[i / (4 * kParts)][i / 4 % kParts][i % 4]);
    }
  }
};

template <class C, bool kTensor, int kGroups, bool kAlternative>
using GradProduct =
    std::conditional_t<kTensor, TensorGrad<kGroups, kAlternative>, FmaGrad<C, kGroups, kAlternative>>;

// Whether products of tensors of type S run on tensor cores: always for 16-bit types, which TF32 represents
// exactly; for float32 if `tf32` allows the rounding; never for float64. A constant where the type decides,
// so that no other kernel is compiled.
template <class S>
constexpr auto use_tensor_cores(bool tf32) {
  if constexpr (std::is_same_v<S, float>) {
    return tf32;
  } else {
    (void)tf32;
    return std::bool_constant<sizeof(S) == 2>{};
  }
}

// Calls f with the result of use_tensor_cores as a constant.
template <class Tensor, class F>
cudaError_t dispatch_tensor_cores(Tensor tensor, F&& f) {
  if constexpr (std::is_same_v<Tensor, bool>) {
    return tensor ? f(std::true_type{}) : f(std::false_type{});
  } else {
    return f(tensor);
  }
}

}  // namespace hiermt::cuda
