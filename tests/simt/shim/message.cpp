// The arguments of one call from stdin, and its results to stdout.
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>

#include "stable_abi.h"

namespace simt {
namespace {

using torch::headeronly::ScalarType;

void read(void* to, size_t bytes) {
  if (bytes > 0 && std::fread(to, 1, bytes, stdin) != bytes) std::exit(64);
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

// Memory of a file from `offset` on, which nobody may write.
std::shared_ptr<char> map(const std::string& file, int64_t offset, int64_t bytes) {
  const int opened = open(file.c_str(), O_RDONLY);
  const auto size = static_cast<size_t>(offset + bytes);
  void* const begin = mmap(nullptr, size, PROT_READ, MAP_SHARED, opened, 0);
  if (begin == MAP_FAILED) throw std::runtime_error("cannot map " + file);
  close(opened);
  return {static_cast<char*>(begin) + offset, [begin, size](char*) { munmap(begin, size); }};
}

// dtype, dimensions, sizes, strides, 1 on the device, offset of the data, bytes, length of a name, and the bytes or
// the name of the file that has them. Data keeps its distance from an aligned address.
Tensor read_tensor() {
  constexpr int64_t kAlignment = 64;
  const auto type = static_cast<ScalarType>(read_one<int64_t>());
  const int64_t dims = read_one<int64_t>();
  std::vector<int64_t> sizes = read_sizes(dims), strides = read_sizes(dims);
  const bool cuda = read_one<int64_t>() != 0;
  const int64_t offset = read_one<int64_t>(), bytes = read_one<int64_t>();
  std::string file(static_cast<size_t>(read_one<int64_t>()), '\0');
  read(file.data(), file.size());
  std::shared_ptr<char> memory =
      file.empty() ? allocate(bytes, static_cast<size_t>(offset % kAlignment)) : map(file, offset, bytes);
  if (file.empty() && bytes > 0) read(memory.get(), static_cast<size_t>(bytes));
  return {type, std::move(sizes), std::move(strides), {cuda}, std::move(memory), bytes};
}

}  // namespace

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

}  // namespace simt
