#include "host/cuda_call.h"

#ifdef HIERMT_WITH_CUDA

#include <dlfcn.h>

#include "cuda/support/runtime.h"

namespace hiermt {
namespace {

// torch's own device guard and stream live in libtorch_cuda, which a CPU-only torch does not have. They are
// looked up when the first CUDA tensor arrives, so that one binary serves both.
struct TorchCuda {
  int32_t (*create_guard)(int32_t device, void** guard) = nullptr;
  int32_t (*delete_guard)(void* guard) = nullptr;
  int32_t (*current_stream)(int32_t device, void** stream) = nullptr;

  TorchCuda() {
    void* library = dlopen("libtorch_cuda.so", RTLD_LAZY | RTLD_NOLOAD);
    if (library == nullptr) return;
    find(library, "aoti_torch_create_cuda_guard", create_guard);
    find(library, "aoti_torch_delete_cuda_guard", delete_guard);
    find(library, "aoti_torch_get_current_cuda_stream", current_stream);
  }

  bool complete() const { return create_guard && delete_guard && current_stream; }

 private:
  template <class Function>
  static void find(void* library, const char* name, Function& function) {
    function = reinterpret_cast<Function>(dlsym(library, name));
  }
};

const TorchCuda& torch_cuda() {
  static const TorchCuda kTorchCuda;
  return kTorchCuda;
}

}  // namespace

CudaScope::CudaScope(const char* op, const Tensor& tensor) : op_(op) {
  const TorchCuda& torch = torch_cuda();
  if (!torch.complete())
    fail(op, "device", "a CUDA tensor came, but libtorch_cuda is not loaded or lacks streams");
  const int32_t device = tensor.get_device_index();
  if (torch.create_guard(device, &guard_) != 0) fail(op, "device", "cannot make cuda:", device, " current");
  // The statically linked runtime keeps its own idea of the current device.
  const int error = cuda::set_device(device);
  if (error == 0 && torch.current_stream(device, &stream_) == 0) return;
  torch.delete_guard(guard_);
  fail(op, "device", "no stream on cuda:", device, error ? ": " : "", error ? cuda::error_string(error) : "");
}

CudaScope::~CudaScope() {
  torch_cuda().delete_guard(guard_);
}

void CudaScope::check(int error) const {
  if (error != 0) fail(op_, "launch", cuda::error_string(error));
}

}  // namespace hiermt

#endif  // HIERMT_WITH_CUDA
