#include "cpu/support/dispatch.h"

#include <cstdlib>
#include <string>

namespace hiermt::cpu {

namespace baseline {
const Kernels& kernels();
}
#ifdef HIERMT_HAS_AVX2
namespace avx2 {
const Kernels& kernels();
}
#endif
#ifdef HIERMT_HAS_AVX512
namespace avx512 {
const Kernels& kernels();
}
#endif

namespace {

struct Candidate {
  const char* name;
  bool supported;
  const Kernels& (*kernels)();
};

#ifdef HIERMT_HAS_AVX2
bool has_avx2() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2");
}
#endif
#ifdef HIERMT_HAS_AVX512
bool has_avx512() {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}
#endif

struct Choice {
  const Kernels* kernels;
  std::string error;
};

Choice choose() {
  // Best first; the last one runs on every machine.
  const Candidate candidates[] = {
#ifdef HIERMT_HAS_AVX512
      {"avx512", has_avx512(), &avx512::kernels},
#endif
#ifdef HIERMT_HAS_AVX2
      {"avx2", has_avx2(), &avx2::kernels},
#endif
      {"baseline", true, &baseline::kernels},
  };
  const char* variable = std::getenv("HIERMT_CPU_ISA");
  const std::string wanted = variable == nullptr ? "" : variable;
  Choice best{nullptr, ""};
  std::string names;
  for (const Candidate& candidate : candidates) {
    if (!candidate.supported) continue;
    if (wanted == candidate.name) return {&candidate.kernels(), ""};
    if (best.kernels == nullptr) best.kernels = &candidate.kernels();
    names += names.empty() ? candidate.name : std::string(", ") + candidate.name;
  }
  if (!wanted.empty()) {
    best.error = "HIERMT_CPU_ISA: expected one of " + names +
                 " (what this machine and this build have), got '" + wanted + "'; " + best.kernels->isa +
                 " is used";
  }
  return best;
}

const Choice& choice() {
  static const Choice kChoice = choose();
  return kChoice;
}

}  // namespace

const Kernels& kernels() {
  return *choice().kernels;
}

const char* isa_error() {
  return choice().error.c_str();
}

}  // namespace hiermt::cpu
