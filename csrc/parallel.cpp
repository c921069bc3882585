// Lends torch's thread pool to the CPU kernels, so that torch.set_num_threads() holds for them too.
#include "cpu/parallel.h"

#include <torch/csrc/stable/ops.h>

namespace hiermt {
namespace {

void run_on_torch_pool(int64_t tasks, cpu::TaskRange run, void* context) {
  torch::stable::parallel_for(0, tasks, /*grain_size=*/1,
                              [=](int64_t begin, int64_t end) { run(begin, end, context); });
}

[[maybe_unused]] const bool registered = [] {
  cpu::set_parallel_runner(&run_on_torch_pool);
  return true;
}();

}  // namespace
}  // namespace hiermt
