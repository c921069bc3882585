// exp, sigmoid and tanh of vectors:
//
//   x = n log(2) + r,  |r| <= log(2) / 2,  exp(x) = 2^n exp(r),  exp(r) = 1 + r + r^2 q(r)
//
// with q the minimax polynomial of the relative error of exp(r). NaN stays NaN and the limits at +-inf are
// exact. The error over all finite arguments, subnormal results included, is at most 1.2 ulp (exp), 2.3 ulp
// (sigmoid) or 2.5 ulp (tanh), as measured by tests/ops/test_vmath.py.
#pragma once

#include "cpu/simd/simd.h"

namespace hiermt::cpu::HIERMT_ISA {

namespace detail {

template <class C>
struct ExpConstants;

template <>
struct ExpConstants<float> {
  static constexpr float kLog2E = 1.44269504088896340736f;
  // log(2) in two parts. The first ends in zero bits, so that its product with n is exact.
  static constexpr float kLog2High = 0.693145751953125f;
  static constexpr float kLog2Low = 1.42860682030941723e-6f;
  // 1.5 * 2^(mantissa bits): adding it rounds to an integer and leaves that integer in the low bits.
  static constexpr float kRound = 12582912.0f;
  // exp underflows to 0 below.
  static constexpr float kLowest = -105.0f;
  // tanh rounds to 1 above.
  static constexpr float kTanhHighest = 9.25f;
  static constexpr int kTerms = 5;
  static constexpr float kQ[kTerms] = {0.49999993447768139334f, 0.16666520632053303302f,
                                       0.041668388055327886718f, 0.0083687168468920078511f,
                                       0.0013814597987784584161f};
};

template <>
struct ExpConstants<double> {
  static constexpr double kLog2E = 1.44269504088896340736;
  static constexpr double kLog2High = 0.6931471805592082;
  static constexpr double kLog2Low = 7.371002565167798901834e-13;
  static constexpr double kRound = 6755399441055744.0;
  static constexpr double kLowest = -746.0;
  static constexpr double kTanhHighest = 19.5;
  static constexpr int kTerms = 10;
  static constexpr double kQ[kTerms] = {
      0.50000000000000106271,   0.16666666666666412519,    0.041666666666530159087,  0.0083333333334944660097,
      0.0013888888943629995327, 0.00019841269506566078891, 2.4801493099023478842e-5, 2.7557586387171485238e-6,
      2.7630248337820151498e-7, 2.5000056892133106562e-8};
};

// q(r) by Horner's rule.
template <class V>
HIERMT_INLINE V exp_polynomial(V r) {
  using Constants = ExpConstants<Lane<V>>;
  V q = broadcast(Constants::kQ[Constants::kTerms - 1]);
  for (int i = Constants::kTerms - 2; i >= 0; --i) q = fma(q, r, broadcast(Constants::kQ[i]));
  return q;
}

}  // namespace detail

// exp(x) for x <= 0 or NaN, the only arguments of a softmax and of sigmoid().
template <class V>
HIERMT_INLINE V exp_nonpositive(V x) {
  using Constants = detail::ExpConstants<Lane<V>>;
  const V clamped = max(broadcast(Constants::kLowest), x);
  const V biased = fma(clamped, broadcast(Constants::kLog2E), broadcast(Constants::kRound));
  const V n = biased - broadcast(Constants::kRound);
  const V r = fma(n, broadcast(-Constants::kLog2Low), fma(n, broadcast(-Constants::kLog2High), clamped));
  const V one = broadcast(Lane<V>(1));
  const V p = fma(fma(detail::exp_polynomial(r), r, one), r, one);
  return scale_by_power_of_two(p, n, biased);
}

// 1 / (1 + exp(-x)), from e = exp(-|x|): 1 / (1 + e) for x >= 0 and e / (1 + e) for x < 0, so that small
// results keep their precision.
template <class V>
HIERMT_INLINE V sigmoid(V x) {
  const V one = broadcast(Lane<V>(1));
  const V e = exp_nonpositive(negative_abs(x));
  return divide(select(x < V{}, e, one), one + e);
}

// (exp(2x) - 1) / (exp(2x) + 1), from m = exp(|2x|) - 1 without cancellation near zero; the sign is that of
// x.
template <class V>
HIERMT_INLINE V tanh(V x) {
  using C = Lane<V>;
  using Constants = detail::ExpConstants<C>;
  const V magnitude = min(broadcast(Constants::kTanhHighest), abs(x));
  const V twice = magnitude + magnitude;
  const V biased = fma(twice, broadcast(Constants::kLog2E), broadcast(Constants::kRound));
  const V n = biased - broadcast(Constants::kRound);
  const V r = fma(n, broadcast(-Constants::kLog2Low), fma(n, broadcast(-Constants::kLog2High), twice));
  const V p = fma(r * r, detail::exp_polynomial(r), r);
  const V scale = power_of_two(biased);
  const V m = fma(scale, p, scale - broadcast(C(1)));
  return with_sign_of(x, divide(m, m + broadcast(C(2))));
}

}  // namespace hiermt::cpu::HIERMT_ISA
