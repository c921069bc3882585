// What the warps of a kernel executed: instructions by class, wavefronts of shared memory, sectors of global.
#pragma once

#include <cstdio>
#include <vector>

#include "kernel.h"

namespace ptx {

struct Counts {
  uint64_t launches = 0, blocks = 0, warps = 0;
  unsigned threads = 0;                // of a block, the most
  size_t shared_bytes = 0;             // likewise
  std::vector<uint64_t> visits;        // of each basic block, by warps
  std::vector<uint64_t> sampled;       // of them those in thread blocks whose addresses were counted
  std::vector<uint64_t> transactions;  // of each access in those: wavefronts or sectors
};

inline void count_block(Counts& counts, uint32_t block) {
  ++counts.visits[block];
}

void count_access(Counts& counts, const Instruction& access, Space space, const uint64_t* addresses,
                  uint32_t lanes);

// One line of JSON.
void write(std::FILE* file, const Kernel& kernel, const Counts& counts);

// Gives an instruction its cost: what stands for it in the machine code of sm_90.
void price(Instruction& one, const std::string& opcode);

}  // namespace ptx
