#include "cpu/support/parallel.h"

#include <atomic>

namespace hiermt::cpu {

namespace {

std::atomic<ParallelRunner> g_runner{nullptr};

}  // namespace

void set_parallel_runner(ParallelRunner runner) {
  g_runner.store(runner, std::memory_order_release);
}

void run_parallel(int64_t tasks, TaskRange run, void* context) {
  if (tasks <= 0) return;
  const ParallelRunner runner = g_runner.load(std::memory_order_acquire);
  if (runner == nullptr || tasks == 1) {
    run(0, tasks, context);
  } else {
    runner(tasks, run, context);
  }
}

}  // namespace hiermt::cpu
