// Sums of processes that share memory: each has a seat with two buffers, and says by a number how far it is.
//
// In round n a process writes its part into buffer n % 2, then sets its number to n; the others read it once they see
// that. Who begins round n has read all of round n - 1, so a buffer may be written again as soon as all have begun the
// round before: nobody reads it any more. Sums are made by every process alike, in the order of the seats, in float32:
// all have the same bits.
//
// A group that has lost a process is aborted by any of the others: all waits end, now and later.
#pragma once
#include <linux/futex.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstring>

#include "team.h"
#include "vector.h"

constexpr int kMaxRanks = 64;
constexpr int64_t kBufferBytes = 1 << 18;
constexpr int kGroupSpins = 2000;  // about 100 us
constexpr int kParallelSum = 1 << 15;

struct alignas(64) Seat {
    std::atomic<uint32_t> round;
    std::atomic<int> sleepers;
};

constexpr int kAborted = -1;

struct Shared {
    Seat seats[kMaxRanks];
    alignas(64) std::atomic<int> aborted;

    char* buffer(int rank, uint32_t round) {
        return reinterpret_cast<char*>(this + 1) + (rank * 2 + round % 2) * kBufferBytes;
    }
};

inline bool reached(const Seat& seat, uint32_t round) { return int32_t(seat.round.load(std::memory_order_acquire) - round) >= 0; }

inline int64_t now_ms() {
    timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

// Until the rank has reached the round: 0; 1 + the rank after the timeout; kAborted.
inline int wait_for(Shared* shared, int rank, uint32_t round, int timeout_ms) {
    Seat& seat = shared->seats[rank];
    for (int spin = 0; spin < kGroupSpins; ++spin) {
        if (reached(seat, round)) return 0;
        relax();
    }
    const int64_t until = now_ms() + timeout_ms;
    const timespec nap = {0, 50 * 1000 * 1000};
    int late = 0;
    seat.sleepers.fetch_add(1);
    for (uint32_t seen; int32_t((seen = seat.round.load()) - round) < 0;) {
        late = shared->aborted.load() ? kAborted : now_ms() < until ? 0 : 1 + rank;
        if (late) break;
        syscall(SYS_futex, reinterpret_cast<uint32_t*>(&seat.round), FUTEX_WAIT, seen, &nap, nullptr, 0);
    }
    seat.sleepers.fetch_sub(1);
    return late;
}

// 0, or what the first wait that failed said.
inline int wait_for_all(Shared* shared, int ranks, uint32_t round, int timeout_ms) {
    for (int rank = 0; rank < ranks; ++rank)
        if (int late = wait_for(shared, rank, round, timeout_ms)) return late;
    return 0;
}

inline void arrive(Seat& seat, uint32_t round) {
    seat.round.store(round);
    if (seat.sleepers.load() > 0)
        syscall(SYS_futex, reinterpret_cast<uint32_t*>(&seat.round), FUTEX_WAKE, INT_MAX, nullptr, nullptr, 0);
}

inline float number(float x) { return x; }
inline float number(bf16 x) { return to_float(x); }
inline void put(float* out, float x) { *out = x; }
inline void put(bf16* out, float x) { *out = to_bf16(x); }

template <class T>
inline void sum(int threads, T* out, Shared* shared, int ranks, uint32_t round, int64_t count) {
    constexpr int64_t kPiece = 1 << 12;
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1 && count > kParallelSum)
    for (int64_t first = 0; first < count; first += kPiece) {
        const int64_t last = std::min(count, first + kPiece);
        int64_t i = first;
        for (; i + kLanes <= last; i += kLanes) {
            Vec total = load(reinterpret_cast<const T*>(shared->buffer(0, round)) + i);
            for (int rank = 1; rank < ranks; ++rank)
                total += load(reinterpret_cast<const T*>(shared->buffer(rank, round)) + i);
            store(out + i, total);
        }
        for (; i < last; ++i) {
            float total = 0;
            for (int rank = 0; rank < ranks; ++rank)
                total += number(reinterpret_cast<const T*>(shared->buffer(rank, round))[i]);
            put(out + i, total);
        }
    }
}

// data [count] becomes the sum over all ranks: 0. Else 1 + a rank that has not come within the timeout, or kAborted.
template <class T>
inline int all_reduce(int threads, Shared* shared, int rank, int ranks, T* data, int64_t count, int timeout_ms) {
    constexpr int64_t kCount = kBufferBytes / sizeof(T);
    Seat& mine = shared->seats[rank];
    for (int64_t first = 0; first < count; first += kCount) {
        const int64_t part = std::min(kCount, count - first);
        const uint32_t round = mine.round.load(std::memory_order_relaxed) + 1;
        if (int late = wait_for_all(shared, ranks, round - 1, timeout_ms)) return late;
        std::memcpy(shared->buffer(rank, round), data + first, part * sizeof(T));
        arrive(mine, round);
        if (int late = wait_for_all(shared, ranks, round, timeout_ms)) return late;
        sum(threads, data + first, shared, ranks, round, part);
    }
    return 0;
}
