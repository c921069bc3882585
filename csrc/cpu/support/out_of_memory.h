// The exception of a failed allocation, with the size requested and the remedy.
#pragma once

#include <cstdio>
#include <stdexcept>
#include <string>

namespace hiermt {

// `where` is empty, or " on " and a device.
inline std::string out_of_memory_text(const char* what_for, double bytes, const char* where = "") {
  char text[320];
  std::snprintf(
      text, sizeof text,
      "hiermt: out of memory: could not allocate %.0f bytes (%.1f MiB)%s for %s; use a smaller batch (fewer "
      "graphs, windows or steps at once, or a smaller chunk for predict_rolling) or free memory first",
      bytes, bytes / (1024.0 * 1024.0), where, what_for);
  return text;
}

class OutOfMemory : public std::runtime_error {
 public:
  OutOfMemory(const char* what_for, double bytes, const char* where = "")
      : std::runtime_error(out_of_memory_text(what_for, bytes, where)) {}
};

}  // namespace hiermt
