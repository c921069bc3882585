// Data movement between the lanes of vectors. Part of simd.h, which includes it.
#pragma once

#include <utility>

#include "cpu/simd/simd.h"

namespace hiermt::cpu::HIERMT_ISA {

namespace detail {

template <int kDistance, class V, int... kIndex>
HIERMT_INLINE V swap_lanes(V v, std::integer_sequence<int, kIndex...>) {
  return __builtin_shufflevector(v, v, (kIndex ^ kDistance)...);
}

// Lane l of the result: from `a` where bit kDistance of l is clear, else lane l - kDistance of `b`.
template <int kDistance, class V, int... kIndex>
HIERMT_INLINE V interleave_low(V a, V b, std::integer_sequence<int, kIndex...>) {
  constexpr int n = sizeof...(kIndex);
  return __builtin_shufflevector(a, b, ((kIndex & kDistance) ? kIndex - kDistance + n : kIndex)...);
}
template <int kDistance, class V, int... kIndex>
HIERMT_INLINE V interleave_high(V a, V b, std::integer_sequence<int, kIndex...>) {
  constexpr int n = sizeof...(kIndex);
  return __builtin_shufflevector(a, b, ((kIndex & kDistance) ? kIndex + n : kIndex + kDistance)...);
}

template <int kDistance, int kCount, class V>
HIERMT_INLINE void transpose_stage(V (&rows)[kCount]) {
  if constexpr (kDistance < kCount) {
    using Sequence = std::make_integer_sequence<int, kCount>;
    for (int i = 0; i < kCount; ++i) {
      if ((i & kDistance) == 0) {
        const V a = rows[i], b = rows[i + kDistance];
        rows[i] = interleave_low<kDistance>(a, b, Sequence{});
        rows[i + kDistance] = interleave_high<kDistance>(a, b, Sequence{});
      }
    }
    transpose_stage<2 * kDistance>(rows);
  }
}

// Lane l of rows[0] becomes the sum of the lanes of rows[l]. Each stage merges the rows whose numbers differ
// in one bit.
template <int kDistance, int kCount, class V>
HIERMT_INLINE void fold_rows(V (&rows)[kCount]) {
  if constexpr (kDistance < kCount) {
    using Sequence = std::make_integer_sequence<int, kCount>;
    for (int i = 0; i < kCount; i += 2 * kDistance) {
      const V a = rows[i], b = rows[i + kDistance];
      rows[i] = interleave_low<kDistance>(a, b, Sequence{}) + interleave_high<kDistance>(a, b, Sequence{});
    }
    fold_rows<2 * kDistance>(rows);
  }
}

template <int kDistance, class V>
HIERMT_INLINE V fold(V v) {
  constexpr int n = sizeof(V) / sizeof(Lane<V>);
  if constexpr (kDistance == 0) {
    return v;
  } else {
    return fold<kDistance / 2>(v + swap_lanes<kDistance>(v, std::make_integer_sequence<int, n>{}));
  }
}

template <int kFrom, class V, int... kIndex>
HIERMT_INLINE V interleave_from(V a, V b, std::integer_sequence<int, kIndex...>) {
  constexpr int n = sizeof...(kIndex);
  return __builtin_shufflevector(a, b, (kFrom + kIndex / 2 + (kIndex % 2 ? n : 0))...);
}

}  // namespace detail

template <class V>
struct Interleaved {
  V low, high;
};
// a0 b0 a1 b1 ...
template <class V>
HIERMT_INLINE Interleaved<V> interleave(V a, V b) {
  constexpr int n = sizeof(V) / sizeof(Lane<V>);
  using Sequence = std::make_integer_sequence<int, n>;
  return {detail::interleave_from<0>(a, b, Sequence{}), detail::interleave_from<n / 2>(a, b, Sequence{})};
}

// Transposes the matrix of the given rows in place.
template <class V, int kCount>
HIERMT_INLINE void transpose(V (&rows)[kCount]) {
  static_assert(kCount == sizeof(V) / sizeof(Lane<V>), "as many rows as lanes");
  detail::transpose_stage<1>(rows);
}

// Sum of the lanes, added as a tree.
template <class V>
HIERMT_INLINE Lane<V> reduce_add(V v) {
  constexpr int n = sizeof(V) / sizeof(Lane<V>);
  return detail::fold<n / 2>(v)[0];
}

// Lane l of the result is the sum of the lanes of rows[l]. Overwrites the rows.
template <class V, int kCount>
HIERMT_INLINE V reduce_each(V (&rows)[kCount]) {
  static_assert(kCount == sizeof(V) / sizeof(Lane<V>), "as many rows as lanes");
  detail::fold_rows<1>(rows);
  return rows[0];
}

}  // namespace hiermt::cpu::HIERMT_ISA
