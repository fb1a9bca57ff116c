// Paged attention: a flat batch of query tokens against cached keys and values [block][kv head][offset][head_dim].
//
// The query heads that share a kv head are rows of one matrix. Keys are taken kKeys at a time from multiples of kKeys,
// in partitions of kPartition keys whose softmax states are merged in order: so a row's result does not depend on the
// batch, the chunk of its prompt, the number of threads, or whether its partitions were computed at once or in turn.
#pragma once
#include <limits>
#include <vector>

#include "dot.h"
#include "pack_kv.h"

constexpr int kKeys = 64, kPartition = 512, kTileRows = 256, kRows = 32;
constexpr float kNothing = -std::numeric_limits<float>::infinity();

template <class Element>
struct AttentionJob {
    Element* out;
    const Element *query, *key_cache, *value_cache;
    const int32_t *query_start, *context_lens, *block_tables;
    const float* sinks;  // one a query head, or null
    int64_t num_sequences, query_stride, table_stride;
    int query_heads, kv_heads, block_size, head_dim;
    float scale, softcap;  // softcap 0: none
    int window;            // 0: none
    int threads;

    int group() const { return query_heads / kv_heads; }
    int padded_dim() const { return int(round_up(head_dim, kBlock)); }
    int tile_tokens() const { return std::max(1, kTileRows / group()); }
};

struct Item {
    int sequence, kv_head;
    int token, tokens;          // of the sequence's query tokens
    int first_key, last_key;    // keys that some row sees
    int64_t state = -1;         // where its unfinished softmax goes; -1: the item finishes its rows itself
};

// Softmax states of some rows: the largest score, the sum of weights by lane, the weighted sum of values.
struct State {
    float *top, *sum, *values;

    static int64_t size(int64_t rows, int dim) { return rows * (1 + kLanes + dim); }
    State(float* p, int64_t rows) : top(p), sum(p + rows), values(p + rows * (1 + kLanes)) {}

    void clear(int64_t rows, int dim) {
        std::fill(top, top + rows, kNothing);
        std::fill(sum, sum + rows * kLanes, 0.0f);
        std::fill(values, values + rows * dim, 0.0f);
    }
    void rescale(int64_t row, int dim, float factor) {
        store(sum + row * kLanes, load(sum + row * kLanes) * factor);
        float* v = values + row * dim;
        for (int i = 0; i < dim; i += kLanes) store(v + i, load(v + i) * factor);
    }
    void merge(const State& other, int64_t rows, int dim) {
        for (int64_t r = 0; r < rows; ++r) {
            if (other.top[r] == kNothing) continue;
            const float m = std::max(top[r], other.top[r]);
            const float mine = top[r] == kNothing ? 0.0f : std::exp(top[r] - m), theirs = std::exp(other.top[r] - m);
            top[r] = m;
            float *s = sum + r * kLanes, *v = values + r * dim;
            const float *t = other.sum + r * kLanes, *w = other.values + r * dim;
            store(s, load(s) * mine + load(t) * theirs);
            for (int i = 0; i < dim; i += kLanes) store(v + i, load(v + i) * mine + load(w + i) * theirs);
        }
    }
};

template <class Element>
struct Scratch {
    std::vector<Element> query, keys, values;
    std::vector<float> whole, part;
    alignas(64) float scores[kRows * kKeys];
    alignas(64) Element weights[kRows * kKeys];
};

template <class Dot>
class Worker {
    using Element = typename Dot::Element;

   public:
    explicit Worker(const AttentionJob<Element>& job) : job_(job), dim_(job.padded_dim()), group_(job.group()) {
        static thread_local Scratch<Element> scratch;
        scratch_ = &scratch;
        const int64_t rows = round_up(int64_t(job.tile_tokens()) * group_, kRows);
        scratch_->query.resize(rows * dim_);
        scratch_->keys.resize(int64_t(kKeys) * dim_);
        scratch_->values.resize(int64_t(kKeys) * dim_);
        scratch_->whole.resize(State::size(rows, dim_));
        scratch_->part.resize(State::size(rows, dim_));
    }

    void run(const Item& item, float* states) {
        const int64_t rows = int64_t(item.tokens) * group_;
        copy_query(item);
        State whole(item.state >= 0 ? states + item.state : scratch_->whole.data(), rows);
        whole.clear(rows, dim_);
        for (int key = item.first_key / kPartition * kPartition; key < item.last_key; key += kPartition) {
            const int from = std::max(key, item.first_key), to = std::min(key + kPartition, item.last_key);
            if (key <= item.first_key) {
                attend(item, whole, from, to);
                continue;
            }
            State part(scratch_->part.data(), rows);
            part.clear(rows, dim_);
            attend(item, part, from, to);
            whole.merge(part, rows, dim_);
        }
        if (item.state < 0) finish(item, whole);
    }

