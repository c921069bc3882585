// Calls operators of csrc/host on the CUDA kernels compiled for the host, each in a fork of its own: to start a
// program with sanitizers takes far longer than the call. A request on stdin is two lengths, the name of the operator
// and its arguments in the order of the schema. The reply is the exit status of the fork (of a signal, its negative
// number), two lengths, and what the fork wrote to stdout and stderr. To stdout it writes 0 or 1, the
// number of launches, the most bytes that it had allocated at once, and the results or the text of an error.
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <string>

#include "faults.h"
#include "machine.h"
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
  const int64_t head[3] = {status, simt::launches(), simt::peak_bytes()};
  std::fwrite(head, sizeof(head), 1, stdout);
}

// Runs in the fork.
int call(const std::string& op) {
  const auto found = simt::operators().find(op);
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

// False at the end of the input.
bool read_all(int file, std::string& to) {
  for (size_t at = 0; at < to.size();) {
    const ssize_t got = read(file, to.data() + at, to.size() - at);
    if (got <= 0) return false;
    at += static_cast<size_t>(got);
  }
  return true;
}

void write_all(int file, const void* from, size_t bytes) {
  for (size_t at = 0; at < bytes;) {
    const ssize_t put = write(file, static_cast<const char*>(from) + at, bytes - at);
    if (put <= 0) std::exit(65);
    at += static_cast<size_t>(put);
  }
}

std::string contents(int file) {
  std::string found(static_cast<size_t>(lseek(file, 0, SEEK_END)), '\0');
  lseek(file, 0, SEEK_SET);
  if (!read_all(file, found)) std::exit(66);
  return found;
}

void answer(const std::string& op, const std::string& arguments) {
  int files[3];  // stdin, stdout and stderr of the fork
  for (int& file : files) file = memfd_create("simt", 0);
  write_all(files[0], arguments.data(), arguments.size());
  lseek(files[0], 0, SEEK_SET);
  ptx::before_forks();
  const pid_t fork_id = fork();
  if (fork_id == 0) {
    for (int i = 0; i < 3; ++i) dup2(files[i], i);
    const int code = call(op);
    ptx::write_counts();
    _exit(
        code);  // std::exit would unregister every global variable from AddressSanitizer: half the time of a call
  }
  int status = 0;
  if (fork_id < 0 || waitpid(fork_id, &status, 0) != fork_id) std::exit(67);
  const std::string out = contents(files[1]), err = contents(files[2]);
  for (const int file : files) close(file);
  const int64_t code = WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
  const int64_t head[3] = {code, static_cast<int64_t>(out.size()), static_cast<int64_t>(err.size())};
  write_all(STDOUT_FILENO, head, sizeof(head));
  write_all(STDOUT_FILENO, out.data(), out.size());
  write_all(STDOUT_FILENO, err.data(), err.size());
}

}  // namespace

int main() {
  simt::operators()["fault"] = simt::box(&fault);
  std::string head(2 * sizeof(int64_t), '\0');
  while (read_all(STDIN_FILENO, head)) {
    const auto* sizes = reinterpret_cast<const int64_t*>(head.data());
    std::string op(static_cast<size_t>(sizes[0]), '\0'), arguments(static_cast<size_t>(sizes[1]), '\0');
    if (!read_all(STDIN_FILENO, op) || !read_all(STDIN_FILENO, arguments)) return 68;
    answer(op, arguments);
  }
  return 0;
}
