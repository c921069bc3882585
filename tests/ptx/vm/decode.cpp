// Statements to instructions.
#include <unordered_map>

#include "counts.h"
#include "registers.h"
#include "warp.h"

namespace ptx {
namespace {

class Decoder {
 public:
  Decoder(Kernel& kernel, const Text& text) : kernel_(kernel), text_(text), registers_(kernel, text) {}

  void run() {
    size_t next = 0;
    for (size_t i = 0; i < text_.statements.size(); ++i) {
      while (next < text_.registers.size() && text_.registers[next].before <= i) {
        registers_.declare(text_.registers[next++]);
      }
      const Statement& s = text_.statements[i];
      if (!s.label.empty()) {
        labels_[s.label] = static_cast<uint32_t>(kernel_.code.size());
        continue;
      }
      Instruction one;
      one.line = s.line;
      if (!s.guard.empty()) {
        one.negated = s.guard[0] == '!';
        one.guard = registers_.read(s.guard.substr(one.negated ? 1 : 0), "pred", s.line);
      }
      fill(one, s);
      price(one, s.opcode);
      kernel_.code.push_back(one);
    }
    for (const auto& [at, label] : branches_) {
      const auto found = labels_.find(label);
      if (found == labels_.end()) fail("ptx", "%s: no label %s", kernel_.name.c_str(), label.c_str());
      kernel_.code[at].target = found->second;
    }
  }

 private:
  [[noreturn]] void unknown(const Statement& s) const {
    fail("ptx", "line %d of %s: unknown instruction: %s", s.line, kernel_.name.c_str(), s.opcode.c_str());
  }
  void expect(const Statement& s, size_t operands) const {
    if (s.operands.size() != operands) unknown(s);
  }

  void fill(Instruction& one, const Statement& s) {
    const std::string& kind = s.parts[0];
    if (kind == "bra") {
      expect(s, 1);
      one.flow = Flow::kBranch;
      branches_.push_back({kernel_.code.size(), s.operands[0]});
    } else if (s.opcode == "ret" || s.opcode == "exit") {
      one.flow = Flow::kExit;
    } else if (s.opcode == "bar.sync" || s.opcode == "barrier.sync") {
      if (s.operands != std::vector<std::string>{"0"} || !s.guard.empty()) unknown(s);
      one.flow = Flow::kBarrier;
    } else if (kind == "ld" || kind == "st") {
      fill_access(one, s);
    } else if (kind == "atom" || kind == "red") {
      fill_atomic(one, s);
    } else if (kind == "mov" && (s.operands.at(0)[0] == '{' || s.operands.at(1)[0] == '{')) {
      fill_parts(one, s);
    } else {
      if (kind == "cvt" && is_wide_conversion(s)) {
        one.run = conversion(s.opcode + ".from64");
        if (one.run == nullptr) unknown(s);
        write(one, s, s.parts[s.parts.size() - 2]);
        read(one, s, 1, "b64");
        return;
      }
      one.run = kind == "setp" || kind == "selp" || s.parts.back() == "pred" ? comparison(s.opcode) : nullptr;
      if (one.run == nullptr) one.run = arithmetic(s.opcode);
      if (one.run == nullptr) one.run = conversion(s.opcode);
      if (one.run == nullptr) one.run = collective(s.opcode);
      if (one.run == nullptr) unknown(s);
      fill_operands(one, s);
    }
  }

  bool is_wide_conversion(const Statement& s) {
    expect(s, 2);
    int bytes = 0;
    registers_.any(s.operands[1], s.line, &bytes);
    return bytes == 8 && bytes_of_type(s.parts.back()) == 4;
  }

  void read(Instruction& one, const Statement& s, int operand, const std::string& type) {
    one.r[operand] = registers_.read(s.operands.at(static_cast<size_t>(operand)), type, s.line);
  }
  void write(Instruction& one, const Statement& s, const std::string& type) {
    one.r[0] = registers_.write(s.operands.at(0), type, s.line);
  }

