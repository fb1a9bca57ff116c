// Paged attention of a whole batch, its tiles shared out to OpenMP's threads.
#include "attention.h"

#include <omp.h>

#include "dot_amx.h"
#include "write_kv.h"

namespace {

template <class Dot>
void attention(const AttentionJob<typename Dot::Element>& job) {
    static thread_local AttentionPlan plan;
    static thread_local std::vector<float> storage;
    make_plan(job, plan);
    storage.resize(plan.num_floats);
    const AttentionPlan& made = plan;  // the calling thread's, whoever computes
    float* states = storage.data();
    const int64_t count = made.items().size(), tiles = made.split() ? made.tiles.size() : 0;
#pragma omp parallel num_threads(job.threads) if (count > 1)
    {
        Worker<Dot> worker(job);
#pragma omp for schedule(dynamic, 1)
        for (int64_t i = 0; i < count; ++i) worker.run(made.items()[i], states);
    }
    Worker<Dot> worker(job);
    for (int64_t tile = 0; tile < tiles; ++tile) merge_parts(job, worker, made, tile, states);
}

template <class Element>
void write(const Element* key, const Element* value, Element* key_cache, Element* value_cache, const int64_t* slots,
           int64_t tokens, int64_t key_stride, int64_t value_stride, int kv_heads, int block_size, int head_dim) {
    for (int64_t t = 0; t < tokens; ++t)
        write_token(key + t * key_stride, value + t * value_stride, key_cache, value_cache, slots[t], kv_heads,
                    block_size, head_dim);
}

}  // namespace

MANTA_EXPORT void manta_write_kv(int is_bf16, const void* key, const void* value, void* key_cache, void* value_cache,
                                 const int64_t* slots, int64_t tokens, int64_t key_stride, int64_t value_stride,
                                 int kv_heads, int block_size, int head_dim) {
    if (is_bf16)
        write((const bf16*)key, (const bf16*)value, (bf16*)key_cache, (bf16*)value_cache, slots, tokens, key_stride,
              value_stride, kv_heads, block_size, head_dim);
    else
        write((const float*)key, (const float*)value, (float*)key_cache, (float*)value_cache, slots, tokens, key_stride,
              value_stride, kv_heads, block_size, head_dim);
}

MANTA_EXPORT void manta_attention(int isa, int threads, int is_bf16, void* out, const void* query,
                                  const void* key_cache, const void* value_cache, const int32_t* query_start,
                                  const int32_t* context_lens, const int32_t* block_tables, const float* sinks,
                                  int64_t num_sequences, int64_t query_stride, int64_t table_stride, int query_heads,
                                  int kv_heads, int block_size, int head_dim, float scale, float softcap, int window) {
    if (!is_bf16) {
        AttentionJob<float> job{(float*)out, (const float*)query, (const float*)key_cache, (const float*)value_cache,
                       query_start, context_lens, block_tables, sinks, num_sequences, query_stride, table_stride,
                       query_heads, kv_heads, block_size, head_dim, scale, softcap, window, threads};
        return attention<Tiled<DotFloat>>(job);
    }
    AttentionJob<bf16> job{(bf16*)out, (const bf16*)query, (const bf16*)key_cache, (const bf16*)value_cache,
                  query_start, context_lens, block_tables, sinks, num_sequences, query_stride, table_stride,
                  query_heads, kv_heads, block_size, head_dim, scale, softcap, window, threads};
#if defined(__AMX_BF16__)
    if (isa >= kAmx) return attention<DotAmx>(job);
#endif
#if defined(__AVX512BF16__)
    if (isa >= kAvx512Bf16) return attention<Tiled<DotAvx512>>(job);
#endif
    (void)isa;
    attention<Tiled<DotGeneric>>(job);
}
