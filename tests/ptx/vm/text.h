// The text of one kernel as statements.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "kernel.h"

namespace ptx {

struct Statement {
  std::string opcode;                 // as written: "ld.shared.v4.f32"
  std::vector<std::string> parts;     // split at the dots
  std::vector<std::string> operands;  // "{%f1, %f2}" and "[%r1+4]" are one each
  std::string guard;                  // "%p1", "!%p1" or empty
  std::string label;                  // the statement is a label
  int line = 0;
};

struct Declaration {  // `.reg`: "%r" with 12 registers, or "%temp" alone
  std::string type, name;
  int line = 0;
  size_t before = 0;  // statements ahead of it
};

struct Text {
  std::string name;
  std::vector<Parameter> parameters;
  unsigned max_threads = 1024;
  std::vector<Declaration> registers;
  std::map<std::string, size_t> local;  // offset of each `.local` variable
  size_t local_bytes = 0;
  std::vector<Statement> statements;
};

Text read_text(const std::string& text);

// The parts of `text` between separators that are outside braces and brackets, without spaces around them.
std::vector<std::string> split(const std::string& text, char separator);

}  // namespace ptx