  void fill_operands(Instruction& one, const Statement& s) {
    const std::string &kind = s.parts[0], &type = s.parts.back();
    const int count = static_cast<int>(s.operands.size());
    if (kind == "setp") {
      write(one, s, "pred");
      read(one, s, 1, type);
      read(one, s, 2, type);
      const bool combined = s.parts.size() == 4;
      if (combined) read(one, s, 3, "pred");
      expect(s, combined ? 4 : 3);
    } else if (kind == "selp") {
      expect(s, 4);
      write(one, s, type);
      read(one, s, 1, type);
      read(one, s, 2, type);
      read(one, s, 3, "pred");
    } else if (kind == "bfi") {
      expect(s, 5);
      write(one, s, type);
      for (int i = 1; i < 5; ++i) read(one, s, i, i < 3 ? type : "u32");
    } else if (kind == "shl" || kind == "shr") {
      expect(s, 3);
      write(one, s, type);
      read(one, s, 1, type);
      read(one, s, 2, "u32");
    } else if (s.parts.size() > 1 && s.parts[1] == "wide") {
      const std::string wide = type[0] + std::to_string(16 * bytes_of_type(type));
      expect(s, kind == "mad" ? 4 : 3);
      write(one, s, wide);
      read(one, s, 1, type);
      read(one, s, 2, type);
      if (kind == "mad") read(one, s, 3, wide);
    } else if (kind == "cvt") {
      expect(s, 2);
      const std::string to = s.parts[s.parts.size() - 2];
      write(one, s, to == "tf32" ? "b32" : to == "bf16" ? "b16" : to);
      read(one, s, 1, type == "bf16" ? "b16" : type);
    } else if (kind == "shfl") {
      fill_shuffle(one, s);
    } else if (kind == "vote") {
      expect(s, 3);
      write(one, s, type);
      read(one, s, 1, "pred");
      read(one, s, 2, "b32");
    } else if (kind == "redux") {
      expect(s, 3);
      write(one, s, type);
      read(one, s, 1, type);
      read(one, s, 2, "b32");
    } else if (s.opcode == "bar.warp.sync") {
      expect(s, 1);
      read(one, s, 0, "b32");
    } else if (kind == "mma") {
      fill_product(one, s);
    } else if (kind == "popc" || kind == "clz" || kind == "bfind") {
      expect(s, 2);
      write(one, s, "u32");
      read(one, s, 1, type);
    } else {
      write(one, s, type);
      for (int i = 1; i < count; ++i) read(one, s, i, type);
      if (count < 2 || count > 4) unknown(s);
    }
  }

  void fill_shuffle(Instruction& one, const Statement& s) {
    expect(s, 5);
    const std::vector<std::string> results = split(s.operands[0], '|');
    one.r[0] = registers_.write(results[0], "b32", s.line);
    one.r[1] = registers_.write(results.size() > 1 ? results[1] : "_", "pred", s.line);
    for (int i = 1; i < 5; ++i)
      one.r[i + 1] = registers_.read(s.operands[static_cast<size_t>(i)], "b32", s.line);
  }

  void fill_product(Instruction& one, const Statement& s) {
    expect(s, 4);
    int at = 0;
    for (size_t k = 0; k < 4; ++k) {
      const std::string type = k == 0 || k == 3 ? "f32" : "b32";
      for (const std::string& name : members(s.operands[k])) {
        if (at == 14) unknown(s);
        one.r[at++] = k == 0 ? registers_.write(name, type, s.line) : registers_.read(name, type, s.line);
      }
    }
    if (at != 14) unknown(s);
  }

  // mov of {low, high} from one register or into one.
  void fill_parts(Instruction& one, const Statement& s) {
    expect(s, 2);
    const std::string& type = s.parts.at(1);
    const std::string part = "b" + std::to_string(4 * bytes_of_type(type));
    const bool unpacks = s.operands[0][0] == '{';
    const std::vector<std::string> both = members(s.operands[unpacks ? 0 : 1]);
    if (both.size() != 2) unknown(s);
    one.run = conversion((unpacks ? "mov.unpack." : "mov.pack.") + type);
    if (one.run == nullptr) unknown(s);
    if (unpacks) {
      one.r[0] = registers_.write(both[0], part, s.line);
      one.r[1] = registers_.write(both[1], part, s.line);
      one.r[2] = registers_.read(s.operands[1], type, s.line);
    } else {
      write(one, s, type);
      one.r[1] = registers_.read(both[0], part, s.line);
      one.r[2] = registers_.read(both[1], part, s.line);
    }
  }

