#include "host/torch_error.h"

#include <dlfcn.h>

namespace hiermt {

std::string torch_error() {
  using What = const char* (*)();
  // Looked up by name: torch 2.11 has no such function.
  static const What kWhat = [] {
    void* library = dlopen("libtorch_cpu.so", RTLD_LAZY | RTLD_NOLOAD);
    return library == nullptr
               ? nullptr
               : reinterpret_cast<What>(dlsym(library, "torch_exception_get_what_without_backtrace"));
  }();
  const char* const text = kWhat == nullptr ? nullptr : kWhat();
  return text == nullptr ? "" : text;
}

}  // namespace hiermt
