// One step of a decoder, or of a pipeline stage of one, over few rows in one parallel region: all layers, and where the
// output layer is here, the last norm and that.
//
// What a Llama-like model computes (norm, query-key-value product, rotation, paged attention, product, residual; norm,
// gated MLP, residual), by the same code and with the same roundings as the separate kernels: so the results are equal.
#include <omp.h>

#include "attention.h"
#include "dot_amx.h"
#include "elementwise.h"
#include "few_rows.h"
#include "shared_group.h"
#include "team.h"
#include "write_kv.h"

// The structures below are those of engine/kernels/decoder.py.
extern "C" {
struct Product {
    const bf16* weight;  // packed
    const float* bias;   // or null
    int64_t inputs, outputs;
    int64_t activation;
};

struct RmsNorm {
    const bf16* weight;  // null: there is none
    int64_t dim;
    float epsilon;
    int32_t kind;
};

struct Layer {
    RmsNorm attention_norm, query_norm, key_norm, mlp_norm;
    Product query_key_value, attention_out, gate_up, down;
    bf16 *key_cache, *value_cache;
    float scale, softcap;  // softcap 0: none
    int32_t window;        // 0: none
    int32_t plan;          // layers of one number have one window
};

struct Decoder {
    const Layer* layers;
    int64_t num_layers, num_plans;
    RmsNorm last_norm;
    Product output;  // no weight: a later stage has it, and the hidden states are what is wanted
    bf16 *normal, *heads, *attended, *gated, *delta;  // room for kFewRows rows each
    int64_t* ticks;  // counts the layers done, for a watchdog
    int32_t query_heads, kv_heads, head_dim, block_size;
    Shared* group;  // or null: of a tensor-parallel rank, whose residual products are terms of a sum
    int32_t rank, ranks, timeout_ms;
};

struct Step {
    bf16* hidden;             // [rows][hidden]: the embeddings; overwritten
    const bf16 *cos, *sin;    // [rows][head_dim]
    const int64_t *slots;     // [rows]
    const int32_t *query_start, *context_lens, *block_tables;
    const int64_t* kept;      // rows whose logits are wanted
    bf16* logits;             // [num_kept][vocabulary]
    int64_t rows, num_kept, num_sequences, table_stride;
};
}

namespace {

template <class Dot>
class Pass {
   public:
    Pass(const Decoder& decoder, const Step& step, int threads)
        : decoder_(decoder), step_(step), threads_(threads), team_(threads), plans_(decoder.num_plans) {
        int64_t floats = 0;
        for (int64_t i = 0; i < decoder.num_layers; ++i) {
            AttentionPlan& plan = plans_[decoder.layers[i].plan];
            if (plan.tiles.empty()) make_plan(attention_job(decoder.layers[i]), plan);
            floats = std::max(floats, plan.num_floats);
        }
        states_.resize(floats);
    }

    // 0, or why a sum of the group has failed (see `all_reduce`): then the logits mean nothing.
    int run() {
#pragma omp parallel num_threads(threads_)
        {
#pragma omp single
            team_.set_size(omp_get_num_threads());
            const int me = omp_get_thread_num();
            for (int64_t i = 0; i < decoder_.num_layers; ++i) {
                layer(me, decoder_.layers[i]);
                if (me == 0) __atomic_fetch_add(decoder_.ticks, 1, __ATOMIC_RELAXED);
            }
            if (decoder_.output.weight) output(me);
        }
        return late_;
    }

   private:
    void layer(int me, const Layer& layer) {
        const int64_t hidden = layer.attention_norm.dim;
        normalize(me, layer.attention_norm, nullptr, step_.rows);
        product(me, layer.query_key_value, decoder_.normal, decoder_.heads, step_.rows);
        team_.each(me, step_.rows, [&](int64_t row) { rotate_and_write(layer, row); });
        attend(me, layer);
        product_to_residual(me, layer.attention_out, decoder_.attended, hidden);
        normalize(me, layer.mlp_norm, nullptr, step_.rows);
        product(me, layer.gate_up, decoder_.normal, decoder_.gated, step_.rows);
        product_to_residual(me, layer.down, decoder_.gated, hidden);
    }

    void output(int me) {
        normalize(me, decoder_.last_norm, step_.kept, step_.num_kept);
        product(me, decoder_.output, decoder_.normal, step_.logits, step_.num_kept);
    }

    // Rows of the hidden state (those of `chosen`, or the first ones) -> normal.
    void normalize(int me, const RmsNorm& norm, const int64_t* chosen, int64_t rows) {
        team_.each(me, rows, [&](int64_t row) {
            const bf16* x = step_.hidden + (chosen ? chosen[row] : row) * norm.dim;
            normalize_row(decoder_.normal + row * norm.dim, x, norm.weight, norm.dim, norm.epsilon, norm.kind);
        });
    }

