// Instructions of sm_90 that stand for one of PTX.
//
// ptxas keeps moves in registers, takes parameters from constant memory, negates in operands and merges parts
// of an address: those are free or cost less than they look. docs/benchmarks.md has how far the sum is from the
// size of the machine code.
#include <unordered_map>

#include "counts.h"

namespace ptx {
namespace {

struct Pair {
  Cost first, second;
};

const std::unordered_map<std::string, Pair>& exact() {
  static const std::unordered_map<std::string, Pair> table = {
      {"ex2.approx.ftz.f32", {{kMufu, 1}, {}}},
      {"ex2.approx.f32", {{kMufu, 1}, {kFloat, 3}}},
      {"lg2.approx.f32", {{kMufu, 1}, {kFloat, 3}}},
      {"tanh.approx.f32", {{kMufu, 1}, {}}},
      {"rcp.approx.ftz.f32", {{kMufu, 1}, {}}},
      {"rcp.approx.ftz.f64", {{kMufu, 1}, {}}},
      {"rsqrt.approx.f32", {{kMufu, 1}, {kFloat, 3}}},
      {"sqrt.approx.f32", {{kMufu, 1}, {kFloat, 4}}},
      {"div.approx.f32", {{kMufu, 1}, {kFloat, 4}}},
      {"div.full.f32", {{kMufu, 1}, {kFloat, 5}}},
      {"div.rn.f32", {{kMufu, 1}, {kFfma, 8}}},
      {"rcp.rn.f32", {{kMufu, 1}, {kFfma, 5}}},
      {"sqrt.rn.f32", {{kMufu, 1}, {kFfma, 7}}},
      {"div.rn.f64", {{kMufu, 1}, {kDouble, 10}}},
      {"rcp.rn.f64", {{kMufu, 1}, {kDouble, 7}}},
      {"sqrt.rn.f64", {{kMufu, 1}, {kDouble, 9}}},
      {"max.f64", {{kDouble, 1}, {kInteger, 4}}},
      {"min.f64", {{kDouble, 1}, {kInteger, 4}}},
      // A call of a subroutine for 64 bits.
      {"div.s32", {{kMufu, 1}, {kInteger, 22}}},
      {"rem.s32", {{kMufu, 1}, {kInteger, 22}}},
      {"div.u32", {{kMufu, 1}, {kInteger, 17}}},
      {"rem.u32", {{kMufu, 1}, {kInteger, 17}}},
      {"div.s64", {{kMufu, 1}, {kInteger, 79}}},
      {"rem.s64", {{kMufu, 1}, {kInteger, 79}}},
      {"div.u64", {{kMufu, 1}, {kInteger, 69}}},
      {"rem.u64", {{kMufu, 1}, {kInteger, 69}}},
      {"cvt.rni.f32.f32", {{kMufu, 1}, {}}},
      {"cvt.rn.f32.s32", {{kMufu, 1}, {}}},
      {"cvt.rn.f64.s64", {{kMufu, 1}, {}}},
      {"cvt.f64.f32", {{kMufu, 1}, {}}},
      {"cvt.rn.f32.f64", {{kMufu, 1}, {}}},
      {"cvt.sat.f32.f32", {{kFloat, 1}, {}}},
      {"cvt.rna.tf32.f32", {{kFloat, 1}, {}}},
      {"cvt.f32.f16", {{kFloat, 1}, {}}},
      {"cvt.rn.f16.f32", {{kFloat, 1}, {}}},
      {"cvt.f32.bf16", {{kInteger, 1}, {}}},
      {"cvt.rn.bf16.f32", {{kFloat, 1}, {}}},
      {"cvt.s64.s32", {{kInteger, 1}, {}}},
      {"mul.lo.s64", {{kInteger, 4}, {}}},
      {"mul.lo.u64", {{kInteger, 4}, {}}},
      {"min.s64", {{kInteger, 4}, {}}},
      {"max.s64", {{kInteger, 4}, {}}},
      {"min.u64", {{kInteger, 4}, {}}},
      {"max.u64", {{kInteger, 4}, {}}},
      {"bar.warp.sync", {{kBarrierClass, 1}, {}}},
      {"bar.sync", {{kBarrierClass, 1}, {}}},
      {"barrier.sync", {{kBarrierClass, 1}, {}}},
  };
  return table;
}

bool starts(const std::string& text, const char* prefix) {
  return text.rfind(prefix, 0) == 0;
}
bool ends(const std::string& text, const char* suffix) {
  const std::string end = suffix;
  return text.size() >= end.size() && text.compare(text.size() - end.size(), end.size(), end) == 0;
}

Cost of_access(const std::string& opcode, Space space) {
  const bool stores = starts(opcode, "st");
  if (space == Space::kShared) return {stores ? kStoreShared : kLoadShared, 1};
  if (space == Space::kLocal) return {kLocal, 1};
  if (space == Space::kParameter) return {};
  return {stores ? kStoreGlobal : kLoadGlobal, 1};
}

Cost of_kind(const std::string& opcode) {
  const bool wide = ends(opcode, "64");
  if (starts(opcode, "mma.")) return {kMma, 1};
  if (starts(opcode, "shfl.") || starts(opcode, "vote.") || starts(opcode, "redux.")) return {kShuffle, 1};
  if (starts(opcode, "bra") || opcode == "ret" || opcode == "exit") return {kBranchClass, 1};
  if (starts(opcode, "mov.") || starts(opcode, "cvta.") || starts(opcode, "cvt.")) return {};
  if (ends(opcode, ".pred")) return {kInteger, 1};
  if (starts(opcode, "selp.") || starts(opcode, "copysign.")) return {kInteger, wide ? 2.0f : 1.0f};
  if (ends(opcode, ".f32") || ends(opcode, ".f64")) {
    if (starts(opcode, "neg.") || starts(opcode, "abs.")) return {};
    if (ends(opcode, ".f64")) return {kDouble, 1};
    return {starts(opcode, "fma.") ? kFfma : kFloat, 1};
  }
  return {kInteger, wide ? 2.0f : 1.0f};
}

}  // namespace

void price(Instruction& one, const std::string& opcode) {
  const auto found = exact().find(opcode);
  if (found != exact().end()) {
    one.cost[0] = found->second.first;
    one.cost[1] = found->second.second;
  } else if (one.space != Space::kNone) {
    one.cost[0] = of_access(opcode, one.space);
  } else {
    one.cost[0] = of_kind(opcode);
  }
}

}  // namespace ptx
