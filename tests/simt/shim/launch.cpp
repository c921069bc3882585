// Launches of kernels: what a GPU would refuse, the order of threads and blocks, and which machine runs them.
#include <algorithm>
#include <cstdlib>
#include <map>
#include <numeric>
#include <random>
#include <utility>
#include <vector>

#include "machine.h"
#include "scheduler.h"

namespace simt {
namespace {

constexpr size_t kMaxThreads = 1024;
constexpr size_t kDefaultSharedBytes = 48 * 1024;
int64_t launch_count = 0;
// Kernels that may have more shared memory than every kernel may.
std::map<const void*, size_t> allowed_shared;

}  // namespace

int64_t launches() {
  return launch_count;
}

cudaError_t allow_shared(const void* kernel, size_t bytes) {
  int limit = 0;
  cudaDeviceGetAttribute(&limit, cudaDevAttrMaxSharedMemoryPerBlockOptin, 0);
  if (bytes > std::max(kDefaultSharedBytes, static_cast<size_t>(limit))) return cudaErrorInvalidValue;
  if (bytes != static_cast<size_t>(limit)) {
    fail("shared memory", "%zu bytes allowed to a kernel of which another host thread may launch all %d",
         bytes, limit);
  }
  allowed_shared[kernel] = bytes;
  return cudaSuccess;
}

namespace {

// Addresses of the paddings that __launch_bounds__ leaves, one for each kernel that has it.
extern "C" const uintptr_t __start___patchable_function_entries[], __stop___patchable_function_entries[];

// Threads that __launch_bounds__ allows a block of `kernel`; 0 if it says nothing.
size_t launch_bound(const void* kernel) {
  const auto entry = reinterpret_cast<uintptr_t>(kernel);
  uintptr_t padding = 0;
  for (const uintptr_t* at = __start___patchable_function_entries; at != __stop___patchable_function_entries;
       ++at) {
    if (*at <= entry) padding = std::max(padding, *at);
  }
  constexpr unsigned char kNop = 0x90;
  for (uintptr_t at = padding; padding != 0 && at < entry; ++at) {
    if (*reinterpret_cast<const unsigned char*>(at) != kNop) padding = 0;
  }
  return padding == 0 ? 0 : entry - padding;
}

uint64_t order_seed() {
  const char* text = std::getenv("HIERMT_SIMT_ORDER");
  return text == nullptr ? 0 : std::strtoull(text, nullptr, 10);
}

// 0, 1, ... or, with HIERMT_SIMT_ORDER, the next permutation.
std::vector<size_t> next_order(size_t count) {
  static const uint64_t seed = order_seed();
  static std::mt19937_64 random(seed);
  std::vector<size_t> order(count);
  std::iota(order.begin(), order.end(), size_t{0});
  if (seed != 0) {
    for (size_t i = count; i > 1; --i) std::swap(order[i - 1], order[random() % i]);
  }
  return order;
}

// Ends the process where a GPU would not launch.
void check_launch(const void* kernel, dim3 grid, dim3 threads, size_t shared_bytes) {
  constexpr unsigned kMaxGridX = 0x7fffffff, kMaxGridYZ = 65535, kMaxThreadsZ = 64;
  blockIdx = {};
  if (grid.x > kMaxGridX || grid.y > kMaxGridYZ || grid.z > kMaxGridYZ) {
    fail("grid", "%u x %u x %u blocks", grid.x, grid.y, grid.z);
  }
  const size_t count = size_t{threads.x} * threads.y * threads.z;
  if (count > kMaxThreads || threads.z > kMaxThreadsZ) {
    fail("grid", "%u x %u x %u threads a block", threads.x, threads.y, threads.z);
  }
  const auto allowed = allowed_shared.find(kernel);
  const size_t limit = allowed == allowed_shared.end() ? kDefaultSharedBytes : allowed->second;
  if (shared_bytes > limit)
    fail("grid", "%zu bytes of shared memory, the kernel may have %zu", shared_bytes, limit);
  const size_t bound = launch_bound(kernel);
  if (bound != 0 && count > bound) {
    fail("launch bounds", "%zu threads a block, the kernel allows %zu", count, bound);
  }
}

}  // namespace

cudaError_t launch(const void* kernel, dim3 grid, dim3 threads, size_t shared_bytes,
                   const std::function<void()>& body, const std::vector<ptx::Argument>& arguments) {
  static const bool compiled = std::getenv("HIERMT_SIMT_PTX") != nullptr;
  static const bool counted_alone = std::getenv("HIERMT_SIMT_COUNT_ALONE") != nullptr;
  ++launch_count;
  check_launch(kernel, grid, threads, shared_bytes);
  record_launch(kernel);
  if (counted_alone) return cudaSuccess;
  if (compiled) {
    const ptx::Geometry geometry{{grid.x, grid.y, grid.z}, {threads.x, threads.y, threads.z}, shared_bytes};
    ptx::launch(kernel, geometry, arguments, next_order);
  } else {
    run_grid(grid, threads, shared_bytes, body, next_order);
  }
  return cudaSuccess;
}

}  // namespace simt
