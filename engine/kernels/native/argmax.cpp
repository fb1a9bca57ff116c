// The best token of each row of logits, in one pass over them.
#include <cmath>

#include "vector.h"

namespace {

constexpr int64_t kChunk = 4 * 1024;  // searched once more where the maximum lies, still in the first-level cache
constexpr int64_t kParallelElements = 1 << 15;

// The first index of the maximum; -1 when the row holds a NaN or its maximum is infinite.
template <class T>
int64_t argmax(const T* row, int64_t size) {
    float best = -INFINITY;
    int64_t best_chunk = 0;
    for (int64_t start = 0; start < size; start += kChunk) {
        const int64_t end = start + kChunk < size ? start + kChunk : size;
        Vec high = splat(-INFINITY);
        VecI nan{};
        int64_t i = start;
        for (; i + kLanes <= end; i += kLanes) {
            const Vec v = load(row + i);
            nan |= (VecI)(v != v);
            high = maximum(high, v);
        }
        float chunk_best = horizontal_max(high);
        bool any_nan = false;
        for (int lane = 0; lane < kLanes; ++lane) any_nan |= nan[lane] != 0;
        for (; i < end; ++i) {
            float x;
            if constexpr (sizeof(T) == 2)
                x = to_float(row[i]);
            else
                x = row[i];
            any_nan |= x != x;
            chunk_best = x > chunk_best ? x : chunk_best;
        }
        if (any_nan) return -1;
        if (chunk_best > best) {
            best = chunk_best;
            best_chunk = start;
        }
    }
    if (std::isinf(best)) return -1;
    for (int64_t i = best_chunk;; ++i) {
        if constexpr (sizeof(T) == 2) {
            if (to_float(row[i]) == best) return i;
        } else {
            if (row[i] == best) return i;
        }
    }
}

template <class T>
void argmax_rows(int threads, int64_t* out, const T* logits, int64_t rows, int64_t size, int64_t stride) {
#pragma omp parallel for num_threads(threads) schedule(static) if (rows * size > kParallelElements)
    for (int64_t r = 0; r < rows; ++r) out[r] = argmax(logits + r * stride, size);
}

}  // namespace

// out [rows]; rows of logits lie `stride` apart.
MANTA_EXPORT void manta_argmax(int threads, int is_bf16, int64_t* out, const void* logits, int64_t rows, int64_t size,
                               int64_t stride) {
    if (is_bf16)
        argmax_rows(threads, out, (const bf16*)logits, rows, size, stride);
    else
        argmax_rows(threads, out, (const float*)logits, rows, size, stride);
}
