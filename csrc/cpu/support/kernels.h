// Every CPU kernel that the host side calls. A kernel is `template <class S> void name(const Parameters& p)`,
// S the storage type, defined in one source of this directory that ends with HIERMT_INSTANTIATE(name). To add
// one: a line in the list below, and that last line in its source.
#pragma once

#include "params.h"
#include "types.h"

// HIERMT_KERNEL(name, parameters as a type that depends on S)
#define HIERMT_KERNELS(HIERMT_KERNEL)                                  \
  HIERMT_KERNEL(conv_stack_forward, ConvStackForward<S>)               \
  HIERMT_KERNEL(conv_stack_backward, ConvStackBackward<S, Compute<S>>) \
  HIERMT_KERNEL(decision_forward, DecisionForward<S>)                  \
  HIERMT_KERNEL(decision_backward, DecisionBackward<S, Compute<S>>)    \
  HIERMT_KERNEL(decision_from_logits, DecisionFromLogits<S>)           \
  HIERMT_KERNEL(gated_scan_forward, GatedScanForward<S>)               \
  HIERMT_KERNEL(gated_scan_backward, GatedScanBackward<S, Compute<S>>) \
  HIERMT_KERNEL(multitask_loss_forward, MultitaskLossForward<S>)       \
  HIERMT_KERNEL(multitask_loss_backward, MultitaskLossBackward<S>)     \
  HIERMT_KERNEL(tgcn_layer_decision, TgcnLayerDecision<S>)             \
  HIERMT_KERNEL(tgcn_layer_forward, TgcnLayerForward<S>)               \
  HIERMT_KERNEL(tgcn_layer_backward, TgcnLayerBackward<S, Compute<S>>)

namespace hiermt {
namespace cpu {

#define HIERMT_DECLARE(name, ...) \
  template <class S>              \
  using name##_parameters = __VA_ARGS__;
HIERMT_KERNELS(HIERMT_DECLARE)
#undef HIERMT_DECLARE

// The kernels of one storage type, as compiled for one instruction set.
template <class S>
struct KernelTable {
#define HIERMT_POINTER(name, ...) void (*name)(const name##_parameters<S>&);
  HIERMT_KERNELS(HIERMT_POINTER)
#undef HIERMT_POINTER
};

struct Kernels {
  const char* isa;
  KernelTable<float> float32;
  KernelTable<double> float64;
  KernelTable<BFloat16> bfloat16;
};

}  // namespace cpu
}  // namespace hiermt

#ifdef HIERMT_ISA
namespace hiermt {
namespace cpu {
namespace HIERMT_ISA {

#define HIERMT_DECLARE(name, ...) \
  template <class S>              \
  void name(const name##_parameters<S>& p);
HIERMT_KERNELS(HIERMT_DECLARE)
#undef HIERMT_DECLARE

}  // namespace HIERMT_ISA
}  // namespace cpu
}  // namespace hiermt

#define HIERMT_INSTANTIATE(name)                                \
  template void name<float>(const name##_parameters<float>&);   \
  template void name<double>(const name##_parameters<double>&); \
  template void name<BFloat16>(const name##_parameters<BFloat16>&);
#endif
