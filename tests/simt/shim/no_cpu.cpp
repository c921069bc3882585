// What the host entries need of a stream, and of the CPU, whose kernels no tensor of the harness takes.
#include <cstdlib>

#include "cpu/support/dispatch.h"
#include "cpu/support/graph_prepare.h"
#include "cpu/support/scratch.h"
#include "host/checks.h"
#include "host/cuda_call.h"

namespace hiermt {

CudaScope::CudaScope(const char* op, const Tensor&) : op_(op) {}
CudaScope::~CudaScope() = default;
void CudaScope::check(int error) const {
  if (error != 0) fail(op_, "launch", "error ", error);
}

// The CPU's side of the host entries, which no tensor of the harness takes.
namespace cpu {
const Kernels& kernels() {
  std::abort();
}
ScratchCall::~ScratchCall() = default;
template <class I>
int64_t first_edge_outside(const GraphPrepare<I>&) {
  std::abort();
}
template <class I>
int64_t graph_prepare(const GraphPrepare<I>&) {
  std::abort();
}
template int64_t first_edge_outside(const GraphPrepare<int32_t>&);
template int64_t first_edge_outside(const GraphPrepare<int64_t>&);
template int64_t graph_prepare(const GraphPrepare<int32_t>&);
template int64_t graph_prepare(const GraphPrepare<int64_t>&);
}  // namespace cpu

}  // namespace hiermt
