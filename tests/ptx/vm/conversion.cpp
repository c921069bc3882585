// Moves and conversions. The argument of a conversion between integers may lie in a wider register: then "from64"
// follows its opcode.
#include <cmath>
#include <limits>
#include <unordered_map>

#include "warp.h"

namespace ptx {
namespace {

using Table = std::unordered_map<std::string, Handler>;

template <class D, class A, D (*f)(A)>
void convert(Warp& warp, const Instruction& i) {
  const A* a = warp.reg<A>(i.r[1]);
  each_lane(warp, warp.reg<D>(i.r[0]), [&](int lane) { return f(a[lane]); });
}

template <class D, class A>
D cast(A a) {
  return static_cast<D>(a);
}
// Float to integer: the nearest value of the type, 0 for a NaN.
template <class D, class A, A (*rounded)(A)>
D integer(A a) {
  if (a != a) return 0;
  const A whole = rounded(a);
  if (whole <= static_cast<A>(std::numeric_limits<D>::min())) return std::numeric_limits<D>::min();
  if (whole >= static_cast<A>(std::numeric_limits<D>::max())) return std::numeric_limits<D>::max();
  return static_cast<D>(whole);
}
template <class T, T (*rounded)(T)>
T whole(T a) {
  return rounded(a);
}
float toward_zero(float a) {
  return std::trunc(a);
}
float nearest(float a) {
  return std::nearbyint(a);
}
float down(float a) {
  return std::floor(a);
}
float up(float a) {
  return std::ceil(a);
}
double toward_zero(double a) {
  return std::trunc(a);
}
double nearest(double a) {
  return std::nearbyint(a);
}
double down(double a) {
  return std::floor(a);
}
double up(double a) {
  return std::ceil(a);
}
// Into [0, 1]; a NaN is 0.
float saturated(float a) {
  return a > 0 ? (a < 1 ? a : 1.0f) : 0.0f;
}
float from_half(uint16_t bits) {
  _Float16 value;
  std::memcpy(&value, &bits, 2);
  return static_cast<float>(value);
}
uint16_t to_half(float a) {
  if (a != a) return 0x7fff;
  const auto value = static_cast<_Float16>(a);
  uint16_t bits;
  std::memcpy(&bits, &value, 2);
  return bits;
}
uint16_t to_bfloat(float a) {
  if (a != a) return 0x7fff;
  const uint32_t bits = as_bits(a);
  return static_cast<uint16_t>((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}
float from_bfloat(uint16_t bits) {
  return as_float(static_cast<uint32_t>(bits) << 16);
}
// Ten bits of mantissa, ties away from zero.
uint32_t to_tf32(float a) {
  const uint32_t bits = as_bits(a);
  return std::isfinite(a) ? (bits + 0x1000u) & ~0x1fffu : bits;
}

// The low bits of a register.
template <class D, class A, class R>
D of_wide(R a) {
  return static_cast<D>(static_cast<A>(a));
}

template <class T>
void move(Warp& warp, const Instruction& i) {
  const T* a = warp.reg<T>(i.r[1]);
  each_lane(warp, warp.reg<T>(i.r[0]), [&](int lane) { return a[lane]; });
}
// {low, high} from one register and back. P: a part.
template <class T, class P>
void unpack(Warp& warp, const Instruction& i) {
  const T* a = warp.reg<T>(i.r[2]);
  T held[kLanes];
  std::memcpy(held, a, sizeof(held));
  each_lane(warp, warp.reg<P>(i.r[0]), [&](int lane) { return static_cast<P>(held[lane]); });
  each_lane(warp, warp.reg<P>(i.r[1]),
            [&](int lane) { return static_cast<P>(held[lane] >> (8 * sizeof(P))); });
}
template <class T, class P>
void pack(Warp& warp, const Instruction& i) {
  const P *low = warp.reg<P>(i.r[1]), *high = warp.reg<P>(i.r[2]);
  each_lane(warp, warp.reg<T>(i.r[0]), [&](int lane) {
    return static_cast<T>(static_cast<T>(high[lane]) << (8 * sizeof(P)) | low[lane]);
  });
}
// Between an address in shared memory and a generic one.
void shared_to_generic(Warp& warp, const Instruction& i) {
  const uint64_t* a = warp.reg<uint64_t>(i.r[1]);
  const auto base = reinterpret_cast<uint64_t>(warp.shared);
  each_lane(warp, warp.reg<uint64_t>(i.r[0]), [&](int lane) { return a[lane] + base; });
}
void generic_to_shared(Warp& warp, const Instruction& i) {
  const uint64_t* a = warp.reg<uint64_t>(i.r[1]);
  const auto base = reinterpret_cast<uint64_t>(warp.shared);
  each_lane(warp, warp.reg<uint64_t>(i.r[0]), [&](int lane) { return a[lane] - base; });
}

template <class A>
void add_from(Table& table, const std::string& from) {
  table["cvt.u16" + from] = table["cvt.s16" + from] = convert<uint16_t, A, cast<uint16_t, A>>;
  table["cvt.u32" + from] = table["cvt.s32" + from] = convert<uint32_t, A, cast<uint32_t, A>>;
  table["cvt.u64" + from] = table["cvt.s64" + from] = convert<uint64_t, A, cast<uint64_t, A>>;
  table["cvt.rn.f32" + from] = convert<float, A, cast<float, A>>;
  table["cvt.rn.f64" + from] = convert<double, A, cast<double, A>>;
}
template <class A>
void add_rounded(Table& table, const std::string& from) {
  table["cvt.rzi.s32" + from] = convert<int32_t, A, integer<int32_t, A, toward_zero>>;
  table["cvt.rzi.u32" + from] = convert<uint32_t, A, integer<uint32_t, A, toward_zero>>;
  table["cvt.rzi.s64" + from] = convert<int64_t, A, integer<int64_t, A, toward_zero>>;
  table["cvt.rzi.u64" + from] = convert<uint64_t, A, integer<uint64_t, A, toward_zero>>;
  table["cvt.rni.s32" + from] = convert<int32_t, A, integer<int32_t, A, nearest>>;
  table["cvt.rni" + from + from] = convert<A, A, whole<A, nearest>>;
  table["cvt.rzi" + from + from] = convert<A, A, whole<A, toward_zero>>;
  table["cvt.rmi" + from + from] = convert<A, A, whole<A, down>>;
  table["cvt.rpi" + from + from] = convert<A, A, whole<A, up>>;
}

Table make_table() {
  Table table;
  add_from<uint16_t>(table, ".u16");
  add_from<int16_t>(table, ".s16");
  add_from<uint32_t>(table, ".u32");
  add_from<int32_t>(table, ".s32");
  add_from<uint64_t>(table, ".u64");
  add_from<int64_t>(table, ".s64");
  add_rounded<float>(table, ".f32");
  add_rounded<double>(table, ".f64");
  table["cvt.s64.s32.from64"] = convert<int64_t, uint64_t, of_wide<int64_t, int32_t, uint64_t>>;
  table["cvt.u64.u32.from64"] = convert<uint64_t, uint64_t, of_wide<uint64_t, uint32_t, uint64_t>>;
  table["cvt.f64.f32"] = convert<double, float, cast<double, float>>;
  table["cvt.rn.f32.f64"] = convert<float, double, cast<float, double>>;
  table["cvt.sat.f32.f32"] = convert<float, float, saturated>;
  table["cvt.rna.tf32.f32"] = convert<uint32_t, float, to_tf32>;
  table["cvt.f32.f16"] = convert<float, uint16_t, from_half>;
  table["cvt.rn.f16.f32"] = convert<uint16_t, float, to_half>;
  table["cvt.f32.bf16"] = convert<float, uint16_t, from_bfloat>;
  table["cvt.rn.bf16.f32"] = convert<uint16_t, float, to_bfloat>;
  for (const std::string prefix : {".u", ".s", ".b", ".f"}) {
    table["mov" + prefix + "16"] = move<uint16_t>;
    table["mov" + prefix + "32"] = move<uint32_t>;
    table["mov" + prefix + "64"] = move<uint64_t>;
  }
  table["mov.unpack.b64"] = unpack<uint64_t, uint32_t>;
  table["mov.unpack.b32"] = unpack<uint32_t, uint16_t>;
  table["mov.pack.b64"] = pack<uint64_t, uint32_t>;
  table["mov.pack.b32"] = pack<uint32_t, uint16_t>;
  table["cvta.to.global.u64"] = table["cvta.global.u64"] = move<uint64_t>;
  table["cvta.to.local.u64"] = table["cvta.local.u64"] = move<uint64_t>;
  table["cvta.shared.u64"] = shared_to_generic;
  table["cvta.to.shared.u64"] = generic_to_shared;
  return table;
}

}  // namespace

Handler conversion(const std::string& opcode) {
  static const Table table = make_table();
  const auto found = table.find(opcode);
  return found == table.end() ? nullptr : found->second;
}

}  // namespace ptx
