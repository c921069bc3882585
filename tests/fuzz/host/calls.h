// Valid calls of every operator on small random problems, as lists of arguments in the order of the schema.
#pragma once

#include <fuzzer/FuzzedDataProvider.h>

#include <string>
#include <variant>
#include <vector>

#include "stable_abi.h"

namespace fuzz {

using torch::stable::Tensor;

using List = std::vector<Tensor>;
// None is an optional without a tensor.
using Value = std::variant<int64_t, double, std::optional<Tensor>, List>;

struct Call {
  std::string op;
  std::vector<Value> arguments;
};

// Contiguous, with numbers in [-1, 1] or, of integers, in [0, top).
Tensor random_tensor(FuzzedDataProvider& data, torch::headeronly::ScalarType type, std::vector<int64_t> sizes,
                     int64_t top = 1);

// A call of any of the operators. A backward is called on what its forward returned.
Call valid_call(FuzzedDataProvider& data);

// Runs the operator, which throws or returns.
std::vector<Tensor> run(const Call& call);

}  // namespace fuzz
