// Element-wise steps of a decoder layer, rounded where transformers' own modules round.
#include "vector.h"

namespace {

// Where the weight of an RMS norm joins. The numbers are those of engine/kernels/elementwise.py.
enum Norm : int { kRoundThenScale = 0, kScaleThenRound = 1, kOnePlusThenRound = 2 };

// Work below this many elements is not worth waking other threads for.
constexpr int64_t kParallelElements = 1 << 15;

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
void rms_norm(int threads, T* out, const T* input, const T* weight, int64_t rows, int64_t dim, int64_t stride,
              float epsilon, int norm) {
#pragma omp parallel for num_threads(threads) schedule(static) if (rows * dim > kParallelElements)
    for (int64_t r = 0; r < rows; ++r) {
        const T* x = input + r * stride;
        T* y = out + r * dim;
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
}

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

template <class T>
void rotary(int threads, T* out, const T* input, const T* cos, const T* sin, int64_t tokens, int64_t heads, int64_t dim,
            int64_t token_stride, int64_t head_stride) {
#pragma omp parallel for num_threads(threads) schedule(static) if (tokens * heads * dim > kParallelElements)
    for (int64_t t = 0; t < tokens; ++t)
        for (int64_t h = 0; h < heads; ++h)
            rotate_head(out + (t * heads + h) * dim, input + t * token_stride + h * head_stride, cos + t * dim,
                        sin + t * dim, dim / 2);
}

}  // namespace

// out [rows][dim], dense; input rows lie `stride` apart.
MANTA_EXPORT void manta_rms_norm(int threads, int is_bf16, void* out, const void* input, const void* weight,
                                 int64_t rows, int64_t dim, int64_t stride, float epsilon, int norm) {
    if (is_bf16)
        rms_norm(threads, (bf16*)out, (const bf16*)input, (const bf16*)weight, rows, dim, stride, epsilon, norm);
    else
        rms_norm(threads, (float*)out, (const float*)input, (const float*)weight, rows, dim, stride, epsilon, norm);
}

// out [tokens][heads][dim], dense; cos and sin [tokens][dim], dense. The two halves of a head are rotated as pairs.
MANTA_EXPORT void manta_rotary(int threads, int is_bf16, void* out, const void* input, const void* cos, const void* sin,
                               int64_t tokens, int64_t heads, int64_t dim, int64_t token_stride, int64_t head_stride) {
    if (is_bf16)
        rotary(threads, (bf16*)out, (const bf16*)input, (const bf16*)cos, (const bf16*)sin, tokens, heads, dim,
               token_stride, head_stride);
    else
        rotary(threads, (float*)out, (const float*)input, (const float*)cos, (const float*)sin, tokens, heads, dim,
               token_stride, head_stride);
}
