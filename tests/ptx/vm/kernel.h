// A kernel of nvcc's PTX, decoded: instructions on registers of 32 lanes, basic blocks, parameters.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace ptx {

constexpr int kLanes = 32;
// A program counter past the last instruction.
constexpr uint32_t kEnd = ~0u;
constexpr uint32_t kNone = ~0u;

struct Warp;
struct Instruction;
using Handler = void (*)(Warp&, const Instruction&);

enum class Flow : uint8_t { kNext, kBranch, kExit, kBarrier };

// Classes of warp instructions that are counted. kClassNames has their names.
enum Class : uint8_t {
  kFfma,
  kFloat,
  kDouble,
  kMufu,
  kInteger,
  kMma,
  kLoadShared,
  kStoreShared,
  kLoadGlobal,
  kStoreGlobal,
  kLocal,
  kShuffle,
  kBarrierClass,
  kBranchClass,
  kFree,  // no instruction of the GPU: a move, a parameter
  kClasses
};
extern const char* const kClassNames[kClasses];

// Instructions of the GPU that stand for one of PTX.
struct Cost {
  Class kind = kFree;
  float count = 0;
};

// Memory of an access: what it is checked against and how it is counted.
enum class Space : uint8_t { kNone, kGlobal, kShared, kLocal, kParameter, kGeneric };

// Operands of an access: values in 0 to 3, the address in 4, further ones from 5.
constexpr int kAddress = 4;

struct Instruction {
  Handler run = nullptr;
  uint32_t r[14] = {};  // operands: byte offsets in the register file of a warp, destinations first
  uint32_t guard = kNone;
  bool negated = false;
  Flow flow = Flow::kNext;
  Space space = Space::kNone;
  uint8_t vector = 1;   // values of an access
  uint8_t bytes = 0;    // of one value
  bool narrow = false;  // the address has 32 bits
  Cost cost[2];
  uint32_t target = 0;    // of a branch: an instruction
  uint32_t site = kNone;  // index of an access to shared or global memory among those of the kernel
  int64_t offset = 0;     // added to the address
  int line = 0;           // of the kernel's text
};

struct Block {
  uint32_t begin = 0, end = 0;    // instructions
  uint32_t reconvergence = kEnd;  // where lanes that part at its end meet again
};

struct Parameter {
  std::string name;
  size_t bytes = 0, alignment = 1, offset = 0;
};

// A slot of the register file that is filled once: the same bits in each lane.
struct Constant {
  uint32_t at = 0, bytes = 0;
  uint64_t bits = 0;
  bool parameter = false;  // `bits` is an offset in the parameters
};

enum class Special : uint8_t { kThread, kBlock, kThreads, kBlocks, kLane, kLocalBase };
struct SpecialSlot {
  Special kind;
  int axis;
  uint32_t at;
};

struct Kernel {
  std::string name;  // as in PTX
  std::vector<Parameter> parameters;
  size_t parameter_bytes = 0;
  unsigned max_threads = 1024;
  size_t local_bytes = 0;
  size_t file_bytes = 0;  // registers of a warp
  std::vector<Instruction> code;
  std::vector<Block> blocks;
  std::vector<uint32_t> block_at;  // the block that starts at an instruction, or kNone
  std::vector<Constant> constants;
  std::vector<SpecialSlot> specials;
  uint32_t sites = 0;
};

// Ends the process with a line that names the kernel.
[[noreturn]] void fail(const char* detector, const char* format, ...);

// Decodes the text of one `.entry`. An instruction or a directive that is not known ends the process.
Kernel decode(const std::string& text);

// Fills `blocks`: splits the code at branches and finds where their lanes meet again.
void find_blocks(Kernel& kernel);

}  // namespace ptx
