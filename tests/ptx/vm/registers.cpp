#include "registers.h"

#include <cctype>
#include <cstdlib>

namespace ptx {
namespace {

// The width of a slot of a predicate: a bit a lane, and no other.
constexpr uint32_t kPredicateBytes = 4;

bool number(const std::string& text, int bytes, uint64_t* bits) {
  if (text.empty()) return false;
  if (text.size() > 2 && text[0] == '0' &&
      (text[1] == 'f' || text[1] == 'F' || text[1] == 'd' || text[1] == 'D')) {
    *bits = std::strtoull(text.c_str() + 2, nullptr, 16);
    return true;
  }
  const bool negative = text[0] == '-';
  const char* begin = text.c_str() + (negative ? 1 : 0);
  if (!std::isdigit(static_cast<unsigned char>(*begin))) return false;
  char* end = nullptr;
  uint64_t value = std::strtoull(begin, &end, 0);
  if (*end == 'U') ++end;
  if (*end != 0) return false;
  if (negative) value = ~value + 1;
  if (bytes == 0) value = value != 0 ? ~uint64_t{0} : 0;
  if (bytes > 0 && bytes < 8) value &= (uint64_t{1} << (8 * bytes)) - 1;
  *bits = value;
  return true;
}

}  // namespace

int bytes_of_type(const std::string& type) {
  if (type == "pred") return 0;
  const size_t digit = type.find_first_of("0123456789");
  return digit == std::string::npos ? -1 : std::atoi(type.c_str() + digit) / 8;
}

Registers::Registers(Kernel& kernel, const Text& text) : kernel_(kernel), text_(text) {
  groups_["_"] = {take(8), 1, 8};
}

uint32_t Registers::take(int bytes, uint32_t count) {
  const uint32_t each = bytes == 0 ? kPredicateBytes : static_cast<uint32_t>(bytes) * kLanes;
  const auto at = static_cast<uint32_t>((kernel_.file_bytes + 63) / 64 * 64);
  kernel_.file_bytes = at + size_t{each} * count;
  return at;
}

void Registers::declare(const Declaration& declaration) {
  const int bytes = bytes_of_type(declaration.type.substr(1));
  if (bytes < 0 || bytes > 8)
    fail("ptx", "line %d: registers of type %s", declaration.line, declaration.type.c_str());
  const size_t open = declaration.name.find('<');
  const std::string name = declaration.name.substr(0, open);
  const uint32_t count =
      open == std::string::npos ? 1 : static_cast<uint32_t>(std::atoi(declaration.name.c_str() + open + 1));
  const auto found = groups_.find(name);
  if (found != groups_.end() && found->second.bytes == bytes && found->second.count == count) return;
  groups_[name] = {take(bytes, count), count, bytes};
}

bool Registers::find(const std::string& name, Slot* slot) const {
  const auto whole = groups_.find(name);
  if (whole != groups_.end()) {
    *slot = {whole->second.at, whole->second.bytes};
    return true;
  }
  size_t digits = name.size();
  while (digits > 0 && std::isdigit(static_cast<unsigned char>(name[digits - 1]))) --digits;
  const auto found = groups_.find(name.substr(0, digits));
  if (found == groups_.end() || digits == name.size()) return false;
  const Group& group = found->second;
  const auto index = static_cast<uint32_t>(std::atoi(name.c_str() + digits));
  if (index >= group.count) return false;
  const uint32_t each = group.bytes == 0 ? kPredicateBytes : static_cast<uint32_t>(group.bytes) * kLanes;
  *slot = {group.at + index * each, group.bytes};
  return true;
}

bool Registers::is_register(const std::string& operand) const {
  Slot slot{};
  return find(operand, &slot);
}

uint32_t Registers::constant(uint64_t bits, int bytes, bool parameter) {
  auto& known = parameter ? parameters_ : constants_;
  const auto found = known.find({bits, bytes});
  if (found != known.end()) return found->second;
  const uint32_t at = take(bytes);
  known[{bits, bytes}] = at;
  kernel_.constants.push_back({at, static_cast<uint32_t>(bytes), bits, parameter});
  return at;
}

uint32_t Registers::special(Special kind, int axis, int bytes) {
  const auto found = specials_.find({static_cast<int>(kind), axis});
  if (found != specials_.end()) return found->second;
  const uint32_t at = take(bytes);
  specials_[{static_cast<int>(kind), axis}] = at;
  kernel_.specials.push_back({kind, axis, at});
  return at;
}

// A parameter, the shared memory, a local variable: their addresses.
bool Registers::symbol(const std::string& name, uint32_t* at) {
  for (const Parameter& parameter : kernel_.parameters) {
    if (parameter.name == name) {
      *at = constant(parameter.offset, 8, true);
      return true;
    }
  }
  const auto local = text_.local.find(name);
  if (local != text_.local.end()) {
    *at = special(Special::kLocalBase, static_cast<int>(local->second), 8);
    return true;
  }
  if (name.find("hiermt_shared") == std::string::npos) return false;
  *at = constant(0, 8, false);
  return true;
}

uint32_t Registers::read(const std::string& operand, const std::string& type, int line) {
  const int bytes = bytes_of_type(type);
  Slot slot{};
  if (find(operand, &slot)) {
    if (slot.bytes != bytes) fail("ptx", "line %d: %s is not a %s", line, operand.c_str(), type.c_str());
    return slot.at;
  }
  static const std::map<std::string, Special> specials = {
      {"%tid", Special::kThread},    {"%ntid", Special::kThreads}, {"%ctaid", Special::kBlock},
      {"%nctaid", Special::kBlocks}, {"%laneid", Special::kLane},
  };
  const size_t dot = operand.find('.');
  const auto found = specials.find(operand.substr(0, dot));
  if (found != specials.end() && bytes == 4) {
    return special(found->second, dot == std::string::npos ? 0 : operand[dot + 1] - 'x', 4);
  }
  uint64_t bits = 0;
  if (number(operand, bytes, &bits)) return constant(bits, bytes, false);
  uint32_t at = 0;
  // Of the shared memory 32 bits are enough: it starts at 0.
  if (bytes == 4 && operand.find("hiermt_shared") != std::string::npos) return constant(0, 4, false);
  if (bytes == 8 && symbol(operand, &at)) return at;
  fail("ptx", "line %d of %s: unknown operand %s", line, kernel_.name.c_str(), operand.c_str());
}

uint32_t Registers::write(const std::string& operand, const std::string& type, int line) {
  Slot slot{};
  if (!find(operand, &slot)) fail("ptx", "line %d: unknown register %s", line, operand.c_str());
  if (operand != "_" && slot.bytes != bytes_of_type(type)) {
    fail("ptx", "line %d: %s is not a %s", line, operand.c_str(), type.c_str());
  }
  return slot.at;
}

uint32_t Registers::any(const std::string& operand, int line, int* bytes) {
  Slot slot{};
  if (find(operand, &slot)) {
    *bytes = slot.bytes;
    return slot.at;
  }
  *bytes = 8;
  uint64_t bits = 0;
  if (!number(operand, 8, &bits)) fail("ptx", "line %d: unknown operand %s", line, operand.c_str());
  return constant(bits, 8, false);
}

uint32_t Registers::address(const std::string& operand, int line, int64_t* offset, bool* narrow) {
  if (operand.size() < 2 || operand.front() != '[')
    fail("ptx", "line %d: no address: %s", line, operand.c_str());
  const std::string inside = operand.substr(1, operand.size() - 2);
  const size_t plus = inside.find('+');
  const std::string base = inside.substr(0, plus);
  *offset = plus == std::string::npos ? 0 : std::strtoll(inside.c_str() + plus + 1, nullptr, 10);
  *narrow = false;
  Slot slot{};
  if (find(base, &slot)) {
    *narrow = slot.bytes == 4;
    if (slot.bytes != 4 && slot.bytes != 8) fail("ptx", "line %d: no address: %s", line, operand.c_str());
    return slot.at;
  }
  uint32_t at = 0;
  if (symbol(base, &at)) return at;
  fail("ptx", "line %d of %s: unknown address %s", line, kernel_.name.c_str(), operand.c_str());
}

}  // namespace ptx
