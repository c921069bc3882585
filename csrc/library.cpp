// The C interface of libhiermt. Loading the library registers the operators (schema.cpp and the host entries do so
// in static initialisers). No symbol of Python is used: every Python, and a C++ program, loads the same file.
// hiermt/_C.py calls these functions.
#include <cstdint>
#include <cstring>

#include "cpu/support/dispatch.h"
#include "cpu/support/scratch.h"

#define HIERMT_EXPORT extern "C" __attribute__((visibility("default")))

namespace {

struct Fact {
  const char* key;
  const char* value;
};

// A list is joined with commas; a part that was not built has no entry.
constexpr Fact kFacts[] = {
    {"version", HIERMT_VERSION},       {"torch", HIERMT_TORCH_VERSION},
    {"abi_target", HIERMT_ABI_TARGET}, {"compiler", HIERMT_COMPILER},
    {"cpu_isas", HIERMT_CPU_ISAS},     {"torch_cuda", HIERMT_TORCH_CUDA},
#ifdef HIERMT_CUDA_VERSION
    {"cuda", HIERMT_CUDA_VERSION},     {"cuda_architectures", HIERMT_CUDA_ARCHITECTURES},
#endif
};

}  // namespace

// The value of `key`, nullptr if there is none; valid for the life of the process.
HIERMT_EXPORT const char* hiermt_build_info(const char* key) {
  // These depend on the machine and on HIERMT_CPU_ISA.
  if (std::strcmp(key, "cpu_isa") == 0) return hiermt::cpu::kernels().isa;
  if (std::strcmp(key, "cpu_isa_error") == 0) return hiermt::cpu::isa_error();
  for (const Fact& fact : kFacts) {
    if (std::strcmp(key, fact.key) == 0) return fact.value;
  }
  return nullptr;
}

// Returns the scratch memory of the CPU kernels to the system; the result is its size in bytes.
HIERMT_EXPORT int64_t hiermt_release_scratch() {
  return static_cast<int64_t>(hiermt::cpu::release_scratch());
}
