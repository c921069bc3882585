// parallel_for(tasks, body): body(task) for every task in [0, tasks), on the pool that the host side has set,
// serially when it has set none. Which thread runs a task, and in which order, is unspecified: a kernel whose
// results may not depend on the number of threads gives each task its own outputs.
#pragma once

#include <cstdint>
#include <type_traits>

#include "cpu/simd/simd.h"

namespace hiermt {
namespace cpu {

using TaskRange = void (*)(int64_t begin, int64_t end, void* context);
// Calls run(begin, end, context) for ranges that cover [0, tasks) once.
using ParallelRunner = void (*)(int64_t tasks, TaskRange run, void* context);

// nullptr (the default): serial.
void set_parallel_runner(ParallelRunner runner);
void run_parallel(int64_t tasks, TaskRange run, void* context);

namespace HIERMT_ISA {

template <class Body>
HIERMT_INLINE void parallel_for(int64_t tasks, Body&& body) {
  using Plain = std::remove_reference_t<Body>;
  run_parallel(
      tasks,
      [](int64_t begin, int64_t end, void* context) {
        Plain& run = *static_cast<Plain*>(context);
        for (int64_t task = begin; task < end; ++task) run(task);
      },
      const_cast<void*>(static_cast<const void*>(&body)));
}

// Cuts `count` items into `groups` ranges that differ by at most one, the longer ones spread evenly, so that
// any run of consecutive groups holds its share; group g is [begin, end).
struct Range {
  int64_t begin, end;
};
HIERMT_INLINE Range split(int64_t count, int64_t groups, int64_t group) {
  return {count * group / groups, count * (group + 1) / groups};
}

}  // namespace HIERMT_ISA
}  // namespace cpu
}  // namespace hiermt
