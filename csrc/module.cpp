// The Python module hiermt._C. Importing it registers the operators (schema.cpp and the host entries do so in
// static initialisers); build_info() says what the binary holds, release_scratch() gives memory back.
#include <pybind11/pybind11.h>

#include <algorithm>
#include <string>

#include "cpu/support/dispatch.h"
#include "cpu/support/scratch.h"

namespace py = pybind11;

namespace {

py::tuple split(const std::string& list) {
  py::list parts;
  for (size_t begin = 0; begin < list.size();) {
    const size_t end = std::min(list.find(',', begin), list.size());
    parts.append(list.substr(begin, end - begin));
    begin = end + 1;
  }
  return py::tuple(parts);
}

py::dict build_info() {
  py::dict info;
  info["version"] = HIERMT_VERSION;
  info["torch"] = HIERMT_TORCH_VERSION;
  info["abi_target"] = HIERMT_ABI_TARGET;
  info["compiler"] = HIERMT_COMPILER;
  info["cpu_isas"] = split(HIERMT_CPU_ISAS);
  info["cpu_isa"] = hiermt::cpu::kernels().isa;
  info["cpu_isa_error"] = hiermt::cpu::isa_error();
#ifdef HIERMT_CUDA_VERSION
  info["cuda"] = HIERMT_CUDA_VERSION;
  info["cuda_architectures"] = split(HIERMT_CUDA_ARCHITECTURES);
#else
  info["cuda"] = py::none();
  info["cuda_architectures"] = py::tuple();
#endif
  return info;
}

}  // namespace

PYBIND11_MODULE(_C, module) {
  module.doc() = "Native operators of hiermt; importing the module registers them with torch.";
  module.def("release_scratch", &hiermt::cpu::release_scratch,
             "Gives the scratch memory of the CPU kernels back to the system; returns the bytes.");
  module.def("build_info", &build_info, "What this binary was built from and for.");
}
