#pragma once

#include <cstddef>

namespace ptx {

// An argument of a kernel: the object that the launch got.
struct Argument {
  const void* data;
  size_t bytes;
};

}  // namespace ptx
