#pragma once
#include "stable_abi.h"
