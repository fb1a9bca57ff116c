// Collectives of processes that share memory, for Python.
#include "shared_group.h"

// Bytes of memory that a group shares; zero at first.
MANTA_EXPORT int manta_shared_bytes(int ranks) {
    return ranks > kMaxRanks ? 0 : int(sizeof(Shared) + ranks * 2 * kBufferBytes);
}

// data [count] becomes the sum over all ranks: 0. Else 1 + a rank that has not come within the timeout, or kAborted.
MANTA_EXPORT int manta_shared_all_reduce(int threads, int is_bf16, void* memory, int rank, int ranks, void* data,
                                         int64_t count, int timeout_ms) {
    Shared* shared = static_cast<Shared*>(memory);
    if (is_bf16) return all_reduce(threads, shared, rank, ranks, static_cast<bf16*>(data), count, timeout_ms);
    return all_reduce(threads, shared, rank, ranks, static_cast<float*>(data), count, timeout_ms);
}

// out [ranks][bytes]: the parts of all ranks; a rank that gives no out does not wait for the others.
MANTA_EXPORT int manta_shared_gather(void* memory, int rank, int ranks, const void* part, void* out, int64_t bytes,
                                     int timeout_ms) {
    Shared* shared = static_cast<Shared*>(memory);
    Seat& mine = shared->seats[rank];
    for (int64_t first = 0; first < bytes; first += kBufferBytes) {
        const int64_t size = std::min(kBufferBytes, bytes - first);
        const uint32_t round = mine.round.load(std::memory_order_relaxed) + 1;
        if (int late = wait_for_all(shared, ranks, round - 1, timeout_ms)) return late;
        std::memcpy(shared->buffer(rank, round), static_cast<const char*>(part) + first, size);
        arrive(mine, round);
        if (!out) continue;
        for (int from = 0; from < ranks; ++from) {
            if (int late = wait_for(shared, from, round, timeout_ms)) return late;
            std::memcpy(static_cast<char*>(out) + from * bytes + first, shared->buffer(from, round), size);
        }
    }
    return 0;
}

// Whoever waits in the group, or will, goes free at once.
MANTA_EXPORT void manta_shared_abort(void* memory) { static_cast<Shared*>(memory)->aborted.store(1); }
