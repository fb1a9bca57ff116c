// The one matrix product that linears and attention share: C[rows][32 * blocks] (+)= A[rows][32 * steps] B.
//
// B comes in blocks of 32 columns. A bf16 block holds [steps * 16][32][2], that is pairs of inputs side by side
// (the order in which vdpbf16ps and tdpbf16ps read), a float block [steps * 32][32]; block i starts at b + i * stride.
// Each output is summed over the inputs in one fixed order, whatever the number of rows, blocks or calls.
#pragma once
#include "vector.h"

constexpr int kBlock = 32;          // columns of a block, and inputs of a step
constexpr int kStep = kBlock * kBlock;  // elements of B for one step of one block

inline int64_t round_up(int64_t x, int64_t to) { return (x + to - 1) / to * to; }

template <class Element>
struct Operands {
    const Element* a;
    int64_t lda;
    int rows;
    const Element* b;
    int64_t stride;  // from one block of B to the next
    int blocks;
    int steps;
    float* c;
    int64_t ldc;
    bool accumulate;
    const Element* next;  // B that comes after this call, to be fetched meanwhile; or null
};

// B streams from memory: asked for beyond the end of the page, where the hardware's own prefetching stops.
inline void fetch_ahead(const bf16* b) {
    __builtin_prefetch(reinterpret_cast<const char*>(b) + 4096);
    __builtin_prefetch(reinterpret_cast<const char*>(b) + 4096 + 64);
}

// Plain C++: the compiler vectorises it for whatever the machine has. A bf16 pair is one 32-bit number whose high half
// is the odd input's float already and whose low half is the even input's after a shift.
struct DotGeneric {
    using Element = bf16;
    static constexpr int kRows = 4;

    template <int Rows>
    static void tile(const bf16* a, int64_t lda, const bf16* b, int steps, float* c, int64_t ldc, bool accumulate,
                     bool stream) {
        constexpr int vecs = kBlock / kLanes;
        Vec acc[Rows][vecs] = {};
        if (accumulate)
            for (int r = 0; r < Rows; ++r)
                for (int v = 0; v < vecs; ++v) acc[r][v] = load(c + r * ldc + v * kLanes);
        for (int k = 0; k < steps * kBlock; k += 2, b += 2 * kBlock) {
            if (stream) fetch_ahead(b);
            for (int v = 0; v < vecs; ++v) {
                VecU w;
                std::memcpy(&w, b + 2 * v * kLanes, sizeof w);
                Vec even = (Vec)(w << 16), odd = (Vec)(w & 0xffff0000u);
                for (int r = 0; r < Rows; ++r) {
                    acc[r][v] += even * to_float(a[r * lda + k]);
                    acc[r][v] += odd * to_float(a[r * lda + k + 1]);
                }
            }
        }
        for (int r = 0; r < Rows; ++r)
            for (int v = 0; v < vecs; ++v) store(c + r * ldc + v * kLanes, acc[r][v]);
    }
};

struct DotFloat {
    using Element = float;
    static constexpr int kRows = 4;

    template <int Rows>
    static void tile(const float* a, int64_t lda, const float* b, int steps, float* c, int64_t ldc, bool accumulate,
                     bool stream) {
        (void)stream;  // float B is what attention has just packed
        constexpr int vecs = kBlock / kLanes;
        Vec acc[Rows][vecs] = {};
        if (accumulate)
            for (int r = 0; r < Rows; ++r)
                for (int v = 0; v < vecs; ++v) acc[r][v] = load(c + r * ldc + v * kLanes);
        for (int k = 0; k < steps * kBlock; ++k, b += kBlock)
            for (int v = 0; v < vecs; ++v) {
                Vec w = load(b + v * kLanes);
                for (int r = 0; r < Rows; ++r) acc[r][v] += w * a[r * lda + k];
            }
        for (int r = 0; r < Rows; ++r)
            for (int v = 0; v < vecs; ++v) store(c + r * ldc + v * kLanes, acc[r][v]);
    }
};

#if defined(__AVX512BF16__)
struct DotAvx512 {
    using Element = bf16;
    static constexpr int kRows = 12;  // 24 sums and 2 weights of the 32 registers

    template <int Rows>
    static void tile(const bf16* a, int64_t lda, const bf16* b, int steps, float* c, int64_t ldc, bool accumulate,
                     bool stream) {
        __m512 acc[Rows][2];
        for (int r = 0; r < Rows; ++r)
            for (int v = 0; v < 2; ++v)
                acc[r][v] = accumulate ? _mm512_loadu_ps(c + r * ldc + v * 16) : _mm512_setzero_ps();
        for (int k = 0; k < steps * kBlock; k += 2, b += 2 * kBlock) {
            if (stream) fetch_ahead(b);
            __m512bh w0 = (__m512bh)_mm512_loadu_si512(b), w1 = (__m512bh)_mm512_loadu_si512(b + kBlock);
            for (int r = 0; r < Rows; ++r) {
                int pair;
                std::memcpy(&pair, a + r * lda + k, 4);
                __m512bh x = (__m512bh)_mm512_set1_epi32(pair);
                acc[r][0] = _mm512_dpbf16_ps(acc[r][0], x, w0);
                acc[r][1] = _mm512_dpbf16_ps(acc[r][1], x, w1);
            }
        }
        for (int r = 0; r < Rows; ++r)
            for (int v = 0; v < 2; ++v) _mm512_storeu_ps(c + r * ldc + v * 16, acc[r][v]);
    }
};
#endif

// Runs a tile kernel over all rows and blocks.
template <class Tile>
struct Tiled {
    using Element = typename Tile::Element;

    template <int Rows>
    static void rows_left(int rows, const Operands<Element>& o, const Element* a, const Element* b, float* c) {
        if constexpr (Rows > 1) {
            if (rows < Rows) return rows_left<Rows - 1>(rows, o, a, b, c);
        }
        Tile::template tile<Rows>(a, o.lda, b, o.steps, c, o.ldc, o.accumulate, o.next != nullptr);
    }

    void run(const Operands<Element>& o) {
        for (int block = 0; block < o.blocks; ++block)
            for (int row = 0; row < o.rows; row += Tile::kRows) {
                int rows = o.rows - row < Tile::kRows ? o.rows - row : Tile::kRows;
                rows_left<Tile::kRows>(rows, o, o.a + row * o.lda, o.b + block * o.stride,
                                       o.c + row * o.ldc + block * kBlock);
            }
    }
};
