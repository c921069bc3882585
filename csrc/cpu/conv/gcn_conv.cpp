// GCN convolution over every time step: a stack of one.
#include "cpu/simd/simd.h"
// simd.h first: it names the instruction set.
#include "cpu/conv/conv_stack.h"
#include "cpu/support/kernels.h"

namespace hiermt {
namespace cpu {
namespace HIERMT_ISA {

namespace {

template <class S>
ConvStackForward<S> stack_of_one(const GcnConvForward<S>& p) {
  return {p.graph, p.x,        p.steps,           p.hidden,     p.norm, 1,
          nullptr, &p.weights, Activation::kNone, p.activation, p.out};
}

}  // namespace

template <class S>
void gcn_conv_forward(const GcnConvForward<S>& p) {
  conv_stack_forward(stack_of_one(p));
}

template <class S>
void gcn_conv_backward(const GcnConvBackward<S, Compute<S>>& p) {
  const bool any = p.grads.lin_weight || p.grads.bias;
  conv_stack_backward<S>(
      {stack_of_one(p.forward), p.d_out, p.d_x, false, nullptr, any ? &p.grads : nullptr, p.d_norm});
}

HIERMT_INSTANTIATE(gcn_conv_forward)
HIERMT_INSTANTIATE(gcn_conv_backward)

}  // namespace HIERMT_ISA
}  // namespace cpu
}  // namespace hiermt
