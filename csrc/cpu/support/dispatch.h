// Chooses among the compiled instruction sets the one that runs on this machine.
#pragma once

#include "cpu/support/kernels.h"

namespace hiermt::cpu {

// The kernels of the best set of this machine, or of the set named by the environment variable HIERMT_CPU_ISA
// (baseline, avx2 or avx512). Chosen at the first call.
const Kernels& kernels();

// Why HIERMT_CPU_ISA was ignored, or "".
const char* isa_error();

template <class S>
const KernelTable<S>& kernels_of();
template <>
inline const KernelTable<float>& kernels_of<float>() {
  return kernels().float32;
}
template <>
inline const KernelTable<double>& kernels_of<double>() {
  return kernels().float64;
}
template <>
inline const KernelTable<BFloat16>& kernels_of<BFloat16>() {
  return kernels().bfloat16;
}

}  // namespace hiermt::cpu
