// What every host entry does with tensors besides checking them: typed pointers, outputs, a switch on the
// dtype.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <type_traits>

#include "cpu/support/out_of_memory.h"
#include "host/checks.h"
#include "host/torch_error.h"
#include "types.h"

namespace hiermt {

// Stands for a storage type in a call: dispatch_floating(..., [&](auto type) { using S = typename
// decltype(type)::type; })
template <class S>
struct Type {
  using type = S;
};

// Calls body(Type<S>{}) with the storage type S of `dtype`.
template <class Body>
auto dispatch_floating(const char* op, const char* argument, ScalarType dtype, Body&& body) {
  switch (dtype) {
    case ScalarType::Float:
      return body(Type<float>{});
    case ScalarType::Double:
      return body(Type<double>{});
    case ScalarType::BFloat16:
      return body(Type<BFloat16>{});
    case ScalarType::Half:
      return body(Type<Half>{});
    default:
      fail(op, argument, "expected dtype Float, Double, BFloat16 or Half, got ", name_of(dtype));
  }
}

template <class Body>
auto dispatch_index(const char* op, const char* argument, const Tensor& tensor, Body&& body) {
  check_index_dtype(op, argument, tensor);
  return tensor.scalar_type() == ScalarType::Int ? body(Type<int32_t>{}) : body(Type<int64_t>{});
}

// The dtype that parameters' gradients are accumulated in: Compute<S> of the storage type.
inline ScalarType compute_dtype(ScalarType dtype) {
  return dtype == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

template <class S>
const S* data(const Tensor& tensor) {
  return static_cast<const S*>(tensor.const_data_ptr());
}
template <class S>
const S* data(const std::optional<Tensor>& tensor) {
  return tensor ? data<S>(*tensor) : nullptr;
}
template <class S>
S* mutable_data(const Tensor& tensor) {
  return static_cast<S*>(tensor.mutable_data_ptr());
}
// nullptr for an output that is not wanted, which is an empty tensor.
template <class S>
S* output(const Tensor& tensor, bool wanted) {
  return wanted ? mutable_data<S>(tensor) : nullptr;
}

// allocate(), or OutOfMemory where it fails. On a GPU an earlier kernel may be the cause: torch's own words say so
// where they can be had.
template <class Allocate>
Tensor allocated(const Tensor& like, const char* what_for, double elements, size_t element_size,
                 Allocate&& allocate) {
  try {
    return allocate();
  } catch (const std::exception&) {
    const double bytes = elements * static_cast<double>(element_size);
    if (like.is_cpu()) throw OutOfMemory(what_for, bytes);
    const std::string words = torch_error();
    if (words.empty() || words.find("out of memory") != std::string::npos) {
      throw OutOfMemory(what_for, bytes, (" on " + device_of(like)).c_str());
    }
    throw std::runtime_error(std::string("hiermt: could not allocate ") + what_for + " on " +
                             device_of(like) + ": " + words);
  }
}

// The tensor itself where it is contiguous already.
inline Tensor dense(const Tensor& tensor) {
  if (tensor.is_contiguous()) return tensor;
  return allocated(tensor, "a contiguous copy", static_cast<double>(tensor.numel()), tensor.element_size(),
                   [&] { return torch::stable::contiguous(tensor); });
}

// Contiguous and uninitialised, on the device of `like`.
inline Tensor empty(std::initializer_list<int64_t> sizes, ScalarType dtype, const Tensor& like) {
  const torch::headeronly::IntHeaderOnlyArrayRef shape(sizes.begin(), sizes.size());
  double elements = 1;
  for (const int64_t size : sizes) elements *= static_cast<double>(size);
  return allocated(like, "an output", elements, aoti_torch_dtype_element_size(static_cast<int32_t>(dtype)),
                   [&] { return torch::stable::empty(shape, dtype, std::nullopt, like.device()); });
}

}  // namespace hiermt
