#include "cuda/fused/gatv2_stack_launch.cuh"

HIERMT_INSTANTIATE_GATV2_STACK(Half)
