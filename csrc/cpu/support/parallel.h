// parallel_for(tasks, body): runs body(task) for every task in [0, tasks), on the pool set by the host side
// or serially without one. Which thread runs a task, and in which order, is unspecified. Each task owns its
// outputs, and the split into tasks depends on the problem alone, so results do not depend on the number of
// threads.
#pragma once

#include <cstdint>
#include <type_traits>

#include "cpu/simd/simd.h"

namespace hiermt::cpu {

using TaskRange = void (*)(int64_t begin, int64_t end, void* context);
// Calls run(begin, end, context) for ranges that partition [0, tasks).
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

struct Range {
  int64_t begin, end;
};

// Range `group` of `count` items split into `groups` ranges. Their sizes differ by at most one, and the
// longer ones are spread evenly.
HIERMT_INLINE Range split(int64_t count, int64_t groups, int64_t group) {
  return {count * group / groups, count * (group + 1) / groups};
}

// Rows of one task of a row-wise kernel, and of one partial sum over rows.
constexpr int64_t kRowsPerTask = 512;
HIERMT_INLINE int64_t row_tasks(int64_t rows) {
  return (rows + kRowsPerTask - 1) / kRowsPerTask;
}
HIERMT_INLINE Range rows_of(int64_t task, int64_t rows) {
  return {task * kRowsPerTask, min((task + 1) * kRowsPerTask, rows)};
}

}  // namespace HIERMT_ISA
}  // namespace hiermt::cpu
