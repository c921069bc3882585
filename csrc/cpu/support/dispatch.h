// Which of the compiled instruction sets runs on this machine.
#pragma once

#include "cpu/support/kernels.h"

namespace hiermt {
namespace cpu {

// The best set that this machine has, or the one that the environment variable HIERMT_CPU_ISA names
// (baseline, avx2 or avx512); decided at the first call.
const Kernels& kernels();

// Why HIERMT_CPU_ISA could not be followed, or "" when all is well.
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

}  // namespace cpu
}  // namespace hiermt
