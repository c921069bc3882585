#include "stable_abi.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <new>
#include <numeric>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#endif

#include "cpu/support/dispatch.h"
#include "cpu/support/graph_prepare.h"
#include "cpu/support/scratch.h"
#include "host/cuda_call.h"

namespace torch::stable {
namespace {

int64_t product(const std::vector<int64_t>& sizes) {
  return std::accumulate(sizes.begin(), sizes.end(), int64_t{1}, std::multiplies<>());
}

std::vector<int64_t> contiguous_strides(const std::vector<int64_t>& sizes) {
  std::vector<int64_t> strides(sizes.size(), 1);
  for (size_t i = sizes.size(); i-- > 1;) strides[i - 1] = strides[i] * std::max<int64_t>(sizes[i], 1);
  return strides;
}

}  // namespace

int64_t Tensor::numel() const {
  return product(sizes_);
}

bool Tensor::is_contiguous() const {
  const std::vector<int64_t> expected = contiguous_strides(sizes_);
  bool same = true;
  for (size_t i = 0; i < sizes_.size(); ++i) same = same && (sizes_[i] == 1 || strides_[i] == expected[i]);
  return same || numel() == 0;
}

Tensor empty(IntHeaderOnlyArrayRef shape, ScalarType type, std::optional<int>, Device device) {
  std::vector<int64_t> sizes(shape.begin(), shape.end());
  const int64_t bytes = product(sizes) * static_cast<int64_t>(headeronly::element_size(type));
  std::shared_ptr<char> memory = simt::allocate(bytes);
  std::memset(memory.get(), 0xff, static_cast<size_t>(bytes));
  std::vector<int64_t> strides = contiguous_strides(sizes);
  return {type, std::move(sizes), std::move(strides), device, std::move(memory), bytes};
}

Tensor contiguous(const Tensor& tensor) {
  Tensor result = empty(tensor.sizes(), tensor.scalar_type(), std::nullopt, tensor.device());
  const size_t size = tensor.element_size();
  const auto* from = static_cast<const char*>(tensor.const_data_ptr());
  auto* to = static_cast<char*>(result.mutable_data_ptr());
  for (int64_t i = 0; i < tensor.numel(); ++i, to += size) {
    int64_t rest = i, at = 0;
    for (int64_t axis = tensor.dim(); axis-- > 0;) {
      at += rest % tensor.size(axis) * tensor.stride(axis);
      rest /= tensor.size(axis);
    }
    std::memcpy(to, from + at * static_cast<int64_t>(size), size);
  }
  return result;
}

Tensor narrow(const Tensor&, int64_t, int64_t, int64_t) {
  std::abort();
}
Tensor clone(const Tensor&) {
  std::abort();
}

}  // namespace torch::stable

namespace simt {
namespace {

using torch::headeronly::ScalarType;

void read(void* to, size_t bytes) {
  if (std::fread(to, 1, bytes, stdin) != bytes) std::exit(64);
}
template <class T>
T read_one() {
  T value{};
  read(&value, sizeof(value));
  return value;
}

void expect(char tag) {
  const char got = read_one<char>();
  if (got != tag)
    throw std::runtime_error(std::string("the message has ") + got + " where " + tag + " belongs");
}

void write(const void* from, size_t bytes) {
  if (bytes > 0 && std::fwrite(from, 1, bytes, stdout) != bytes) std::exit(64);
}
void write_one(int64_t value) {
  write(&value, sizeof(value));
}

std::vector<int64_t> read_sizes(int64_t count) {
  std::vector<int64_t> sizes(static_cast<size_t>(count));
  for (int64_t& size : sizes) size = read_one<int64_t>();
  return sizes;
}

// dtype, dimensions, sizes, strides, 1 on the device, offset of the data, bytes, the bytes
Tensor read_tensor() {
  const auto type = static_cast<ScalarType>(read_one<int64_t>());
  const int64_t dims = read_one<int64_t>();
  std::vector<int64_t> sizes = read_sizes(dims), strides = read_sizes(dims);
  const bool cuda = read_one<int64_t>() != 0;
  const int64_t left = read_one<int64_t>(), bytes = read_one<int64_t>();
  std::shared_ptr<char> memory = allocate(bytes, static_cast<size_t>(left));
  if (bytes > 0) read(memory.get(), static_cast<size_t>(bytes));
  return {type, std::move(sizes), std::move(strides), {cuda}, std::move(memory), bytes};
}

}  // namespace

std::shared_ptr<char> allocate(int64_t bytes, size_t left) {
  auto* const begin = static_cast<char*>(std::malloc(left + static_cast<size_t>(bytes)));
  if (begin == nullptr) throw std::bad_alloc();
#if defined(__SANITIZE_ADDRESS__)
  ASAN_POISON_MEMORY_REGION(begin, left);
#endif
  return {begin + left, [begin](char*) { std::free(begin); }};
}

template <>
int64_t Reader::take<int64_t>() {
  expect('i');
  return read_one<int64_t>();
}
template <>
bool Reader::take<bool>() {
  return take<int64_t>() != 0;
}
template <>
double Reader::take<double>() {
  expect('d');
  return read_one<double>();
}
template <>
Tensor Reader::take<Tensor>() {
  expect('t');
  return read_tensor();
}
template <>
std::optional<Tensor> Reader::take<std::optional<Tensor>>() {
  const char tag = read_one<char>();
  if (tag == 'n') return std::nullopt;
  if (tag != 't') throw std::runtime_error("the message has no tensor where one belongs");
  return read_tensor();
}
template <>
std::vector<Tensor> Reader::take<std::vector<Tensor>>() {
  expect('l');
  std::vector<Tensor> list;
  for (int64_t count = read_one<int64_t>(); count > 0; --count) list.push_back(take<Tensor>());
  return list;
}

void write(const Tensor& tensor) {
  write_one(static_cast<int64_t>(tensor.scalar_type()));
  write_one(tensor.dim());
  for (const int64_t size : tensor.sizes()) write_one(size);
  write(tensor.const_data_ptr(), static_cast<size_t>(tensor.numel()) * tensor.element_size());
}

std::map<std::string, Boxed>& operators() {
  static std::map<std::string, Boxed> all;
  return all;
}

}  // namespace simt

namespace hiermt {

CudaScope::CudaScope(const char* op, const Tensor&) : op_(op) {}
CudaScope::~CudaScope() = default;
void CudaScope::check(int error) const {
  if (error != 0) fail(op_, "launch", "error ", error);
}

// The CPU's side of the host entries, which no tensor of the harness takes.
namespace cpu {
const Kernels& kernels() {
  std::abort();
}
ScratchCall::~ScratchCall() = default;
template <class I>
int64_t first_edge_outside(const GraphPrepare<I>&) {
  std::abort();
}
template <class I>
int64_t graph_prepare(const GraphPrepare<I>&) {
  std::abort();
}
template int64_t first_edge_outside(const GraphPrepare<int32_t>&);
template int64_t first_edge_outside(const GraphPrepare<int64_t>&);
template int64_t graph_prepare(const GraphPrepare<int32_t>&);
template int64_t graph_prepare(const GraphPrepare<int64_t>&);
}  // namespace cpu

}  // namespace hiermt
