// Linear layers over bf16 weights packed as dot.h describes, N and K padded with zeros to multiples of 32.
#include <omp.h>

#include <algorithm>
#include <vector>

#include "dot_amx.h"
#include "few_rows.h"

namespace {

// Above kFewRows the rows are the larger operand: then inputs are cut so that kDepth steps of one block of weights stay
// in the first-level cache while kRowChunk rows of inputs, in the second-level cache, pass over kBlockChunk blocks.
constexpr int64_t kStreamBytes = 4 << 20;
constexpr int kDepth = 10, kRowChunk = 576, kBlockChunk = 4;

template <class Dot>
void many_rows(const LinearJob& job, int64_t first, int64_t last) {
    Dot dot;
    static thread_local std::vector<float> sums;
    const int64_t chunks = (job.m + kRowChunk - 1) / kRowChunk, chunk = round_up((job.m + chunks - 1) / chunks, 32);
    const int64_t cuts = (job.steps + kDepth - 1) / kDepth, depth = (job.steps + cuts - 1) / cuts;
    const int64_t block_sums = chunk * kBlock;
    sums.resize(block_sums * kBlockChunk);
    for (int64_t row = 0; row < job.m; row += chunk) {
        const int64_t rows = std::min<int64_t>(chunk, job.m - row);
        for (int64_t from = first; from < last; from += kBlockChunk) {
            const int64_t to = std::min<int64_t>(last, from + kBlockChunk);
            for (int64_t step = 0; step < job.steps; step += depth) {
                const int64_t steps = std::min<int64_t>(depth, job.steps - step);
                const bool done = step + steps == job.steps;
                for (int64_t block = from; block < to; ++block) {
                    float* c = &sums[(block - from) * block_sums];
                    const bf16* next = block + 1 < to ? job.panel(block + 1, step) : job.panel(from, step + steps);
                    if (block + 1 == to && done) next = nullptr;
                    dot.run({job.input + row * job.lda + step * kBlock, job.lda, int(rows), job.panel(block, step), 0,
                             1, int(steps), c, kBlock, step > 0, next});
                    if (done) finish(job, c, kBlock, row, rows, block);
                }
            }
        }
    }
}

template <class Dot>
void linear(const LinearJob& job) {
#pragma omp parallel num_threads(job.threads)
    {
        // Pairs of blocks stay together: a thread's share is what it reads as one stream.
        const int64_t pairs = (job.blocks + 1) / 2, me = omp_get_thread_num(), all = omp_get_num_threads();
        const int64_t first = pairs * me / all * 2, last = std::min(job.blocks, pairs * (me + 1) / all * 2);
        if (job.m <= kFewRows) {
            Dot dot;
            for (int64_t block = first; block < last; block += 2) few_rows(job, dot, block, last);
        } else {
            many_rows<Dot>(job, first, last);
        }
#if defined(__AVX512F__)
        if (job.streams) _mm_sfence();
#endif
    }
}

// The input with rows padded to whole steps. Also where rows lie a multiple of 2 KiB apart, because they would share
// few sets of the cache.
const bf16* padded_input(const bf16* input, int64_t m, int64_t k, int64_t& lda, int threads) {
    const int64_t padded = round_up(k, kBlock);
    if (padded == k && (m <= kFewRows || lda % 1024 != 0)) return input;
    static thread_local std::vector<bf16> copy;
    const int64_t row = padded % 1024 == 0 ? padded + kBlock : padded;
    copy.resize(m * row);
    bf16* out = copy.data();
    const int64_t from = lda;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t r = 0; r < m; ++r) {
        std::memcpy(out + r * row, input + r * from, k * sizeof(bf16));
        std::memset(out + r * row + k, 0, (row - k) * sizeof(bf16));
    }
    lda = row;
    return out;
}

}  // namespace

// weight [n][k] -> packed. `gate_width` > 0: rows [0, gate_width) are gates and [gate_width, n) ups; each block takes
// 16 of both.
MANTA_EXPORT void manta_pack_weight(bf16* out, const bf16* weight, int64_t n, int64_t k, int64_t gate_width) {
    const int64_t steps = round_up(k, kBlock) / kBlock, half = kBlock / 2;
    const int64_t blocks = gate_width ? round_up(gate_width, half) / half : round_up(n, kBlock) / kBlock;
#pragma omp parallel for
    for (int64_t block = 0; block < blocks; ++block)
        for (int64_t i = 0; i < kBlock; ++i) {
            int64_t row = block * kBlock + i, limit = n;
            if (gate_width) {
                row = block * half + i % half;
                limit = row < gate_width ? n : 0;
                if (i >= half) row += gate_width;
            }
            bf16* column = out + block * steps * kStep + 2 * i;
            for (int64_t j = 0; j < steps * kBlock; ++j)
                column[j / 2 * 2 * kBlock + j % 2] = row < limit && j < k ? weight[row * k + j] : 0;
        }
}

// out [m][n] = input [m][k] W^T + bias, or with an activation act(gate) * up of the two halves of W.
MANTA_EXPORT void manta_linear(int isa, int threads, bf16* out, const bf16* input, const bf16* weight,
                               const float* bias, int64_t m, int64_t n, int64_t k, int64_t lda, int activation) {
    if (m == 0) return;
    input = padded_input(input, m, k, lda, threads);
    const int64_t width = activation ? kBlock / 2 : kBlock;
    LinearJob job{threads, out, input, weight, bias, m, n, lda, round_up(n, width) / width, round_up(k, kBlock) / kBlock,
            activation, false};
    job.streams = m * n * 2 > kStreamBytes && n % kBlock == 0 && reinterpret_cast<uintptr_t>(out) % 64 == 0;
#if defined(__AMX_BF16__)
    if (isa >= kAmx) return linear<DotAmx>(job);
#endif
#if defined(__AVX512BF16__)
    if (isa >= kAvx512Bf16) return linear<Tiled<DotAvx512>>(job);
#endif
    (void)isa;
    linear<Tiled<DotGeneric>>(job);
}
