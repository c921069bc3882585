// Comparisons, selections and logic of predicates. A predicate is one bit a lane.
#include <unordered_map>

#include "warp.h"

namespace ptx {
namespace {

using Table = std::unordered_map<std::string, Handler>;

// Sets the bits of the lanes that execute.
void set(Warp& warp, uint32_t at, uint32_t bits) {
  uint32_t& target = warp.predicate(at);
  target = (target & ~warp.exec) | (bits & warp.exec);
}

uint32_t packed(const uint8_t* flags) {
  uint32_t bits = 0;
  for (int i = 0; i < 4; ++i) {
    uint64_t eight;
    std::memcpy(&eight, flags + 8 * i, 8);
    bits |= static_cast<uint32_t>((eight * 0x0102040810204080u) >> 56) << (8 * i);
  }
  return bits;
}

enum class With { kNothing, kAnd, kOr, kXor };

template <class T, bool (*test)(T, T), With with>
void compare(Warp& warp, const Instruction& i) {
  const T *a = warp.reg<T>(i.r[1]), *b = warp.reg<T>(i.r[2]);
  uint8_t flags[kLanes];
  for (int lane = 0; lane < kLanes; ++lane) flags[lane] = test(a[lane], b[lane]);
  uint32_t bits = packed(flags);
  if (with == With::kAnd) bits &= warp.predicate(i.r[3]);
  if (with == With::kOr) bits |= warp.predicate(i.r[3]);
  if (with == With::kXor) bits ^= warp.predicate(i.r[3]);
  set(warp, i.r[0], bits);
}

template <class T>
bool equal(T a, T b) {
  return a == b;
}
template <class T>
bool differs(T a, T b) {
  return a < b || b < a;
}
template <class T>
bool less(T a, T b) {
  return a < b;
}
template <class T>
bool less_equal(T a, T b) {
  return a <= b;
}
template <class T>
bool greater(T a, T b) {
  return a > b;
}
template <class T>
bool greater_equal(T a, T b) {
  return a >= b;
}
// True also if an argument is NaN.
template <class T, bool (*opposite)(T, T)>
bool unordered(T a, T b) {
  return !opposite(a, b);
}
template <class T>
bool numbers(T a, T b) {
  return a == a && b == b;
}

template <class T, bool (*test)(T, T)>
void add(Table& table, const std::string& name, const std::string& type) {
  table["setp." + name + type] = compare<T, test, With::kNothing>;
  table["setp." + name + ".and" + type] = compare<T, test, With::kAnd>;
  table["setp." + name + ".or" + type] = compare<T, test, With::kOr>;
  table["setp." + name + ".xor" + type] = compare<T, test, With::kXor>;
}

template <class T>
void add_ordered(Table& table, const std::string& type) {
  add<T, equal<T>>(table, "eq", type);
  add<T, differs<T>>(table, "ne", type);
  add<T, less<T>>(table, "lt", type);
  add<T, less_equal<T>>(table, "le", type);
  add<T, greater<T>>(table, "gt", type);
  add<T, greater_equal<T>>(table, "ge", type);
}

template <class T>
void add_float(Table& table, const std::string& type) {
  add_ordered<T>(table, type);
  add<T, unordered<T, differs<T>>>(table, "equ", type);
  add<T, unordered<T, equal<T>>>(table, "neu", type);
  add<T, unordered<T, greater_equal<T>>>(table, "ltu", type);
  add<T, unordered<T, greater<T>>>(table, "leu", type);
  add<T, unordered<T, less_equal<T>>>(table, "gtu", type);
  add<T, unordered<T, less<T>>>(table, "geu", type);
  add<T, numbers<T>>(table, "num", type);
  add<T, unordered<T, numbers<T>>>(table, "nan", type);
}

template <class T>
void select(Warp& warp, const Instruction& i) {
  const T *a = warp.reg<T>(i.r[1]), *b = warp.reg<T>(i.r[2]);
  const uint32_t chosen = warp.predicate(i.r[3]);
  each_lane(warp, warp.reg<T>(i.r[0]), [&](int lane) { return chosen >> lane & 1 ? a[lane] : b[lane]; });
}

void and_predicate(Warp& warp, const Instruction& i) {
  set(warp, i.r[0], warp.predicate(i.r[1]) & warp.predicate(i.r[2]));
}
void or_predicate(Warp& warp, const Instruction& i) {
  set(warp, i.r[0], warp.predicate(i.r[1]) | warp.predicate(i.r[2]));
}
void xor_predicate(Warp& warp, const Instruction& i) {
  set(warp, i.r[0], warp.predicate(i.r[1]) ^ warp.predicate(i.r[2]));
}
void not_predicate(Warp& warp, const Instruction& i) {
  set(warp, i.r[0], ~warp.predicate(i.r[1]));
}
void move_predicate(Warp& warp, const Instruction& i) {
  set(warp, i.r[0], warp.predicate(i.r[1]));
}

Table make_table() {
  Table table;
  for (const std::string prefix : {".u", ".b"}) {
    add_ordered<uint16_t>(table, prefix + "16");
    add_ordered<uint32_t>(table, prefix + "32");
    add_ordered<uint64_t>(table, prefix + "64");
  }
  add_ordered<int16_t>(table, ".s16");
  add_ordered<int32_t>(table, ".s32");
  add_ordered<int64_t>(table, ".s64");
  add_float<float>(table, ".f32");
  add_float<double>(table, ".f64");
  for (const std::string prefix : {".u", ".s", ".b", ".f"}) {
    table["selp" + prefix + "16"] = select<uint16_t>;
    table["selp" + prefix + "32"] = select<uint32_t>;
    table["selp" + prefix + "64"] = select<uint64_t>;
  }
  table["and.pred"] = and_predicate;
  table["or.pred"] = or_predicate;
  table["xor.pred"] = xor_predicate;
  table["not.pred"] = not_predicate;
  table["mov.pred"] = move_predicate;
  return table;
}

}  // namespace

Handler comparison(const std::string& opcode) {
  static const Table table = make_table();
  const auto found = table.find(opcode);
  return found == table.end() ? nullptr : found->second;
}

}  // namespace ptx
