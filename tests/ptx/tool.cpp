// Runs a kernel of a PTX file on arrays: tool FILE BLOCKS THREADS SHARED_BYTES. The arrays are read from stdin,
// each as its size in bytes and its bytes; the kernel gets a pointer to each, and their bytes go to stdout.
// With FILE alone it decodes every kernel and prints how many there are.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <memory>
#include <string>

#include "machine.h"

int main(int argc, char** argv) {
  if (argc != 2 && argc != 5) return 64;
  std::ifstream file(argv[1], std::ios::binary);
  const std::string text{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
  if (argc == 2) {
    std::printf("%zu", ptx::decode_all(text));
    return 0;
  }
  std::vector<std::unique_ptr<char[]>> arrays;
  std::vector<uint64_t> sizes;
  std::vector<void*> pointers;
  for (uint64_t size = 0; std::fread(&size, sizeof(size), 1, stdin) == 1;) {
    arrays.emplace_back(new char[size]);
    sizes.push_back(size);
    if (std::fread(arrays.back().get(), 1, size, stdin) != size) return 64;
  }
  for (const auto& array : arrays) pointers.push_back(array.get());
  std::vector<ptx::Argument> arguments;
  for (void*& pointer : pointers) arguments.push_back({&pointer, sizeof(pointer)});
  const auto number = [&](int i) { return static_cast<unsigned>(std::strtoul(argv[i], nullptr, 10)); };
  ptx::run_text(text, {{number(2), 1, 1}, {number(3), 1, 1}, number(4)}, arguments);
  for (size_t i = 0; i < arrays.size(); ++i) std::fwrite(arrays[i].get(), 1, sizes[i], stdout);
  ptx::write_counts();
  return 0;
}