    // Softmax states -> output.
    void finish(const Item& item, const State& state) {
        const int64_t start = job_.query_start[item.sequence] + item.token;
        for (int token = 0; token < item.tokens; ++token)
            for (int g = 0; g < group_; ++g) {
                const int row = token * group_ + g, head = item.kv_head * group_ + g;
                float total = horizontal_sum(load(state.sum + int64_t(row) * kLanes)), factor = 1.0f;
                if (job_.sinks) {
                    const float m = std::max(state.top[row], job_.sinks[head]);
                    factor = std::exp(state.top[row] - m);
                    total = total * factor + std::exp(job_.sinks[head] - m);
                }
                factor /= total;
                const float* v = state.values + int64_t(row) * dim_;
                Element* out = job_.out + ((start + token) * job_.query_heads + head) * job_.head_dim;
                store_values(v, factor, job_.head_dim, out);
            }
    }

   private:
    void copy_query(const Item& item) {
        Element* out = scratch_->query.data();
        const int64_t start = job_.query_start[item.sequence] + item.token;
        for (int token = 0; token < item.tokens; ++token) {
            const Element* in = job_.query + (start + token) * job_.query_stride;
            in += int64_t(item.kv_head) * group_ * job_.head_dim;
            for (int g = 0; g < group_; ++g, in += job_.head_dim, out += dim_) {
                std::memcpy(out, in, job_.head_dim * sizeof(Element));
                std::fill(out + job_.head_dim, out + dim_, Element(0));
            }
        }
    }

    // Adds the keys [from, to) of one partition to the rows' states.
    void attend(const Item& item, State& state, int from, int to) {
        const int rows = item.tokens * group_;
        for (int key = from / kKeys * kKeys; key < to; key += kKeys) {
            pack(item, key);
            for (int row = 0; row < rows; row += kRows) {
                const int some = std::min(kRows, rows - row);
                if (last_key(item, row + some - 1) <= key) continue;
                dot_.run({scratch_->query.data() + int64_t(row) * dim_, dim_, some, scratch_->keys.data(),
                          int64_t(kBlock) * dim_, kKeys / kBlock, dim_ / kBlock, scratch_->scores, kKeys, false,
                          nullptr});
                for (int r = 0; r < some; ++r) weigh(item, state, key, row + r, r);
                dot_.run({scratch_->weights, kKeys, some, scratch_->values.data(), int64_t(kKeys) * kBlock,
                          dim_ / kBlock, kKeys / kBlock, state.values + int64_t(row) * dim_, dim_, true, nullptr});
            }
        }
    }

    // One past the last key that a row sees.
    int last_key(const Item& item, int row) const {
        const int s = item.sequence, length = job_.query_start[s + 1] - job_.query_start[s];
        return job_.context_lens[s] - length + item.token + row / group_ + 1;
    }

    // Scores of one row and block -> weights, with the row's state brought to the new largest score.
    void weigh(const Item& item, State& state, int key, int row, int line) {
        float* scores = scratch_->scores + line * kKeys;
        const int end = last_key(item, row), begin = job_.window ? std::max(0, end - job_.window) : 0;
        Vec s[kKeys / kLanes], top = splat(kNothing);
        for (int i = 0; i < kKeys / kLanes; ++i) {
            s[i] = load(scores + i * kLanes) * job_.scale;
            if (job_.softcap != 0.0f) s[i] = tanh(s[i] / job_.softcap) * job_.softcap;
        }
        if (begin > key || end < key + kKeys) {
            for (int i = 0; i < kKeys / kLanes; ++i) store(scores + i * kLanes, s[i]);
            for (int i = 0; i < kKeys; ++i)
                if (key + i < begin || key + i >= end) scores[i] = kNothing;
            for (int i = 0; i < kKeys / kLanes; ++i) s[i] = load(scores + i * kLanes);
        }
        for (Vec& v : s) top = maximum(top, v);
        const float before = state.top[row], m = std::max(before, horizontal_max(top));
        if (m > before && before != kNothing) state.rescale(row, dim_, exp(splat(before - m))[0]);
        state.top[row] = m;
        const float shift = m == kNothing ? 0.0f : m;
        Vec sum{};
        for (int i = 0; i < kKeys / kLanes; ++i) {
            Vec weight = exp(s[i] - shift);
            sum += weight;
            store(scratch_->weights + line * kKeys + i * kLanes, weight);
        }
        float* total = state.sum + int64_t(row) * kLanes;
        store(total, load(total) + sum);
    }

