// A float vector as wide as the machine's registers, and conversions between bf16 and float32.
#pragma once
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

typedef float Vec __attribute__((vector_size(kLanes * 4), aligned(4)));
typedef uint32_t VecU __attribute__((vector_size(kLanes * 4), aligned(4)));

inline Vec load(const float* p) {
    Vec v;
    std::memcpy(&v, p, sizeof v);
    return v;
}

inline void store(float* p, Vec v) { std::memcpy(p, &v, sizeof v); }

inline Vec broadcast(float x) { return Vec{} + x; }

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
    if ((bits & 0x7fffffffu) > 0x7f800000u) return bf16((bits >> 16) | 0x40u);
    return bf16((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}