    void product(int me, const Product& product, const bf16* input, bf16* out, int64_t rows) {
        const LinearJob job = linear_job(product, input, out, rows);
        Dot dot;
        team_.each(me, (job.blocks + 1) / 2, [&](int64_t pair) { few_rows(job, dot, 2 * pair, job.blocks); });
    }

    void product_to_residual(int me, const Product& product, const bf16* input, int64_t width) {
        if (decoder_.group) return sum_to_residual(me, product, input, width);
        const LinearJob job = linear_job(product, input, decoder_.delta, step_.rows);
        Dot dot;
        team_.each(me, (job.blocks + 1) / 2, [&](int64_t pair) {
            few_rows(job, dot, 2 * pair, job.blocks);
            const int64_t first = 2 * pair * kBlock, last = std::min(first + 2 * kBlock, width);
            for (int64_t row = 0; row < step_.rows; ++row) {
                bf16* sum = step_.hidden + row * width;
                const bf16* more = decoder_.delta + row * width;
                for (int64_t i = first; i < last; i += kLanes) store(sum + i, load(sum + i) + load(more + i));
            }
        });
    }

    // The same where the product is this rank's term of a sum.
    void sum_to_residual(int me, const Product& term, const bf16* input, int64_t width) {
        product(me, term, input, decoder_.delta, step_.rows);
        team_.each(me, 1, [&](int64_t) {
            if (!late_)
                late_ = all_reduce(1, decoder_.group, decoder_.rank, decoder_.ranks, decoder_.delta,
                                   step_.rows * width, decoder_.timeout_ms);
        });
        team_.each(me, step_.rows, [&](int64_t row) {
            bf16* sum = step_.hidden + row * width;
            const bf16* more = decoder_.delta + row * width;
            for (int64_t i = 0; i < width; i += kLanes) store(sum + i, load(sum + i) + load(more + i));
        });
    }

    static LinearJob linear_job(const Product& product, const bf16* input, bf16* out, int64_t rows) {
        const int64_t width = product.activation ? kBlock / 2 : kBlock;
        return {1, out, input, product.weight, product.bias, rows, product.outputs, product.inputs,
                round_up(product.outputs, width) / width, product.inputs / kBlock, int(product.activation)};
    }

    void rotate_and_write(const Layer& layer, int64_t row) {
        const int64_t dim = decoder_.head_dim, query_heads = decoder_.query_heads, kv_heads = decoder_.kv_heads;
        bf16* head = decoder_.heads + row * layer.query_key_value.outputs;
        bf16 *keys = head + query_heads * dim, *values = keys + kv_heads * dim;
        for (; head < values; head += dim) {
            const RmsNorm& norm = head < keys ? layer.query_norm : layer.key_norm;
            if (norm.weight) normalize_row(head, head, norm.weight, dim, norm.epsilon, norm.kind);
            rotate_head(head, head, step_.cos + row * dim, step_.sin + row * dim, dim / 2);
        }
        write_token(keys, values, layer.key_cache, layer.value_cache, step_.slots[row], int(kv_heads),
                    decoder_.block_size, int(dim));
    }

    void attend(int me, const Layer& layer) {
        const AttentionJob<bf16> job = attention_job(layer);
        const AttentionPlan& plan = plans_[layer.plan];
        Worker<Dot> worker(job);
        team_.each(me, plan.items().size(), [&](int64_t i) { worker.run(plan.items()[i], states_.data()); });
        if (!plan.split()) return;
        team_.each(me, plan.tiles.size(), [&](int64_t i) { merge_parts(job, worker, plan, i, states_.data()); });
    }

    AttentionJob<bf16> attention_job(const Layer& layer) const {
        return {decoder_.attended,
                decoder_.heads,
                layer.key_cache,
                layer.value_cache,
                step_.query_start,
                step_.context_lens,
                step_.block_tables,
                nullptr,
                step_.num_sequences,
                layer.query_key_value.outputs,
                step_.table_stride,
                decoder_.query_heads,
                decoder_.kv_heads,
                decoder_.block_size,
                decoder_.head_dim,
                layer.scale,
                layer.softcap,
                layer.window,
                threads_};
    }

    const Decoder& decoder_;
    const Step& step_;
    int threads_;
    Team team_;
    std::vector<AttentionPlan> plans_;
    std::vector<float> states_;
    int late_ = 0;
};

}  // namespace

MANTA_EXPORT int manta_decode(int isa, int threads, const Decoder* decoder, const Step* step) {
#if defined(__AMX_BF16__)
    if (isa >= kAmx) return Pass<DotAmx>(*decoder, *step, threads).run();
#endif
#if defined(__AVX512BF16__)
    if (isa >= kAvx512Bf16) return Pass<Tiled<DotAvx512>>(*decoder, *step, threads).run();
#endif
    (void)isa;
    return Pass<Tiled<DotGeneric>>(*decoder, *step, threads).run();
}