    // Keys and values [key, key + kKeys) of the item's sequence and head; zeros behind the context.
    void pack(const Item& item, int key) {
        find_rows(item, key, keys_, values_);
        find_rows(item, key + kKeys, next_keys_, next_values_);
        for (int i = 0; i < kKeys; i += kBlock)
            pack_keys(keys_ + i, next_keys_ + i, job_.head_dim, dim_, scratch_->keys.data() + int64_t(i) * dim_);
        pack_values(values_, next_values_, kKeys, job_.head_dim, dim_, scratch_->values.data());
    }

    void find_rows(const Item& item, int key, const Element** keys, const Element** values) const {
        static const Element zeros[256] = {};
        const int count = std::clamp(job_.context_lens[item.sequence] - key, 0, kKeys);
        for (int i = 0; i < count;) {
            const Run run = find_run(item, key + i, key + count);
            for (int j = 0; j < run.count; ++j, ++i) {
                keys[i] = run.keys + int64_t(j) * job_.head_dim;
                values[i] = run.values + int64_t(j) * job_.head_dim;
            }
        }
        for (int i = count; i < kKeys; ++i) keys[i] = values[i] = zeros;
    }

    struct Run {
        const Element *keys, *values;
        int count;
    };

    // Rows from `key` on that lie one after the other in one block of the cache, before `end`.
    Run find_run(const Item& item, int key, int end) const {
        const int32_t* table = job_.block_tables + item.sequence * job_.table_stride;
        const int offset = key % job_.block_size;
        const int64_t block = table[key / job_.block_size];
        const int64_t at = ((block * job_.kv_heads + item.kv_head) * job_.block_size + offset) * job_.head_dim;
        return {job_.key_cache + at, job_.value_cache + at, std::min(job_.block_size - offset, end - key)};
    }

    const AttentionJob<Element>& job_;
    int dim_, group_;
    Scratch<Element>* scratch_;
    Dot dot_;
    const Element *keys_[kKeys], *values_[kKeys], *next_keys_[kKeys], *next_values_[kKeys];
};

// All tiles of query rows, the longest first.
template <class Element>
void list_items(const AttentionJob<Element>& job, std::vector<Item>& items) {
    items.clear();
    for (int s = 0; s < job.num_sequences; ++s) {
        const int length = job.query_start[s + 1] - job.query_start[s], past = job.context_lens[s] - length;
        for (int token = (length - 1) / job.tile_tokens() * job.tile_tokens(); length > 0 && token >= 0;
             token -= job.tile_tokens()) {
            const int tokens = std::min(job.tile_tokens(), length - token);
            const int first = job.window ? std::max(0, past + token + 1 - job.window) : 0;
            for (int head = 0; head < job.kv_heads; ++head)
                items.push_back({s, head, token, tokens, first, past + token + tokens});
        }
    }
}

// What one attention call computes: tiles of query rows, cut into partitions where there are too few to go round.
struct AttentionPlan {
    std::vector<Item> tiles, parts;
    std::vector<int64_t> first_part;  // of each tile, and the end; empty when tiles are computed whole
    int64_t num_floats = 0;           // that the parts' states need

    bool split() const { return !first_part.empty(); }
    const std::vector<Item>& items() const { return split() ? parts : tiles; }
};

template <class Element>
void make_plan(const AttentionJob<Element>& job, AttentionPlan& plan) {
    list_items(job, plan.tiles);
    plan.parts.clear();
    plan.first_part.clear();
    plan.num_floats = 0;
    if (int64_t(plan.tiles.size()) >= 4 * int64_t(job.threads)) return;
    for (const Item& tile : plan.tiles) {
        plan.first_part.push_back(plan.parts.size());
        for (int key = tile.first_key / kPartition * kPartition; key < tile.last_key; key += kPartition) {
            Item part = tile;
            part.first_key = std::max(key, tile.first_key);
            part.last_key = std::min(key + kPartition, tile.last_key);
            part.state = plan.num_floats;
            plan.num_floats += State::size(int64_t(tile.tokens) * job.group(), job.padded_dim());
            plan.parts.push_back(part);
        }
    }
    plan.first_part.push_back(plan.parts.size());
    if (plan.parts.size() == plan.tiles.size()) plan.first_part.clear();
}

// The states of a tile's parts -> output.
template <class Dot>
void merge_parts(const AttentionJob<typename Dot::Element>& job, Worker<Dot>& worker, const AttentionPlan& plan,
                 int64_t tile, float* states) {
    const Item& item = plan.parts[plan.first_part[tile]];
    const int64_t rows = int64_t(item.tokens) * job.group();
    State state(states + item.state, rows);
    for (int64_t i = plan.first_part[tile] + 1; i < plan.first_part[tile + 1]; ++i)
        state.merge(State(states + plan.parts[i].state, rows), rows, job.padded_dim());
    worker.finish(item, state);
}
