// RMS norm of a row and rotation of a head, rounded where transformers' own modules round.
#pragma once
#include "vector.h"

// Where the weight of an RMS norm joins. The numbers are those of engine/kernels/elementwise.py.
enum Norm : int { kRoundThenScale = 0, kScaleThenRound = 1, kOnePlusThenRound = 2 };

inline Vec rounded_to(const bf16*, Vec v) { return rounded(v); }
inline Vec rounded_to(const float*, Vec v) { return v; }
inline float rounded_to(const bf16*, float x) { return to_float(to_bf16(x)); }
inline float rounded_to(const float*, float x) { return x; }
inline float load_one(const bf16* p) { return to_float(*p); }
inline float load_one(const float* p) { return *p; }
inline void store_one(bf16* p, float x) { *p = to_bf16(x); }
inline void store_one(float* p, float x) { *p = x; }

template <class T, class Value>
Value scaled(int norm, const T* tag, Value normal, Value weight) {
    if (norm == kRoundThenScale) return rounded_to(tag, normal) * weight;
    return normal * (norm == kOnePlusThenRound ? weight + 1.0f : weight);
}

template <class T>
void normalize_row(T* y, const T* x, const T* weight, int64_t dim, float epsilon, int norm) {
    Vec squares{};
    float rest = 0.0f;
    int64_t i = 0;
    for (; i + kLanes <= dim; i += kLanes) squares += load(x + i) * load(x + i);
    for (; i < dim; ++i) rest += load_one(x + i) * load_one(x + i);
    const float factor = 1.0f / std::sqrt((horizontal_sum(squares) + rest) / float(dim) + epsilon);
    for (i = 0; i + kLanes <= dim; i += kLanes)
        store(y + i, scaled(norm, x, load(x + i) * factor, load(weight + i)));
    for (; i < dim; ++i) store_one(y + i, scaled(norm, x, load_one(x + i) * factor, load_one(weight + i)));
}

// `out` may be `x`.
template <class T>
void rotate_head(T* out, const T* x, const T* cos, const T* sin, int64_t half) {
    int64_t i = 0;
    for (; i + kLanes <= half; i += kLanes) {
        const Vec low = load(x + i), high = load(x + half + i);
        store(out + i, rounded_to(x, low * load(cos + i)) - rounded_to(x, high * load(sin + i)));
        store(out + half + i, rounded_to(x, high * load(cos + half + i)) + rounded_to(x, low * load(sin + half + i)));
    }
    for (; i < half; ++i) {
        const float low = load_one(x + i), high = load_one(x + half + i);
        store_one(out + i, rounded_to(x, low * load_one(cos + i)) - rounded_to(x, high * load_one(sin + i)));
        store_one(out + half + i,
                  rounded_to(x, high * load_one(cos + half + i)) + rounded_to(x, low * load_one(sin + half + i)));
    }
}
