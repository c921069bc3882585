// GATv2 convolution over every time step: a stack of one.
#include "cpu/simd/simd.h"
// simd.h first: it names the instruction set.
#include "cpu/conv/conv_stack.h"
#include "cpu/support/kernels.h"

namespace hiermt {
namespace cpu {
namespace HIERMT_ISA {

namespace {

template <class S>
ConvStackForward<S> stack_of_one(const GatV2ConvForward<S>& p) {
  const S* edge_weight = p.weights.lin_edge_weight ? p.edge_weight : nullptr;
  return {p.graph,    p.x,     p.steps,           p.hidden,     edge_weight, 1,
          &p.weights, nullptr, Activation::kNone, p.activation, p.out};
}

}  // namespace

template <class S>
void gatv2_conv_forward(const GatV2ConvForward<S>& p) {
  conv_stack_forward(stack_of_one(p));
}

template <class S>
void gatv2_conv_backward(const GatV2ConvBackward<S, Compute<S>>& p) {
  const GatV2Grads<Compute<S>>& g = p.grads;
  const bool any = g.lin_l_weight || g.lin_l_bias || g.lin_r_weight || g.lin_r_bias || g.att ||
                   g.lin_edge_weight || g.bias;
  conv_stack_backward<S>(
      {stack_of_one(p.forward), p.d_out, p.d_x, false, any ? &g : nullptr, nullptr, p.d_edge_weight});
}

HIERMT_INSTANTIATE(gatv2_conv_forward)
HIERMT_INSTANTIATE(gatv2_conv_backward)

}  // namespace HIERMT_ISA
}  // namespace cpu
}  // namespace hiermt
