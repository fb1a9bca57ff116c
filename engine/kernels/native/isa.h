// Which instructions multiply bf16. The numbers are those of engine/kernels/library.py.
#pragma once
#include <cstdint>

enum Isa : int { kGeneric = 0, kAvx512Bf16 = 1, kAmx = 2 };

using bf16 = uint16_t;

// The best that this build and this machine offer; asks the kernel for the AMX tiles the first time.
int best_isa();

#define MANTA_EXPORT extern "C" __attribute__((visibility("default")))
