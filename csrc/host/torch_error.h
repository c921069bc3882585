// What torch says of a call that failed. The stable ABI of torch 2.11 hands over that it failed, and no more.
#pragma once

#include <string>

namespace hiermt {

// Of the latest failed call of this thread; empty before torch 2.13.
std::string torch_error();

}  // namespace hiermt
