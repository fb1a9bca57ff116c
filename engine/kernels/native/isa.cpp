#include "isa.h"

#if defined(__linux__) && defined(__AMX_BF16__)
#include <sys/syscall.h>
#include <unistd.h>

namespace {

// Tiles carry 8 KiB of state, so a process has to ask for them: arch_prctl(ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA).
bool tiles_permitted() {
    static const bool permitted = syscall(SYS_arch_prctl, 0x1023, 18) == 0;
    return permitted;
}

}  // namespace
#endif

int best_isa() {
#if defined(__linux__) && defined(__AMX_BF16__)
    if (tiles_permitted()) return kAmx;
#endif
#if defined(__AVX512BF16__)
    return kAvx512Bf16;
#else
    return kGeneric;
#endif
}

MANTA_EXPORT int manta_best_isa() { return best_isa(); }
