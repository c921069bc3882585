// Device functions of every kernel: conversion between storage type S and compute type C, nonlinearities and
// their derivatives, reductions, and the addressing of the rows of a sequence.
#pragma once

#include <type_traits>

#include "cuda/support/launch.cuh"
#include "cuda/support/limits.h"
#include "params.h"
#include "types.h"

namespace hiermt::cuda {

__device__ __forceinline__ float load(const float* at) {
  return *at;
}
__device__ __forceinline__ double load(const double* at) {
  return *at;
}
__device__ __forceinline__ float load(const BFloat16* at) {
  return __uint_as_float(static_cast<unsigned>(at->bits) << 16);
}
__device__ __forceinline__ float load(const Half* at) {
  return __half2float(__ushort_as_half(at->bits));
}

__device__ __forceinline__ void store(float* at, float value) {
  *at = value;
}
__device__ __forceinline__ void store(double* at, double value) {
  *at = value;
}
__device__ __forceinline__ void store(BFloat16* at, float value) {
  at->bits = __bfloat16_as_ushort(__float2bfloat16_rn(value));
}
__device__ __forceinline__ void store(Half* at, float value) {
  at->bits = __half_as_ushort(__float2half_rn(value));
}

// Consecutive values, as accesses of up to 16 bytes to an address aligned to them.
template <class S, int n>
struct alignas(n * sizeof(S) > 16 ? 16 : n * sizeof(S)) Pack {
  S values[n];
};
template <class S>
using Quad = Pack<S, 4>;
template <class S, class C>
__device__ __forceinline__ void load_quad(const S* from, C* to) {
  const Quad<S> quad = *reinterpret_cast<const Quad<S>*>(from);
#pragma unroll
  for (int i = 0; i < 4; ++i) to[i] = load(quad.values + i);
}
__device__ __forceinline__ void load_quad(const float4* from, float* to) {
  load_quad(reinterpret_cast<const float*>(from), to);
}
template <class S, class C>
__device__ __forceinline__ void store_quad(S* to, const C* from) {
  Quad<S> quad;
#pragma unroll
  for (int i = 0; i < 4; ++i) store(quad.values + i, from[i]);
  *reinterpret_cast<Quad<S>*>(to) = quad;
}
__device__ __forceinline__ void store_quad(float* to, const float* from) {
  *reinterpret_cast<float4*>(to) = float4{from[0], from[1], from[2], from[3]};
}
template <class S>
__device__ __forceinline__ bool quad_aligned(const S* at) {
  return reinterpret_cast<uintptr_t>(at) % alignof(Quad<S>) == 0;
}

// Values from k on of a row of `width` values, which lie `stride` apart: zeros behind its end and of a row without
// an address. `packed`: the n values are in one aligned Pack, if the row has them all.
template <class S, class C, int n>
__device__ __forceinline__ void load_part(const S* row, int k, int width, int64_t stride, bool packed,
                                          C (&values)[n]) {
  if (row == nullptr) width = 0;
  if (packed && k + n <= width) {
    const Pack<S, n> pack = *reinterpret_cast<const Pack<S, n>*>(row + k);
#pragma unroll
    for (int i = 0; i < n; ++i) values[i] = load(pack.values + i);
    return;
  }
  int64_t at = k * stride;
#pragma unroll
  for (int i = 0; i < n; ++i, at += stride) values[i] = k + i < width ? load(row + at) : C(0);
}
// Whether each pack of n values of rows at `data`, whose addresses differ by multiples of `strides`, is aligned.
template <int n, class S, class... Strides>
__host__ __device__ __forceinline__ bool packs(const S* data, [[maybe_unused]] Strides... strides) {
  return reinterpret_cast<uintptr_t>(data) % alignof(Pack<S, n>) == 0 && ((strides % n == 0) && ...);
}
// Stores the values of a row of `width` values from k on that are inside it.
template <class S, class C>
__device__ __forceinline__ void store_part(S* row, int k, int width, bool packed, const C (&values)[4]) {
  if (packed && k + 4 <= width) return store_quad(row + k, values);
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if (k + i < width) store(row + k + i, values[i]);
  }
}

__device__ __forceinline__ float exp(float x) {
  return expf(x);
}
__device__ __forceinline__ double exp(double x) {
  return ::exp(x);
}

