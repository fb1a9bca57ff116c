// A float vector as wide as the machine's registers: arithmetic, exp, and the way to bf16 and back.
#pragma once
#include <cmath>
#include <cstring>

#include "isa.h"

#if defined(__AVX512F__)
#include <immintrin.h>
constexpr int kLanes = 16;
#elif defined(__AVX__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif

typedef float Vec __attribute__((vector_size(kLanes * 4)));
typedef uint32_t VecU __attribute__((vector_size(kLanes * 4)));
typedef int32_t VecI __attribute__((vector_size(kLanes * 4)));

inline Vec load(const float* p) {
    Vec v;
    std::memcpy(&v, p, sizeof v);
    return v;
}

inline void store(float* p, Vec v) { std::memcpy(p, &v, sizeof v); }

inline Vec splat(float x) { return Vec{} + x; }

inline Vec select(VecI mask, Vec a, Vec b) { return (Vec)(((VecI)a & mask) | ((VecI)b & ~mask)); }

inline Vec maximum(Vec a, Vec b) {
#if defined(__AVX512F__)
    return (Vec)_mm512_max_ps((__m512)a, (__m512)b);
#else
    return select((VecI)(a > b), a, b);
#endif
}

inline float horizontal_max(Vec v) {
#if defined(__AVX512F__)
    return _mm512_reduce_max_ps((__m512)v);
#else
    float m = v[0];
    for (int i = 1; i < kLanes; ++i) m = v[i] > m ? v[i] : m;
    return m;
#endif
}

inline float horizontal_sum(Vec v) {
#if defined(__AVX512F__)
    return _mm512_reduce_add_ps((__m512)v);
#else
    float s = 0;
    for (int i = 0; i < kLanes; ++i) s += v[i];
    return s;
#endif
}

// e^x to about 2e-7 relative; 0 below the smallest normal, so exp(-inf) is 0.
inline Vec exp(Vec x) {
    const Vec low = splat(-87.3f), high = splat(88.7f), magic = splat(12582912.0f);
    VecI underflow = (VecI)(x < low);
    x = select(underflow, low, x);
    x = select((VecI)(x > high), high, x);
    Vec n = x * 1.44269504f + magic;  // the magic number rounds to an integer in the low mantissa bits
    VecI exponent = (VecI)n << 23;
    n -= magic;
    Vec r = x - n * 0.693359375f + n * 2.12194440e-4f;
    Vec p = r * 1.9875691500e-4f + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    return select(underflow, Vec{}, (Vec)((VecI)p + exponent));
}

inline Vec tanh(Vec x) {
    const Vec far = 1.0f - 2.0f / (exp(x * 2.0f) + 1.0f);  // loses digits near zero: a series there
    const Vec square = x * x;
    const Vec near = x + x * square * (((square * -0.05396825f + 0.13333333f) * square) - 0.33333333f);
    return select((VecI)(square < splat(0.04f)), near, far);
}

inline float to_float(bf16 x) {
    uint32_t bits = uint32_t(x) << 16;
    float f;
    std::memcpy(&f, &bits, 4);
    return f;
}

// Round to nearest even; a NaN stays a NaN.
inline bf16 to_bf16(float f) {
    uint32_t bits;
    std::memcpy(&bits, &f, 4);
    uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    return (bits & 0x7fffffffu) > 0x7f800000u ? bf16((bits >> 16) | 0x40u) : bf16(rounded);
}

inline Vec load(const bf16* p) {
#if defined(__AVX512F__)
    __m256i half;
    std::memcpy(&half, p, sizeof half);
    return (Vec)_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16);
#else
    VecU bits;
    for (int i = 0; i < kLanes; ++i) bits[i] = uint32_t(p[i]) << 16;
    return (Vec)bits;
#endif
}

inline void store(bf16* p, Vec v) {
#if defined(__AVX512BF16__)
    __m256bh h = _mm512_cvtneps_pbh((__m512)v);
    std::memcpy(p, &h, sizeof h);
#else
    for (int i = 0; i < kLanes; ++i) p[i] = to_bf16(v[i]);
#endif
}

// What a bf16 step of an unfused model would have kept of this value.
inline Vec rounded(Vec v) {
    bf16 buffer[kLanes];
    store(buffer, v);
    return load(buffer);
}
