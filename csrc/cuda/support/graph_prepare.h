// Launcher of the graph preparation. Pointers of GraphPrepare are device memory; blocks is not written. An
// edge with an end outside [0, S) is dropped like a loop: who wants an error checks before. Nothing
// synchronises or allocates.
#pragma once

#include <cstddef>

#include "cpu/support/graph_prepare.h"

namespace hiermt::cuda {

using cpu::GraphPrepare;
using cpu::LoopRule;

template <class I>
size_t graph_prepare_workspace(const GraphPrepare<I>& p);
// `stream` is a cudaStream_t, the result a cudaError_t.
template <class I>
int graph_prepare(const GraphPrepare<I>& p, void* workspace, void* stream);

}  // namespace hiermt::cuda