  void fill_access(Instruction& one, const Statement& s) {
    expect(s, 2);
    one.space = Space::kGeneric;
    for (size_t i = 1; i + 1 < s.parts.size(); ++i) read_modifier(one, s, s.parts[i]);
    const bool loads = s.parts[0] == "ld";
    const std::string& type = s.parts.back();
    const std::vector<std::string> values = members(s.operands[loads ? 0 : 1]);
    if (values.size() != one.vector) unknown(s);
    one.bytes = static_cast<uint8_t>(bytes_of_type(type));
    int width = 0;
    for (size_t k = 0; k < values.size(); ++k) {
      int bytes = 0;
      one.r[k] = registers_.any(values[k], s.line, &bytes);
      if (values[k] != "_") width = bytes;
    }
    if (width < one.bytes) unknown(s);
    finish_access(one, s, s.operands[loads ? 1 : 0], access(s.parts[0], type, width));
  }

  void fill_atomic(Instruction& one, const Statement& s) {
    const bool returns = s.parts[0] == "atom";
    expect(s, returns ? 3 : 2);
    std::string operation;
    one.space = Space::kGeneric;
    for (size_t i = 1; i + 1 < s.parts.size(); ++i) {
      if (i + 2 == s.parts.size()) {
        operation = s.parts[i];
      } else {
        read_modifier(one, s, s.parts[i]);
      }
    }
    const std::string& type = s.parts.back();
    one.bytes = static_cast<uint8_t>(bytes_of_type(type));
    one.r[0] = registers_.write(returns ? s.operands[0] : "_", type, s.line);
    one.r[5] = registers_.read(s.operands[returns ? 2 : 1], type, s.line);
    finish_access(one, s, s.operands[returns ? 1 : 0], access(operation, type, one.bytes));
  }

  void finish_access(Instruction& one, const Statement& s, const std::string& address, Handler handler) {
    if (handler == nullptr) unknown(s);
    one.run = handler;
    one.r[4] = registers_.address(address, s.line, &one.offset, &one.narrow);
    const bool counted = one.space != Space::kParameter && one.space != Space::kLocal;
    if (counted) one.site = kernel_.sites++;
  }

  void read_modifier(Instruction& one, const Statement& s, const std::string& modifier) const {
    static const std::unordered_map<std::string, Space> spaces = {{"global", Space::kGlobal},
                                                                  {"shared", Space::kShared},
                                                                  {"param", Space::kParameter},
                                                                  {"local", Space::kLocal}};
    const auto space = spaces.find(modifier);
    if (space != spaces.end()) {
      one.space = space->second;
    } else if (modifier == "v2" || modifier == "v4") {
      one.vector = static_cast<uint8_t>(modifier[1] - '0');
    } else if (modifier != "nc" && modifier != "volatile") {
      unknown(s);
    }
  }

  // "{%f1, %f2}" -> both; "%f1" -> itself.
  static std::vector<std::string> members(const std::string& operand) {
    if (operand[0] != '{') return {operand};
    return split(operand.substr(1, operand.size() - 2), ',');
  }

  Kernel& kernel_;
  const Text& text_;
  Registers registers_;
  std::unordered_map<std::string, uint32_t> labels_;
  std::vector<std::pair<size_t, std::string>> branches_;
};

}  // namespace

Kernel decode(const std::string& source) {
  const Text text = read_text(source);
  Kernel kernel;
  kernel.name = text.name;
  kernel.max_threads = text.max_threads;
  kernel.local_bytes = (text.local_bytes + 15) / 16 * 16;
  kernel.parameters = text.parameters;
  for (Parameter& parameter : kernel.parameters) {
    const size_t alignment = parameter.alignment;
    kernel.parameter_bytes = (kernel.parameter_bytes + alignment - 1) / alignment * alignment;
    parameter.offset = kernel.parameter_bytes;
    kernel.parameter_bytes += parameter.bytes;
  }
  Decoder(kernel, text).run();
  kernel.file_bytes = (kernel.file_bytes + 63) / 64 * 64;
  find_blocks(kernel);
  return kernel;
}

}  // namespace ptx
