// Arithmetic of one value a lane. The results are those of the GPU; approximate functions are as exact as the
// host's, which is closer than the GPU's.
#include <cmath>
#include <limits>
#include <type_traits>
#include <unordered_map>

#include "warp.h"

namespace ptx {
namespace {

using Table = std::unordered_map<std::string, Handler>;

template <class T, T (*f)(T)>
void unary(Warp& warp, const Instruction& i) {
  const T* a = warp.reg<T>(i.r[1]);
  each_lane(warp, warp.reg<T>(i.r[0]), [&](int lane) { return f(a[lane]); });
}
template <class T, T (*f)(T, T)>
void binary(Warp& warp, const Instruction& i) {
  const T *a = warp.reg<T>(i.r[1]), *b = warp.reg<T>(i.r[2]);
  each_lane(warp, warp.reg<T>(i.r[0]), [&](int lane) { return f(a[lane], b[lane]); });
}
template <class T, T (*f)(T, T, T)>
void ternary(Warp& warp, const Instruction& i) {
  const T *a = warp.reg<T>(i.r[1]), *b = warp.reg<T>(i.r[2]), *c = warp.reg<T>(i.r[3]);
  each_lane(warp, warp.reg<T>(i.r[0]), [&](int lane) { return f(a[lane], b[lane], c[lane]); });
}
// The product of two T is a W.
template <class T, class W, bool add>
void wide(Warp& warp, const Instruction& i) {
  const T *a = warp.reg<T>(i.r[1]), *b = warp.reg<T>(i.r[2]);
  const W* c = warp.reg<W>(i.r[add ? 3 : 2]);
  using U = std::make_unsigned_t<W>;
  each_lane(warp, warp.reg<W>(i.r[0]), [&](int lane) {
    const U product = static_cast<U>(static_cast<W>(a[lane])) * static_cast<U>(static_cast<W>(b[lane]));
    return static_cast<W>(add ? product + static_cast<U>(c[lane]) : product);
  });
}
// Shifts take their count as 32 bits; one past the width clears, or leaves the sign.
template <class T, bool left>
void shift(Warp& warp, const Instruction& i) {
  constexpr uint32_t kBits = 8 * sizeof(T);
  const T* a = warp.reg<T>(i.r[1]);
  const uint32_t* n = warp.reg<uint32_t>(i.r[2]);
  each_lane(warp, warp.reg<T>(i.r[0]), [&](int lane) -> T {
    const uint32_t count = n[lane] < kBits ? n[lane] : kBits - 1;
    const bool past = n[lane] >= kBits;
    if (left) return past ? T{0} : static_cast<T>(a[lane] << count);
    if (std::is_signed_v<T>) return static_cast<T>(a[lane] >> count);
    return past ? T{0} : static_cast<T>(a[lane] >> count);
  });
}

template <class T>
T add(T a, T b) {
  return static_cast<T>(a + b);
}
template <class T>
T subtract(T a, T b) {
  return static_cast<T>(a - b);
}
template <class T>
T multiply(T a, T b) {
  if constexpr (sizeof(T) == 2) return static_cast<T>(static_cast<uint32_t>(a) * static_cast<uint32_t>(b));
  return static_cast<T>(a * b);
}
template <class T>
T multiply_add(T a, T b, T c) {
  return static_cast<T>(multiply(a, b) + c);
}
template <class T, class W>
T multiply_high(T a, T b) {
  return static_cast<T>(static_cast<W>(a) * static_cast<W>(b) >> (8 * sizeof(T)));
}
// Division by zero is undefined in PTX; the GPU returns all ones.
template <class T>
T divide(T a, T b) {
  if (b == 0) return static_cast<T>(-1);
  if (std::is_signed_v<T> && b == static_cast<T>(-1))
    return static_cast<T>(std::make_unsigned_t<T>(0) - std::make_unsigned_t<T>(a));
  return static_cast<T>(a / b);
}
template <class T>
T remainder(T a, T b) {
  if (b == 0) return a;
  if (std::is_signed_v<T> && b == static_cast<T>(-1)) return 0;
  return static_cast<T>(a % b);
}
template <class T>
T smaller(T a, T b) {
  return b < a ? b : a;
}
template <class T>
T larger(T a, T b) {
  return a < b ? b : a;
}
// Of a number and a NaN the number; -0 is less than +0.
template <class T>
T smaller_number(T a, T b) {
  if (a != a) return b;
  if (b != b) return a;
  return a < b || (a == b && std::signbit(a)) ? a : b;
}
template <class T>
T larger_number(T a, T b) {
  if (a != a) return b;
  if (b != b) return a;
  return b < a || (a == b && std::signbit(b)) ? a : b;
}
template <class T>
T negate(T a) {
  if constexpr (std::is_floating_point_v<T>) return -a;
  return static_cast<T>(T{0} - a);
}
template <class T>
T absolute(T a) {
  if constexpr (std::is_floating_point_v<T>) return std::fabs(a);
  return a < 0 ? negate(a) : a;
}
template <class T>
T bit_and(T a, T b) {
  return a & b;
}
template <class T>
T bit_or(T a, T b) {
  return a | b;
}
template <class T>
T bit_xor(T a, T b) {
  return a ^ b;
}
template <class T>
T bit_not(T a) {
  return static_cast<T>(~a);
}

float fma_nearest(float a, float b, float c) {
  return std::fma(a, b, c);
}
double fma_nearest(double a, double b, double c) {
  return std::fma(a, b, c);
}
// Rounded towards minus infinity: the product is exact in double, the error of the sum is known.
float fma_down(float a, float b, float c) {
  const double product = static_cast<double>(a) * b, sum = product + c;
  if (!std::isfinite(sum)) return static_cast<float>(sum);
  const double part = sum - product;
  const double error = (product - (sum - part)) + (c - part);
  const auto result = static_cast<float>(sum);
  const bool above = result > sum || (result == sum && error < 0);
  return above ? std::nextafter(result, -std::numeric_limits<float>::infinity()) : result;
}
float add_toward_zero(float a, float b) {
  const float sum = a + b;
  if (!std::isfinite(sum)) return sum;
  const double error = static_cast<double>(a) + static_cast<double>(b) - sum;
  return (error < 0 && sum > 0) || (error > 0 && sum < 0) ? std::nextafter(sum, 0.0f) : sum;
}
template <class T>
T quotient(T a, T b) {
  return a / b;
}
// div.approx: divisors above 2^126 give zero, and a NaN for an infinite dividend.
float quotient_approximate(float a, float b) {
  const float size = std::fabs(b);
  if (size > 0x1p126f && std::isfinite(b)) {
    return std::isinf(a) ? std::numeric_limits<float>::quiet_NaN()
                         : std::copysign(0.0f, a) * std::copysign(1.0f, b);
  }
  return a / b;
}
float flushed(float a) {
  return std::fabs(a) < std::numeric_limits<float>::min() ? std::copysign(0.0f, a) : a;
}
template <class T>
T reciprocal(T a) {
  return 1 / a;
}
float reciprocal_flushed(float a) {
  return flushed(1 / flushed(a));
}
// The low word of the argument is not read and that of the result is zero.
double reciprocal_of_high_word(double a) {
  uint64_t bits;
  std::memcpy(&bits, &a, 8);
  bits &= 0xffffffff00000000u;
  std::memcpy(&a, &bits, 8);
  a = 1 / a;
  std::memcpy(&bits, &a, 8);
  bits &= 0xffffffff00000000u;
  std::memcpy(&a, &bits, 8);
  return a;
}
template <class T>
T root(T a) {
  return std::sqrt(a);
}
float root_inverse(float a) {
  return 1 / std::sqrt(a);
}
float power_of_two(float a) {
  return std::exp2(a);
}
float power_of_two_flushed(float a) {
  return flushed(std::exp2(flushed(a)));
}
float logarithm_of_two(float a) {
  return std::log2(a);
}
float tangent_hyperbolic(float a) {
  return std::tanh(a);
}
// PTX: the magnitude of the second operand with the sign of the first.
template <class T>
T with_sign(T sign, T magnitude) {
  return std::copysign(magnitude, sign);
}

uint32_t reversed(uint32_t a) {
  uint32_t result = 0;
  for (int i = 0; i < 32; ++i) result |= (a >> i & 1u) << (31 - i);
  return result;
}
uint32_t count_ones(uint32_t a) {
  return static_cast<uint32_t>(__builtin_popcount(a));
}
uint32_t leading_zeros(uint32_t a) {
  return a == 0 ? 32 : static_cast<uint32_t>(__builtin_clz(a));
}
uint32_t highest_bit(uint32_t a) {
  return a == 0 ? ~0u : 31 - leading_zeros(a);
}
uint32_t shift_to_highest_bit(uint32_t a) {
  return a == 0 ? ~0u : leading_zeros(a);
}
uint32_t permuted(uint32_t a, uint32_t b, uint32_t selection) {
  const uint64_t bytes = static_cast<uint64_t>(b) << 32 | a;
  uint32_t result = 0;
  for (int i = 0; i < 4; ++i) {
    const uint32_t nibble = selection >> (4 * i) & 15;
    const auto byte = static_cast<uint8_t>(bytes >> (8 * (nibble & 7)));
    result |= static_cast<uint32_t>(nibble & 8 ? (byte & 128 ? 255 : 0) : byte) << (8 * i);
  }
  return result;
}
uint32_t funnel_left(uint32_t low, uint32_t high, uint32_t count) {
  return static_cast<uint32_t>(((static_cast<uint64_t>(high) << 32 | low) << (count & 31)) >> 32);
}
uint32_t funnel_right(uint32_t low, uint32_t high, uint32_t count) {
  return static_cast<uint32_t>((static_cast<uint64_t>(high) << 32 | low) >> (count & 31));
}

// Operands: d, a, b, the first bit and the number of bits of a that go into b.
template <class T>
void insert_bits(Warp& warp, const Instruction& i) {
  constexpr uint32_t kBits = 8 * sizeof(T);
  const T *a = warp.reg<T>(i.r[1]), *b = warp.reg<T>(i.r[2]);
  const uint32_t *at = warp.reg<uint32_t>(i.r[3]), *count = warp.reg<uint32_t>(i.r[4]);
  each_lane(warp, warp.reg<T>(i.r[0]), [&](int lane) -> T {
    const uint32_t first = at[lane] & 255, length = count[lane] & 255;
    if (first >= kBits || length == 0) return b[lane];
    const T ones = length >= kBits ? ~T{0} : static_cast<T>((T{1} << length) - 1);
    const T mask = ones << first;
    return (b[lane] & ~mask) | (a[lane] << first & mask);
  });
}

// U and S: the unsigned and the signed type of `bits` bits.
template <class U, class S>
void add_integers(Table& table, const std::string& bits) {
  const std::string u = ".u" + bits, s = ".s" + bits, b = ".b" + bits;
  for (const std::string& type : {u, s}) {
    table["add" + type] = binary<U, add<U>>;
    table["sub" + type] = binary<U, subtract<U>>;
    table["mul.lo" + type] = binary<U, multiply<U>>;
    table["mad.lo" + type] = ternary<U, multiply_add<U>>;
  }
  table["div" + u] = binary<U, divide<U>>;
  table["div" + s] = binary<S, divide<S>>;
  table["rem" + u] = binary<U, remainder<U>>;
  table["rem" + s] = binary<S, remainder<S>>;
  table["min" + u] = binary<U, smaller<U>>;
  table["min" + s] = binary<S, smaller<S>>;
  table["max" + u] = binary<U, larger<U>>;
  table["max" + s] = binary<S, larger<S>>;
  table["neg" + s] = unary<U, negate<U>>;
  table["abs" + s] = unary<S, absolute<S>>;
  table["and" + b] = binary<U, bit_and<U>>;
  table["or" + b] = binary<U, bit_or<U>>;
  table["xor" + b] = binary<U, bit_xor<U>>;
  table["not" + b] = unary<U, bit_not<U>>;
  table["shl" + b] = shift<U, true>;
  table["shr" + u] = table["shr" + b] = shift<U, false>;
  table["shr" + s] = shift<S, false>;
}

template <class T>
void add_floats(Table& table, const std::string& type) {
  for (const std::string& rounding : {std::string(), std::string(".rn")}) {
    table["add" + rounding + type] = binary<T, add<T>>;
    table["sub" + rounding + type] = binary<T, subtract<T>>;
    table["mul" + rounding + type] = binary<T, multiply<T>>;
  }
  table["fma.rn" + type] = ternary<T, fma_nearest>;
  table["div.rn" + type] = binary<T, quotient<T>>;
  table["rcp.rn" + type] = unary<T, reciprocal<T>>;
  table["sqrt.rn" + type] = unary<T, root<T>>;
  table["neg" + type] = unary<T, negate<T>>;
  table["abs" + type] = unary<T, absolute<T>>;
  table["min" + type] = binary<T, smaller_number<T>>;
  table["max" + type] = binary<T, larger_number<T>>;
  table["copysign" + type] = binary<T, with_sign<T>>;
}

Table make_table() {
  Table table;
  add_integers<uint16_t, int16_t>(table, "16");
  add_integers<uint32_t, int32_t>(table, "32");
  add_integers<uint64_t, int64_t>(table, "64");
  table["mul.wide.s32"] = wide<int32_t, int64_t, false>;
  table["mul.wide.u32"] = wide<uint32_t, uint64_t, false>;
  table["mul.wide.s16"] = wide<int16_t, int32_t, false>;
  table["mul.wide.u16"] = wide<uint16_t, uint32_t, false>;
  table["mad.wide.s32"] = wide<int32_t, int64_t, true>;
  table["mad.wide.u32"] = wide<uint32_t, uint64_t, true>;
  table["mul.hi.s32"] = binary<int32_t, multiply_high<int32_t, int64_t>>;
  table["mul.hi.u32"] = binary<uint32_t, multiply_high<uint32_t, uint64_t>>;
  table["mul.hi.s64"] = binary<int64_t, multiply_high<int64_t, __int128>>;
  table["mul.hi.u64"] = binary<uint64_t, multiply_high<uint64_t, unsigned __int128>>;
  table["popc.b32"] = unary<uint32_t, count_ones>;
  table["clz.b32"] = unary<uint32_t, leading_zeros>;
  table["brev.b32"] = unary<uint32_t, reversed>;
  table["bfind.u32"] = unary<uint32_t, highest_bit>;
  table["bfind.shiftamt.u32"] = unary<uint32_t, shift_to_highest_bit>;
  table["bfi.b32"] = insert_bits<uint32_t>;
  table["bfi.b64"] = insert_bits<uint64_t>;
  table["prmt.b32"] = ternary<uint32_t, permuted>;
  table["shf.l.wrap.b32"] = ternary<uint32_t, funnel_left>;
  table["shf.r.wrap.b32"] = ternary<uint32_t, funnel_right>;
  add_floats<float>(table, ".f32");
  add_floats<double>(table, ".f64");
  table["fma.rm.f32"] = ternary<float, fma_down>;
  table["add.rz.f32"] = binary<float, add_toward_zero>;
  table["div.approx.f32"] = binary<float, quotient_approximate>;
  table["div.full.f32"] = binary<float, quotient<float>>;
  table["rcp.approx.ftz.f32"] = unary<float, reciprocal_flushed>;
  table["rcp.approx.ftz.f64"] = unary<double, reciprocal_of_high_word>;
  table["rsqrt.approx.f32"] = unary<float, root_inverse>;
  table["sqrt.approx.f32"] = unary<float, root<float>>;
  table["ex2.approx.f32"] = unary<float, power_of_two>;
  table["ex2.approx.ftz.f32"] = unary<float, power_of_two_flushed>;
  table["lg2.approx.f32"] = unary<float, logarithm_of_two>;
  table["tanh.approx.f32"] = unary<float, tangent_hyperbolic>;
  return table;
}

}  // namespace

Handler arithmetic(const std::string& opcode) {
  static const Table table = make_table();
  const auto found = table.find(opcode);
  return found == table.end() ? nullptr : found->second;
}

}  // namespace ptx
