// The table of this instruction set.
#include "cpu/simd/simd.h"
// simd.h first: it names the instruction set.
#include "cpu/support/kernels.h"

namespace hiermt::cpu::HIERMT_ISA {

namespace {

#define HIERMT_STRING(name) HIERMT_STRING_OF(name)
#define HIERMT_STRING_OF(name) #name

template <class S>
constexpr KernelTable<S> table() {
  return KernelTable<S>{
#define HIERMT_ENTRY(name, ...) &name<S>,
      HIERMT_KERNELS(HIERMT_ENTRY)
#undef HIERMT_ENTRY
  };
}

}  // namespace

const Kernels& kernels() {
  static constexpr Kernels kKernels{HIERMT_STRING(HIERMT_ISA), table<float>(), table<double>(),
                                    table<BFloat16>()};
  return kKernels;
}

}  // namespace hiermt::cpu::HIERMT_ISA
