// Launcher of the graph preparation. Pointers of GraphPrepare are device memory; `blocks` is not written. An
// edge with an end outside the nodes is dropped like a loop: reporting it would take a synchronisation. The
// launcher neither synchronises nor allocates.
#pragma once

#include <cstddef>

#include "params.h"

namespace hiermt::cuda {

template <class I>
size_t graph_prepare_workspace(const GraphPrepare<I>& p);
// `stream` is a cudaStream_t, the result a cudaError_t.
template <class I>
int graph_prepare(const GraphPrepare<I>& p, void* workspace, void* stream);

}  // namespace hiermt::cuda
