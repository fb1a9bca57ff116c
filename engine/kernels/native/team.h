// Threads of one parallel region that go through many short stages together.
//
// The pieces of a stage are shared out evenly, and who is done takes what a neighbour has not begun: a thread that the
// system has taken off its core for a moment holds up the others by one piece, not by its whole share. At the end of a
// stage they wait for each other: awake for some tens of microseconds, since a neighbour is usually that close, then
// asleep, since a neighbour that is not may be waiting for this very core.
#pragma once
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <climits>
#include <vector>

#include "isa.h"

inline void relax() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

class Team {
    static constexpr int kSpins = 1000;    // about 60 us; with 50, an idle machine is a quarter slower
    static constexpr int kNeighbours = 4;  // oneself included

   public:
    explicit Team(int largest) : shares_(largest) {}

    // How many there are; by one thread, before the others begin.
    void set_size(int size) { size_ = size; }

    // work(i) for each i of [0, pieces) by somebody; returns when all are done.
    template <class Work>
    void each(int me, int64_t pieces, Work work) {
        for (int offset = 0; offset < std::min(size_, kNeighbours); ++offset) {
            const int owner = (me + offset) % size_;
            const int64_t first = pieces * owner / size_, last = pieces * (owner + 1) / size_;
            std::atomic<int64_t>& begun = shares_[owner].begun;
            for (int64_t i; (i = first + begun.fetch_add(1, std::memory_order_relaxed)) < last;) work(i);
        }
        wait_for_all();
    }

   private:
    struct alignas(64) Share {
        std::atomic<int64_t> begun{0};
    };

    void wait_for_all() {
        const uint32_t stage = stage_.load();
        if (arrived_.fetch_add(1) + 1 == size_) {
            arrived_.store(0);
            for (Share& share : shares_) share.begun.store(0, std::memory_order_relaxed);
            stage_.store(stage + 1);
            if (sleeping_.load() > 0) futex(FUTEX_WAKE_PRIVATE, INT_MAX);
            return;
        }
        for (int spin = 0; spin < kSpins; ++spin) {
            if (stage_.load(std::memory_order_acquire) != stage) return;
            relax();
        }
        sleeping_.fetch_add(1);
        while (stage_.load() == stage) futex(FUTEX_WAIT_PRIVATE, stage);
        sleeping_.fetch_sub(1);
    }

    void futex(int operation, uint32_t value) {
        syscall(SYS_futex, reinterpret_cast<uint32_t*>(&stage_), operation, value, nullptr, nullptr, 0);
    }

    std::vector<Share> shares_;
    int size_ = 1;
    alignas(64) std::atomic<int> arrived_{0};
    alignas(64) std::atomic<uint32_t> stage_{0};
    alignas(64) std::atomic<int> sleeping_{0};
};
