// Slots of the register file of a warp: declared registers, constants, special registers.
#pragma once

#include <map>
#include <string>
#include <unordered_map>

#include "kernel.h"
#include "text.h"

namespace ptx {

// Bytes of one value of a type: 4 for "f32". 0 for a predicate, whose slot holds a bit a lane.
int bytes_of_type(const std::string& type);

class Registers {
 public:
  Registers(Kernel& kernel, const Text& text);

  void declare(const Declaration& declaration);
  // Slot of an operand that is read as `type`: a register, a constant or a symbol.
  uint32_t read(const std::string& operand, const std::string& type, int line);
  // Slot of a register that is written; "_" is one that is not read.
  uint32_t write(const std::string& operand, const std::string& type, int line);
  // Slot of a register of any width, and its width.
  uint32_t any(const std::string& operand, int line, int* bytes);
  // Slot of the address before "+4", and the offset. Tells whether it has 32 bits.
  uint32_t address(const std::string& operand, int line, int64_t* offset, bool* narrow);

  bool is_register(const std::string& operand) const;

 private:
  struct Group {
    uint32_t at = 0, count = 0;
    int bytes = 0;
  };
  struct Slot {
    uint32_t at;
    int bytes;
  };
  uint32_t take(int bytes, uint32_t count = 1);
  bool find(const std::string& name, Slot* slot) const;
  uint32_t constant(uint64_t bits, int bytes, bool parameter);
  uint32_t special(Special kind, int axis, int bytes);
  bool symbol(const std::string& name, uint32_t* at);

  Kernel& kernel_;
  const Text& text_;
  std::unordered_map<std::string, Group> groups_;  // by the name without its number, or whole without a count
  std::map<std::pair<uint64_t, int>, uint32_t> constants_, parameters_;
  std::map<std::pair<int, int>, uint32_t> specials_;
};

}  // namespace ptx
