// Element-wise steps of a decoder layer, for rows of a whole batch.
#include "elementwise.h"

namespace {

// Work below this many elements is not worth waking other threads for.
constexpr int64_t kParallelElements = 1 << 15;

template <class T>
void rms_norm(int threads, T* out, const T* input, const T* weight, int64_t rows, int64_t dim, int64_t stride,
              float epsilon, int norm) {
#pragma omp parallel for num_threads(threads) schedule(static) if (rows * dim > kParallelElements)
    for (int64_t r = 0; r < rows; ++r)
        normalize_row(out + r * dim, input + r * stride, weight, dim, epsilon, norm);
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
