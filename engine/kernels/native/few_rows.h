// A linear layer of few rows: its weights pass by once, two blocks at a time, and each block's sums become output.
#pragma once
#include "activation.h"
#include "dot.h"

constexpr int kFewRows = 64;

struct LinearJob {
    int threads;
    bf16* out;
    const bf16* input;
    const bf16* weight;
    const float* bias;  // one a packed column, or null
    int64_t m, n, lda;
    int64_t blocks, steps;
    int activation;
    bool streams = false;  // the output is larger than the caches: written past them, in whole lines

    const bf16* panel(int64_t block, int64_t step) const { return weight + (block * steps + step) * kStep; }
};

inline void store_some(bf16* out, Vec v, int64_t count) {
    if (count >= kLanes) return store(out, v);
    bf16 buffer[kLanes];
    store(buffer, v);
    if (count > 0) std::memcpy(out, buffer, count * sizeof(bf16));
}

// Sums of one block -> output: bias, rounding, and with a gate (16 gate columns, then 16 up columns) act(gate) * up.
inline void finish(const LinearJob& job, const float* c, int64_t ldc, int64_t row, int64_t rows, int64_t block) {
    const float* bias = job.bias ? job.bias + block * kBlock : nullptr;
    auto sum = [&](const float* line, int i) {
        Vec v = load(line + i);
        return bias ? v + load(bias + i) : v;
    };
    const int64_t width = job.activation ? kBlock / 2 : kBlock, column = block * width;
#if defined(__AVX512BF16__)
    if (!job.activation && column + kBlock <= job.n) {
        const Vec low = bias ? load(bias) : Vec{}, high = bias ? load(bias + kLanes) : Vec{};
        for (int64_t r = 0; r < rows; ++r, c += ldc) {
            __m512bh line = _mm512_cvtne2ps_pbh((__m512)(load(c + kLanes) + high), (__m512)(load(c) + low));
            bf16* out = job.out + (row + r) * job.n + column;
            if (job.streams)
                _mm512_stream_si512((__m512i*)out, (__m512i)line);
            else
                std::memcpy(out, &line, sizeof line);
        }
        return;
    }
#endif
    for (int64_t r = 0; r < rows; ++r, c += ldc) {
        bf16* out = job.out + (row + r) * job.n + column;
        for (int i = 0; i < width; i += kLanes) {
            Vec v = sum(c, i);
            if (job.activation)
                v = rounded(activate(job.activation, rounded(v))) * rounded(sum(c, i + kBlock / 2));
            store_some(out + i, v, job.n - column - i);
        }
    }
}

// Blocks `block` and, up to `last`, the one after it.
template <class Dot>
void few_rows(const LinearJob& job, Dot& dot, int64_t block, int64_t last) {
    alignas(64) float c[kFewRows * 2 * kBlock];
    const int blocks = block + 1 < last ? 2 : 1;
    const bf16* next = block + 2 < last ? job.panel(block + 2, 0) : nullptr;
    dot.run({job.input, job.lda, int(job.m), job.panel(block, 0), job.steps * kStep, blocks, int(job.steps), c,
             2 * kBlock, false, next});
    for (int i = 0; i < blocks; ++i) finish(job, c + i * kBlock, 2 * kBlock, 0, job.m, block + i);
}
