// The device of the SIMT harness: its attributes, and which kernels ran on it.
#include <cstdio>
#include <set>

#include "simt.h"

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  // Those of an H100, unless a test sets a smaller GPU.
  const bool count = attribute == cudaDevAttrMultiProcessorCount;
  const char* given = std::getenv(count ? "HIERMT_SIMT_MULTIPROCESSORS" : "HIERMT_SIMT_SHARED_BYTES");
  *value = given != nullptr ? std::atoi(given) : count ? 132 : 232448;
  return cudaSuccess;
}

namespace simt {

extern "C" char __executable_start;  // of the linker

void record_launch(const void* kernel) {
  static const char* const path = std::getenv("HIERMT_SIMT_LAUNCHES");
  static std::set<const void*> recorded;
  if (path == nullptr || !recorded.insert(kernel).second) return;
  std::FILE* file = std::fopen(path, "a");
  if (file == nullptr) fail("harness", "cannot write %s", path);
  std::fprintf(file, "%tx\n", static_cast<const char*>(kernel) - &__executable_start);
  std::fclose(file);
}

}  // namespace simt
