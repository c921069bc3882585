// Launches of kernels in PTX.
//
// HIERMT_SIMT_PTX names a file with a line for each kernel of the runner: its address from the start of the
// program, where in which file its text is. HIERMT_SIMT_COUNTS names a file that receives a line of JSON for each
// kernel that ran (HIERMT_SIMT_NAMES: its name); the addresses of HIERMT_SIMT_SAMPLE thread blocks of each launch are
// counted.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "argument.h"

namespace ptx {

struct Geometry {
  unsigned grid[3], block[3];
  size_t shared_bytes;
};

// Runs the kernel that the program has at an address. `order` gives the order of so many thread blocks, or of the
// warps of a block.
void launch(const void* kernel, const Geometry& geometry, const std::vector<Argument>& arguments,
            std::vector<size_t> (*order)(size_t count));

// Runs the only kernel of a text.
void run_text(const std::string& text, const Geometry& geometry, const std::vector<Argument>& arguments);

// Decodes what earlier forks had to decode: the next ones find it.
void before_forks();

// Appends the names and the counts of the kernels that ran to these files.
void write_counts();

// Decodes every kernel of a PTX file; returns how many there are.
size_t decode_all(const std::string& text);

}  // namespace ptx
