// The shared matrix product on AMX tiles (16 rows of 64 bytes; one tdpbf16ps is 16 x 16 outputs over 32 inputs).
#pragma once
#include "dot.h"

#if defined(__AMX_BF16__)

class DotAmx {
   public:
    using Element = bf16;

    DotAmx() = default;
    DotAmx(const DotAmx&) = delete;
    DotAmx& operator=(const DotAmx&) = delete;
    ~DotAmx() {
        if (first_ >= 0) _tile_release();
    }

    void run(const Operands<bf16>& o) {
        asm volatile("" ::: "memory");  // the tile loads do not tell the compiler that they read memory
        for (int row = 0; row < o.rows; row += 32) {
            int rows = o.rows - row < 32 ? o.rows - row : 32;
            const bf16* a = o.a + row * o.lda;
            float* c = o.c + row * o.ldc;
            configure(rows < 16 ? rows : 16, rows > 16 ? rows - 16 : 0);
            int block = 0;
            if (rows <= 16)
                for (; block + 2 <= o.blocks; block += 2)
                    one_by_four(o, a, o.b + block * o.stride, c + block * kBlock);
            for (; block < o.blocks; ++block) {
                const bf16* b = o.b + block * o.stride;
                if (rows <= 16)
                    one_by_two(o, a, b, c + block * kBlock);
                else
                    two_by_two(o, a, b, c + block * kBlock, row, o.next ? o.next + block * o.stride : nullptr);
            }
        }
    }

   private:
    struct Config {
        uint8_t palette = 1, start_row = 0, reserved[14] = {};
        uint16_t bytes[16] = {};
        uint8_t rows[16] = {};
    };

    // Tiles 0, 1 and 2, 3 hold the sums of the first and of the second 16 rows, 4 and 5 their inputs, 6 and 7 weights.
    // With one row of tiles, 0 to 3 are sums of those rows, 4 the inputs, 5 to 7 weights.
    void configure(int first, int second) {
        if (first == first_ && second == second_) return;
        Config config;
        for (int i = 0; i < 8; ++i) config.bytes[i] = 64;
        int lower = second ? second : first;
        const int rows[8] = {first, first, lower, lower, first, second ? second : 16, 16, 16};
        for (int i = 0; i < 8; ++i) config.rows[i] = uint8_t(rows[i]);
        asm volatile("ldtilecfg %0" ::"m"(config));
        first_ = first;
        second_ = second;
    }

    static void one_by_four(const Operands<bf16>& o, const bf16* a, const bf16* b, float* c) {
        const int64_t ldc = o.ldc * 4;
        if (o.accumulate) {
            _tile_loadd(0, c, ldc);
            _tile_loadd(1, c + 16, ldc);
            _tile_loadd(2, c + 32, ldc);
            _tile_loadd(3, c + 48, ldc);
        } else {
            _tile_zero(0);
            _tile_zero(1);
            _tile_zero(2);
            _tile_zero(3);
        }
        for (int step = 0; step < o.steps; ++step, a += kBlock, b += kStep) {
            _tile_loadd(4, a, o.lda * 2);
            _tile_loadd(5, b, 128);
            _tile_dpbf16ps(0, 4, 5);
            _tile_loadd(6, b + 32, 128);
            _tile_dpbf16ps(1, 4, 6);
            _tile_loadd(7, b + o.stride, 128);
            _tile_dpbf16ps(2, 4, 7);
            _tile_loadd(5, b + o.stride + 32, 128);
            _tile_dpbf16ps(3, 4, 5);
        }
        _tile_stored(0, c, ldc);
        _tile_stored(1, c + 16, ldc);
        _tile_stored(2, c + 32, ldc);
        _tile_stored(3, c + 48, ldc);
    }

    static void one_by_two(const Operands<bf16>& o, const bf16* a, const bf16* b, float* c) {
        const int64_t ldc = o.ldc * 4;
        if (o.accumulate) {
            _tile_loadd(0, c, ldc);
            _tile_loadd(1, c + 16, ldc);
        } else {
            _tile_zero(0);
            _tile_zero(1);
        }
        for (int step = 0; step < o.steps; ++step, a += kBlock, b += kStep) {
            _tile_loadd(4, a, o.lda * 2);
            _tile_loadd(6, b, 128);
            _tile_dpbf16ps(0, 4, 6);
            _tile_loadd(7, b + 32, 128);
            _tile_dpbf16ps(1, 4, 7);
        }
        _tile_stored(0, c, ldc);
        _tile_stored(1, c + 16, ldc);
    }

    static void two_by_two(const Operands<bf16>& o, const bf16* a, const bf16* b, float* c, int row,
                           const bf16* next_b) {
        const int64_t ldc = o.ldc * 4;
        float* lower = c + 16 * o.ldc;
        if (o.accumulate) {
            _tile_loadd(0, c, ldc);
            _tile_loadd(1, c + 16, ldc);
            _tile_loadd(2, lower, ldc);
            _tile_loadd(3, lower + 16, ldc);
        } else {
            _tile_zero(0);
            _tile_zero(1);
            _tile_zero(2);
            _tile_zero(3);
        }
        // The rows share the work of fetching the B that comes next: `lines` of its 32 cache lines a step.
        const int tiles = (o.rows + 31) / 32, lines = (32 + tiles - 1) / tiles;
        const char *next = nullptr, *end = nullptr;
        if (next_b) {
            next = reinterpret_cast<const char*>(next_b) + int64_t(row / 32) * o.steps * lines * 64;
            end = reinterpret_cast<const char*>(next_b + int64_t(o.steps) * kStep);
        }
        for (int step = 0; step < o.steps; ++step, a += kBlock, b += kStep) {
            for (int i = 0; i < lines && next < end; ++i, next += 64) _mm_prefetch(next, _MM_HINT_T1);
            _tile_loadd(6, b, 128);
            _tile_loadd(4, a, o.lda * 2);
            _tile_dpbf16ps(0, 4, 6);
            _tile_loadd(7, b + 32, 128);
            _tile_dpbf16ps(1, 4, 7);
            _tile_loadd(5, a + 16 * o.lda, o.lda * 2);
            _tile_dpbf16ps(2, 5, 6);
            _tile_dpbf16ps(3, 5, 7);
        }
        _tile_stored(0, c, ldc);
        _tile_stored(1, c + 16, ldc);
        _tile_stored(2, lower, ldc);
        _tile_stored(3, lower + 16, ldc);
    }

    int first_ = -1, second_ = -1;
};

#endif