__device__ __forceinline__ float sqrt(float x) {
  return sqrtf(x);
}
__device__ __forceinline__ double sqrt(double x) {
  return ::sqrt(x);
}

// 2^x and 1 / x as the special function unit computes them, with an error of 2 ulp. Subnormal results are zero;
// both limits hold, NaN stays NaN.
__device__ __forceinline__ float approximate_exp2(float x) {
#ifdef HIERMT_SIMT
  return exp2f(x);
#else
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#endif
}
__device__ __forceinline__ float approximate_reciprocal(float x) {
#ifdef HIERMT_SIMT
  return 1.0f / x;
#else
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#endif
}
constexpr float kLog2E = 1.4426950408889634f;

// e^x of x <= 0, a weight of a softmax. The rounding of x log2(e) leaves an error of 2^-25 of the largest weight.
__device__ __forceinline__ float softmax_weight(float x) {
  return approximate_exp2(kLog2E * x);
}
__device__ __forceinline__ double softmax_weight(double x) {
  return ::exp(x);
}
// 1 - 2 / (1 + e^2x) loses digits near zero, where x + x^3 p(x^2) replaces it. Together 4 ulp, without a branch.
__device__ __forceinline__ float tanh(float x) {
  const float far = 1.0f - 2.0f * approximate_reciprocal(1.0f + approximate_exp2(2.0f * kLog2E * x));
  const float square = x * x;
  float p = 0.01564047485589981f;
  p = p * square - 0.05223110318183899f;
  p = p * square + 0.13313519954681396f;
  p = p * square - 0.33332622051239014f;
  return fabsf(x) < 0.6f ? x + x * (square * p) : far;
}
__device__ __forceinline__ double tanh(double x) {
  return ::tanh(x);
}
// An absolute error of 2^-24.
__device__ __forceinline__ float sigmoid(float x) {
  return approximate_reciprocal(1.0f + approximate_exp2(-kLog2E * x));
}
__device__ __forceinline__ double sigmoid(double x) {
  return 1.0 / (1.0 + ::exp(-x));
}

// S is the type in which the result is stored. The backward of kLeakySigmoid derives the sign of x from the
// stored value, so the value of a positive x must not round to one half.
template <class S, class C = Compute<S>>
__device__ __forceinline__ C activate(Activation activation, C x) {
  if (activation == Activation::kSigmoid) return sigmoid(x);
  if (activation == Activation::kNone) return x;
  const C leaky = x > C(0) ? x : C(kActivationSlope) * x;
  if (activation == Activation::kLeakyRelu) return leaky;
  const C value = sigmoid(leaky);
  return x > C(0) && value < kAboveHalf<S> ? kAboveHalf<S> : value;
}

// Derivative of an activation as a function of its output y.
template <class C>
__device__ __forceinline__ C activation_slope(Activation activation, C y) {
  if (activation == Activation::kSigmoid) return y * (C(1) - y);
  if (activation == Activation::kLeakyRelu) return y > C(0) ? C(1) : C(kActivationSlope);
  // The argument was positive if and only if y > 0.5.
  if (activation == Activation::kLeakySigmoid)
    return y * (C(1) - y) * (y > C(0.5) ? C(1) : C(kActivationSlope));
  return C(1);
}

// Sum over a group of `lanes` neighbouring lanes, a power of two. All lanes of the warp call it; every lane
// gets the sum of its group.
template <class C>
__device__ __forceinline__ C group_sum(C value, int lanes) {
  for (int bit = lanes / 2; bit > 0; bit /= 2) value += __shfl_xor_sync(kFullMask, value, bit);
  return value;
}

// Sum over the block in a fixed order. `scratch` holds blockDim.x values. Every thread gets the sum.
template <class C>
__device__ C block_sum(C value, C* scratch) {
  __syncthreads();
  scratch[threadIdx.x] = value;
  for (unsigned half = blockDim.x / 2; half > 0; half /= 2) {
    __syncthreads();
    if (threadIdx.x < half) scratch[threadIdx.x] += scratch[threadIdx.x + half];
  }
  __syncthreads();
  return scratch[0];
}

// Chunks of rows for partial sums: at most `max_count` of at least `min_rows`, whose size is a multiple of
// `multiple`. They depend on the number of rows alone, so that the order of the sums is the same on every
// GPU.
struct RowChunks {
  int64_t rows, count;  // of a chunk, and chunks

