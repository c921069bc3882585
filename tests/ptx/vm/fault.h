// How a run ends in which a kernel did what it must not.
#pragma once

#include <unistd.h>

#include <cstdarg>
#include <cstdio>

namespace ptx {

// Ends the program with one line: the detector, where it was, and a message.
[[noreturn]] inline void end_with_fault(const char* detector, const char* where, const char* format,
                                        va_list arguments) {
  std::fprintf(stderr, "simt: %s: %s: ", detector, where);
  std::vfprintf(stderr, format, arguments);
  std::fputc('\n', stderr);
  std::fflush(stderr);
  _exit(70);
}

}  // namespace ptx
