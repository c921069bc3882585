#include "cuda/fused/gatv2_stack_backward_launch.cuh"

HIERMT_INSTANTIATE_GATV2_STACK_BACKWARD(BFloat16)
