// Linear layers over packed bf16 weights. Packed: [N/32][K/2][32][2], K and N padded with zeros to multiples of 32.
#include <omp.h>

#include <vector>

#include "vector.h"

namespace {

constexpr int kBlock = 32;
constexpr int kVecs = kBlock / kLanes;

int64_t round_up(int64_t x, int64_t to) { return (x + to - 1) / to * to; }

template <int Rows>
void dot_block(const bf16* a, int64_t lda, const uint32_t* b, int64_t pairs, float* c) {
    Vec acc[Rows][kVecs] = {};
    for (int64_t k = 0; k < pairs; ++k, b += kBlock) {
        Vec even[kVecs], odd[kVecs];
        for (int v = 0; v < kVecs; ++v) {
            VecU w;
            std::memcpy(&w, b + v * kLanes, sizeof w);
            even[v] = (Vec)(w << 16);
            odd[v] = (Vec)(w & 0xffff0000u);
        }
        for (int r = 0; r < Rows; ++r) {
            float x = to_float(a[r * lda + 2 * k]), y = to_float(a[r * lda + 2 * k + 1]);
            for (int v = 0; v < kVecs; ++v) {
                acc[r][v] += even[v] * x;
                acc[r][v] += odd[v] * y;
            }
        }
    }
    for (int r = 0; r < Rows; ++r)
        for (int v = 0; v < kVecs; ++v) store(c + r * kBlock + v * kLanes, acc[r][v]);
}

void dot_rows(int rows, const bf16* a, int64_t lda, const uint32_t* b, int64_t pairs, float* c) {
    switch (rows) {
        case 1: return dot_block<1>(a, lda, b, pairs, c);
        case 2: return dot_block<2>(a, lda, b, pairs, c);
        case 3: return dot_block<3>(a, lda, b, pairs, c);
        default: return dot_block<4>(a, lda, b, pairs, c);
    }
}

}  // namespace

MANTA_EXPORT int manta_best_isa() { return kGeneric; }

MANTA_EXPORT void manta_pack_weight(bf16* out, const bf16* weight, int64_t n, int64_t k) {
    int64_t pairs = round_up(k, kBlock) / 2, blocks = round_up(n, kBlock) / kBlock;
#pragma omp parallel for
    for (int64_t block = 0; block < blocks; ++block)
        for (int64_t pair = 0; pair < pairs; ++pair)
            for (int64_t i = 0; i < 2 * kBlock; ++i) {
                int64_t row = block * kBlock + i / 2, column = 2 * pair + i % 2;
                out[(block * pairs + pair) * 2 * kBlock + i] = row < n && column < k ? weight[row * k + column] : 0;
            }
}

MANTA_EXPORT void manta_linear(int isa, int threads, bf16* out, const bf16* input, const bf16* weight,
                               const bf16* bias, int64_t m, int64_t n, int64_t k, int64_t lda) {
    (void)isa;
    int64_t padded = round_up(k, kBlock), blocks = round_up(n, kBlock) / kBlock;
    std::vector<bf16> copy;
    if (padded != k) {
        copy.assign(m * padded, 0);
        for (int64_t r = 0; r < m; ++r) std::memcpy(&copy[r * padded], input + r * lda, k * sizeof(bf16));
        input = copy.data();
        lda = padded;
    }
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t block = 0; block < blocks; ++block) {
        const uint32_t* b = reinterpret_cast<const uint32_t*>(weight) + block * kBlock * (padded / 2);
        float c[4 * kBlock];
        for (int64_t row = 0; row < m; row += 4) {
            int rows = int(m - row < 4 ? m - row : 4);
            dot_rows(rows, input + row * lda, lda, b, padded / 2, c);
            for (int r = 0; r < rows; ++r)
                for (int64_t i = 0; i < kBlock && block * kBlock + i < n; ++i) {
                    int64_t column = block * kBlock + i;
                    float x = c[r * kBlock + i] + (bias ? to_float(bias[column]) : 0.0f);
                    out[(row + r) * n + column] = to_bf16(x);
                }
        }
    }
}
