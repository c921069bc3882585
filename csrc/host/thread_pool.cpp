// Lends torch's thread pool to the CPU kernels, so that torch.set_num_threads() holds for them too.
#include <torch/csrc/stable/ops.h>

#include <exception>
#include <mutex>

#include "cpu/support/parallel.h"

namespace hiermt {
namespace {

void run_on_torch_pool(int64_t tasks, cpu::TaskRange run, void* context) {
  // The stable ABI would carry an exception across, but not what it says.
  std::mutex mutex;
  std::exception_ptr first;
  torch::stable::parallel_for(0, tasks, /*grain_size=*/1, [&](int64_t begin, int64_t end) {
    try {
      run(begin, end, context);
    } catch (...) {
      const std::lock_guard<std::mutex> lock(mutex);
      if (!first) first = std::current_exception();
    }
  });
  if (first) std::rethrow_exception(first);
}

[[maybe_unused]] const bool registered = [] {
  cpu::set_parallel_runner(&run_on_torch_pool);
  return true;
}();

}  // namespace
}  // namespace hiermt
