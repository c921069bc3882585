#include "text.h"

#include <cctype>
#include <cstdlib>

namespace ptx {
namespace {

std::string trimmed(const std::string& text) {
  size_t begin = 0, end = text.size();
  while (begin < end && std::isspace(static_cast<unsigned char>(text[begin]))) ++begin;
  while (end > begin && std::isspace(static_cast<unsigned char>(text[end - 1]))) --end;
  return text.substr(begin, end - begin);
}

std::vector<std::string> words(const std::string& text) {
  std::vector<std::string> found;
  std::string word;
  for (char c : text + " ") {
    if (!std::isspace(static_cast<unsigned char>(c))) {
      word += c;
    } else if (!word.empty()) {
      found.push_back(word);
      word.clear();
    }
  }
  return found;
}

// "name[12]" -> name and 12; "name" -> name and 1.
std::pair<std::string, size_t> array(const std::string& text) {
  const size_t at = text.find('[');
  if (at == std::string::npos) return {text, 1};
  return {text.substr(0, at), std::strtoull(text.c_str() + at + 1, nullptr, 10)};
}

size_t bytes_of(const std::string& type) {
  const size_t digit = type.find_first_of("0123456789");
  if (digit == std::string::npos) fail("ptx", "a variable of type %s", type.c_str());
  return std::strtoull(type.c_str() + digit, nullptr, 10) / 8;
}

// Of ".param .align 8 .b8 name[168]" and ".local .align 4 .b8 name[32]".
Parameter read_variable(const std::string& text) {
  Parameter variable;
  const std::vector<std::string> all = words(text);
  for (size_t i = 1; i < all.size(); ++i) {
    if (all[i] == ".align") {
      variable.alignment = std::strtoull(all[++i].c_str(), nullptr, 10);
    } else if (all[i][0] == '.') {
      variable.bytes = bytes_of(all[i]);
      if (variable.alignment < variable.bytes) variable.alignment = variable.bytes;
    } else {
      const auto [name, count] = array(all[i]);
      variable.name = name;
      variable.bytes *= count;
    }
  }
  if (variable.name.empty() || variable.bytes == 0) fail("ptx", "cannot read the variable: %s", text.c_str());
  return variable;
}

void read_directive(Text& text, const std::string& line, int number) {
  const std::vector<std::string> all = words(line);
  if (all[0] == ".reg") {
    for (const std::string& name : split(line.substr(line.find(all[1]) + all[1].size()), ',')) {
      text.registers.push_back({all[1], name, number, text.statements.size()});
    }
  } else if (all[0] == ".local") {
    const Parameter variable = read_variable(line);
    text.local_bytes = (text.local_bytes + variable.alignment - 1) / variable.alignment * variable.alignment;
    text.local[variable.name] = text.local_bytes;
    text.local_bytes += variable.bytes;
  } else if (all[0] != ".pragma") {
    fail("ptx", "line %d of %s: unknown directive: %s", number, text.name.c_str(), line.c_str());
  }
}

Statement read_instruction(const std::string& line, int number) {
  Statement statement;
  statement.line = number;
  std::string rest = line;
  if (rest[0] == '@') {
    const size_t end = rest.find_first_of(" \t");
    statement.guard = rest.substr(1, end - 1);
    rest = trimmed(rest.substr(end));
  }
  const size_t end = rest.find_first_of(" \t");
  statement.opcode = rest.substr(0, end);
  statement.parts = split(statement.opcode, '.');
  if (end != std::string::npos) statement.operands = split(rest.substr(end), ',');
  return statement;
}

// ".maxntid 256, 1, 1" and the like between the parameters and the body.
void read_limits(Text& text, const std::string& header) {
  const size_t at = header.find(".maxntid");
  if (at == std::string::npos) return;
  text.max_threads = 1;
  for (const std::string& count : split(header.substr(at + 8, header.find('\n', at) - at - 8), ',')) {
    text.max_threads *= static_cast<unsigned>(std::strtoul(count.c_str(), nullptr, 10));
  }
}

}  // namespace

std::vector<std::string> split(const std::string& text, char separator) {
  std::vector<std::string> parts;
  std::string part;
  int depth = 0;
  for (char c : text) {
    depth += (c == '{' || c == '[') - (c == '}' || c == ']');
    if (c == separator && depth == 0) {
      parts.push_back(trimmed(part));
      part.clear();
    } else {
      part += c;
    }
  }
  if (!trimmed(part).empty()) parts.push_back(trimmed(part));
  return parts;
}

Text read_text(const std::string& source) {
  Text text;
  const size_t entry = source.find(".entry ");
  const size_t open = source.find('(', entry), close = source.find("\n)", entry);
  const size_t body = source.find("\n{", entry);
  if (entry == std::string::npos || body == std::string::npos) fail("ptx", "a text without a kernel");
  size_t parameters_end = open;
  if (open != std::string::npos && open < body) {
    text.name = trimmed(source.substr(entry + 7, open - entry - 7));
    parameters_end = close != std::string::npos && close < body ? close : source.find(')', open);
    for (const std::string& one : split(source.substr(open + 1, parameters_end - open - 1), ',')) {
      text.parameters.push_back(read_variable(one));
    }
  } else {
    parameters_end = source.find('\n', entry);
    text.name = trimmed(source.substr(entry + 7, parameters_end - entry - 7));
  }
  read_limits(text, source.substr(parameters_end, body - parameters_end));

  // A statement ends with ';', a label with ':'. A brace that opens a line opens or closes a scope.
  std::string statement;
  int line = 1, depth = 0;
  for (size_t i = 0; i <= body; ++i) line += source[i] == '\n';
  for (size_t i = body + 2; i < source.size(); ++i) {
    const char c = source[i];
    line += c == '\n';
    // The source line of nvcc's -lineinfo, .loc, ends with its line.
    if ((c == '/' && source.compare(i, 2, "//") == 0) || source.compare(i, 5, ".loc\t") == 0) {
      i = source.find('\n', i) - 1;
      continue;
    }
    const bool blank = trimmed(statement).empty();
    if (blank && (c == '{' || c == '}')) {
      depth += c == '{' ? 1 : -1;
      if (depth < 0) return text;
      statement.clear();
    } else if (c == ':' && statement.find('"') == std::string::npos &&
               statement.find('.') == std::string::npos) {
      Statement label;
      label.label = trimmed(statement);
      label.line = line;
      text.statements.push_back(label);
      statement.clear();
    } else if (c == ';') {
      const std::string all = trimmed(statement);
      if (all[0] == '.') {
        read_directive(text, all, line);
      } else if (!all.empty()) {
        text.statements.push_back(read_instruction(all, line));
      }
      statement.clear();
    } else {
      statement += c;
    }
  }
  fail("ptx", "the kernel %s has no end", text.name.c_str());
}

}  // namespace ptx
