// The second wall of argument checks. Python raises the typed errors before an op is called; what gets past
// it (a call of torch.ops.hiermt.* by hand) fails here with RuntimeError, before anything is read or written:
//   hiermt::decision: h: expected a shape [N, 16], got [4, 8]
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/shim_utils.h>

#include <cstdint>
#include <initializer_list>
#include <limits>
#include <sstream>
#include <stdexcept>
#include <string>

namespace hiermt {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

template <class... Parts>
[[noreturn]] inline void fail(const char* op, const char* argument, const Parts&... parts) {
  std::ostringstream message;
  message << "hiermt::" << op << ": " << argument << ": ";
  (message << ... << parts);
  throw std::runtime_error(message.str());
}

inline std::string shape_of(const Tensor& tensor) {
  std::ostringstream text;
  text << '[';
  for (int64_t i = 0; i < tensor.dim(); ++i) text << (i ? ", " : "") << tensor.size(i);
  text << ']';
  return text.str();
}

inline const char* name_of(ScalarType type) {
  return torch::headeronly::toString(type);
}

inline std::string device_of(const Tensor& tensor) {
  if (tensor.is_cpu()) return "cpu";
  return (tensor.is_cuda() ? "cuda:" : "device ") + std::to_string(tensor.get_device_index());
}

// A size in an expected shape: a number that must match, or a letter that stands for any.
struct Extent {
  Extent(int64_t size) : size(size), letter(nullptr) {}     // NOLINT: reads as a shape at the call
  Extent(const char* letter) : size(-1), letter(letter) {}  // NOLINT
  int64_t size;
  const char* letter;
};

// More elements than any machine holds. Sizes are bounded where they enter, so that sums and products of a
// few of them fit 64 bits.
constexpr int64_t kMaxElements = int64_t{1} << 48;

// Refuses sizes whose product passes kMaxElements. A size of 0 counts as 1: the other sizes of an empty
// tensor enter products of their own.
inline void check_count(const char* op, const char* argument, std::initializer_list<int64_t> sizes) {
  int64_t count = 1;
  for (const int64_t size : sizes) {
    const int64_t factor = size > 0 ? size : 1;
    if (factor <= kMaxElements / count) {
      count *= factor;
      continue;
    }
    std::ostringstream text;
    for (const int64_t one : sizes) text << (text.tellp() > 0 ? " * " : "") << one;
    fail(op, argument, "expected sizes whose product is at most 2^48, got ", text.str());
  }
}

// Refuses sizes beyond kMaxElements, and a shape that reaches beyond the tensor's memory, such as that of a
// tensor whose storage was resized to nothing.
inline void check_memory(const char* op, const char* argument, const Tensor& tensor) {
  int64_t last = 0, bytes = 0, count = 1;
  for (int64_t i = 0; i < tensor.dim(); ++i) {
    const int64_t size = tensor.size(i), stride = tensor.stride(i);
    const int64_t factor = size > 0 ? size : 1;
    if (factor > kMaxElements / count || stride > kMaxElements / factor) {
      fail(op, argument, "expected at most 2^48 elements, got a tensor of shape ", shape_of(tensor));
    }
    count *= factor;
    last += (factor - 1) * stride;
  }
  if (tensor.numel() == 0) return;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_storage_size(tensor.get(), &bytes));
  if (last + tensor.storage_offset() >= bytes / static_cast<int64_t>(tensor.element_size())) {
    fail(op, argument, "its storage of ", bytes, " bytes is too small for the shape ", shape_of(tensor));
  }
}

inline void check_shape(const char* op, const char* argument, const Tensor& tensor,
                        std::initializer_list<Extent> expected) {
  check_memory(op, argument, tensor);
  bool fits = tensor.dim() == static_cast<int64_t>(expected.size());
  int64_t axis = 0;
  for (const Extent& extent : expected) {
    fits = fits && (extent.letter != nullptr || tensor.size(axis) == extent.size);
    ++axis;
  }
  if (fits) return;
  std::ostringstream text;
  const char* separator = "";
  for (const Extent& extent : expected) {
    text << separator;
    extent.letter ? text << extent.letter : text << extent.size;
    separator = ", ";
  }
  fail(op, argument, "expected a shape [", text.str(), "], got ", shape_of(tensor));
}

inline void check_dtype(const char* op, const char* argument, const Tensor& tensor, ScalarType expected) {
  const ScalarType got = tensor.scalar_type();
  if (got != expected) fail(op, argument, "expected dtype ", name_of(expected), ", got ", name_of(got));
}

inline void check_index_dtype(const char* op, const char* argument, const Tensor& tensor) {
  const ScalarType got = tensor.scalar_type();
  if (got != ScalarType::Int && got != ScalarType::Long) {
    fail(op, argument, "expected dtype Int or Long, got ", name_of(got));
  }
}

inline void check_device(const char* op, const char* argument, const Tensor& tensor, const char* other_name,
                         const Tensor& other) {
  if (tensor.is_cpu() != other.is_cpu() || tensor.get_device_index() != other.get_device_index()) {
    fail(op, argument, "is on ", device_of(tensor), ", ", other_name, " on ", device_of(other));
  }
}

inline void check_contiguous(const char* op, const char* argument, const Tensor& tensor) {
  if (!tensor.is_contiguous()) fail(op, argument, "expected contiguous memory");
}

// A dense parameter: shape, dtype and device of `like`, contiguous.
inline void check_parameter(const char* op, const char* argument, const Tensor& tensor,
                            std::initializer_list<Extent> expected, const char* like_name,
                            const Tensor& like) {
  check_shape(op, argument, tensor, expected);
  check_dtype(op, argument, tensor, like.scalar_type());
  check_device(op, argument, tensor, like_name, like);
  check_contiguous(op, argument, tensor);
}

}  // namespace hiermt