  RowChunks(int64_t all_rows, int64_t max_count, int64_t min_rows, int64_t multiple = 1)
      : rows(ceil_div(ceil_div(all_rows, max_count), multiple) * multiple) {
    if (rows < min_rows) rows = min_rows;
    count = ceil_div(all_rows, rows);
  }
};

// Row r of a sequence [N, T, ...] is node r / T at step r % T. The host checks that N * T fits 31 bits.
struct RowIndex {
  int copy, node, step;

  __device__ RowIndex(int row, int num_nodes, int steps) {
    const int n = row / steps;
    step = row - n * steps;
    copy = n / num_nodes;
    node = n - copy * num_nodes;
  }
};

template <int n, class S>
__device__ __forceinline__ bool packs(const SequenceView<S>& view) {
  return view.stride_channel == 1 &&
         packs<n>(view.data, view.stride_copy, view.stride_node, view.stride_time);
}

template <class S>
__device__ __forceinline__ int64_t sequence_offset(const SequenceView<S>& view, const RowIndex& at) {
  return at.copy * view.stride_copy + at.node * view.stride_node + at.step * view.stride_time;
}

// How `lanes` neighbouring lanes share a row: each lane holds kChannels consecutive channels. With fewer than
// eight, the walk over the edges would cost more than the channels; with more, the loads of a warp would not
// coalesce. kHidden is the number of channels, or 0 if it is known at run time only.
template <int kHidden>
struct ChannelSplit {
  static constexpr int kChannels = 8;
  static_assert(kHidden % kChannels == 0 && kHidden / kChannels <= kWarp);
  int hidden, lanes;

  __host__ __device__ explicit ChannelSplit(int hidden_) : hidden(hidden_), lanes(1) {
    while (lanes * kChannels < hidden) lanes *= 2;
  }
  __device__ bool holds(int channel) const { return kHidden != 0 || channel < hidden; }

  // For rows of a workspace, which are 16-byte aligned if kHidden is not 0.
  template <class C>
  __device__ __forceinline__ void load_aligned(const C* row, int first, C (&values)[kChannels]) const {
    if constexpr (kHidden != 0 && sizeof(C) == 4) {
#pragma unroll
      for (int v = 0; v < kChannels; v += 4) load_quad(row + first + v, values + v);
    } else {
      load_any(row, first, values);
    }
  }
  template <class C>
  __device__ __forceinline__ void store_aligned(C* row, int first, const C (&values)[kChannels]) const {
    if constexpr (kHidden != 0 && sizeof(C) == 4) {
#pragma unroll
      for (int v = 0; v < kChannels; v += 4) store_quad(row + first + v, values + v);
    } else {
      store_any(row, first, values);
    }
  }
  // For rows of a tensor of the caller, which are aligned to elements only. Channels past the end are zero.
  template <class S, class C>
  __device__ __forceinline__ void load_any(const S* row, int first, C (&values)[kChannels]) const {
#pragma unroll
    for (int v = 0; v < kChannels; ++v) values[v] = holds(first + v) ? load(row + first + v) : C(0);
  }
  template <class S, class C>
  __device__ __forceinline__ void store_any(S* row, int first, const C (&values)[kChannels]) const {
#pragma unroll
    for (int v = 0; v < kChannels; ++v) {
      if (holds(first + v)) store(row + first + v, values[v]);
    }
  }
};

// Calls f with the number of channels as a constant, or 0 for the generic kernel. float64 has only that one.
template <class S, class F>
auto dispatch_hidden(int64_t hidden, F&& f) {
  if constexpr (!std::is_same_v<S, double>) {
    if (hidden == 8) return f(std::integral_constant<int, 8>{});
    if (hidden == 16) return f(std::integral_constant<int, 16>{});
    if (hidden == 32) return f(std::integral_constant<int, 32>{});
    if (hidden == 64) return f(std::integral_constant<int, 64>{});
  }
  return f(std::integral_constant<int, 0>{});
}

// Calls f with a constant: whether there is a mask.
template <class F>
auto dispatch_masked(const bool* present, F&& f) {
  return present != nullptr ? f(std::true_type{}) : f(std::false_type{});
}

}  // namespace hiermt::cuda

// Expands X(S) for every storage type S; used to instantiate launchers.
#define HIERMT_FOR_EACH_STORAGE(X) X(float) X(double) X(BFloat16) X(Half)
