// Turns rows of the paged cache into blocks of B as dot.h wants them: keys transposed, values as they are.
#pragma once
#include <algorithm>

#include "dot.h"

// Each function below also asks for the same parts of `ahead`, the rows that are packed next: spread over the work, for
// a burst of requests would hold up the loads of the present rows.

// out[i * 32 + j] = the i-th 32-bit word of row j, for 32 rows; words in [count, padded) are zero.
inline void transpose_words(const uint32_t* const* rows, const uint32_t* const* ahead, int count, int padded,
                            uint32_t* out) {
#if defined(__AVX512F__)
    for (int half = 0; half < 2; ++half)
        for (int from = 0; from < padded; from += 16) {
            __m512i r[16], t[16];
            const int left = std::clamp(count - from, 0, 16);
            const __mmask16 mask = __mmask16((1u << left) - 1);
            for (int i = 0; i < 16; ++i) {
                r[i] = _mm512_maskz_loadu_epi32(mask, rows[half * 16 + i] + from);
                _mm_prefetch(reinterpret_cast<const char*>(ahead[half * 16 + i] + from), _MM_HINT_T0);
            }
            for (int i = 0; i < 16; i += 2) {
                t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
                t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
            }
            for (int i = 0; i < 16; i += 4) {
                r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
                r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
                r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
                r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
            }
            for (int i = 0; i < 4; ++i) {
                t[i] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0x88);
                t[i + 4] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0xdd);
                t[i + 8] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0x88);
                t[i + 12] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0xdd);
            }
            for (int i = 0; i < 8; ++i) {
                uint32_t* line = out + (from + i) * 32 + half * 16;
                _mm512_storeu_si512(line, _mm512_shuffle_i32x4(t[i], t[i + 8], 0x88));
                _mm512_storeu_si512(line + 8 * 32, _mm512_shuffle_i32x4(t[i], t[i + 8], 0xdd));
            }
        }
#else
    (void)ahead;
    for (int i = 0; i < count; ++i)
        for (int j = 0; j < 32; ++j) out[i * 32 + j] = rows[j][i];
    std::memset(out + count * 32, 0, size_t(padded - count) * 32 * 4);
#endif
}

// 32 keys -> one block over head_dim inputs.
template <class Element>
void pack_keys(const Element* const* rows, const Element* const* ahead, int head_dim, int padded_dim, Element* out) {
    constexpr int per_word = 4 / sizeof(Element);
    transpose_words(reinterpret_cast<const uint32_t* const*>(rows), reinterpret_cast<const uint32_t* const*>(ahead),
                    head_dim / per_word, padded_dim / per_word, reinterpret_cast<uint32_t*>(out));
}

// `count` values (a multiple of 32) -> padded_dim / 32 blocks over `count` inputs. The columns of a bf16 block are the
// even ones, then the odd ones: so a pair of rows is interleaved by shifts alone. `store_values` puts them right.
inline void pack_values(const float* const* rows, const float* const* ahead, int count, int head_dim, int padded_dim,
                        float* out) {
    for (int from = 0; from < padded_dim; from += kBlock)
        for (int j = 0; j < count; ++j, out += kBlock) {
            const int width = std::clamp(head_dim - from, 0, kBlock);
            __builtin_prefetch(ahead[j] + from);
            std::memcpy(out, rows[j] + from, width * sizeof(float));
            std::memset(out + width, 0, (kBlock - width) * sizeof(float));
        }
}

inline void pack_values(const bf16* const* rows, const bf16* const* ahead, int count, int head_dim, int padded_dim,
                        bf16* out) {
    for (int from = 0; from < padded_dim; from += kBlock) {
        const int width = std::clamp(head_dim - from, 0, kBlock);
#if defined(__AVX512BW__)
        const __mmask32 mask = width == 32 ? ~__mmask32(0) : (__mmask32(1) << width) - 1, odd = 0xaaaaaaaau;
        for (int j = 0; j < count; j += 2, out += 2 * kBlock) {
            const __m512i a = _mm512_maskz_loadu_epi16(mask, rows[j] + from);
            const __m512i b = _mm512_maskz_loadu_epi16(mask, rows[j + 1] + from);
            _mm_prefetch(reinterpret_cast<const char*>(ahead[j] + from), _MM_HINT_T0);
            _mm_prefetch(reinterpret_cast<const char*>(ahead[j + 1] + from), _MM_HINT_T0);
            _mm512_storeu_si512(out, _mm512_mask_blend_epi16(odd, a, _mm512_slli_epi32(b, 16)));
            _mm512_storeu_si512(out + kBlock, _mm512_mask_blend_epi16(odd, _mm512_srli_epi32(a, 16), b));
        }
#else
        for (int j = 0; j < count; j += 2, out += 2 * kBlock)
            for (int i = 0; i < kBlock; ++i) {
                bf16* pair = out + i % 2 * kBlock + i / 2 * 2;
                pair[0] = i < width ? rows[j][from + i] : 0;
                pair[1] = i < width ? rows[j + 1][from + i] : 0;
            }
#endif
    }
}

// head_dim weighted sums, times `factor` -> one row of output.
inline void store_values(const float* sums, float factor, int head_dim, float* out) {
    for (int i = 0; i < head_dim; ++i) out[i] = sums[i] * factor;
}

inline void store_values(const float* sums, float factor, int head_dim, bf16* out) {
    for (int from = 0; from < head_dim; from += kBlock, sums += kBlock)
        for (int i = 0; i < std::min(kBlock, head_dim - from); ++i)
            out[from + i] = to_bf16(sums[i / 2 + i % 2 * (kBlock / 2)] * factor);
}
