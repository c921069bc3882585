// Calls one operator of csrc/host on the CUDA kernels compiled for the host: runner OP, arguments in the order
// of the schema on stdin. Replies with 0, the number of launches and the results, or with 1, the number of
// launches and the text of an error.
#include <cstdio>

#include "faults.h"
#include "simt.h"
#include "stable_abi.h"

namespace {

using simt::Tensor;

// A fault that the harness must see.
Tensor fault(int64_t which, Tensor in) {
  Tensor out = torch::stable::empty(in.sizes(), in.scalar_type(), std::nullopt, in.device());
  const auto error = hiermt::cuda::run_fault(
      static_cast<int>(which), static_cast<const float*>(in.const_data_ptr()),
      static_cast<float*>(out.mutable_data_ptr()), static_cast<int>(in.numel()), nullptr);
  if (error != cudaSuccess) throw std::runtime_error("error " + std::to_string(error));
  return out;
}

void reply(int64_t status) {
  const int64_t head[2] = {status, simt::launches()};
  std::fwrite(head, sizeof(head), 1, stdout);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2) return 64;
  simt::operators()["fault"] = simt::box(&fault);
  const auto found = simt::operators().find(argv[1]);
  if (found == simt::operators().end()) return 64;
  simt::Reader reader;
  try {
    const simt::Results results = found->second(reader);
    reply(0);
    for (const Tensor& tensor : results) simt::write(tensor);
  } catch (const std::exception& error) {
    reply(1);
    std::fputs(error.what(), stdout);
  }
  return std::fflush(stdout);
}
