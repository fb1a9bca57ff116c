// Draws the next token of each row of logits: temperature, top-k, top-p, min-p and the inverse of the cumulative
// distribution in the order of token ids, one row after the other in a cache-sized scratch.
#include <algorithm>
#include <cmath>
#include <vector>

#include "vector.h"

namespace {

constexpr int64_t kRun = 256;          // tokens whose weights are summed before the draw looks closer
constexpr int kBucketShift = 20;       // of a weight's bits: sign, exponent and three digits name its bucket
constexpr int kNumBuckets = 1024;      // weights lie in [0, 1]
constexpr int64_t kNotFinite = -1;

struct Options {
    float temperature;
    int64_t top_k;  // 0: off
    float top_p, min_p;
    double uniform;
};

struct Candidate {
    float weight;
    int32_t id;
    // The better one first: heavier, and of equals the one with the lower id.
    bool operator<(const Candidate& other) const {
        return weight != other.weight ? weight > other.weight : id < other.id;
    }
};

struct Scratch {
    std::vector<float> weights;
    std::vector<double> run_sums;
    std::vector<Candidate> candidates;
    double mass[kNumBuckets];
    int64_t count[kNumBuckets];

    explicit Scratch(int64_t size)
        : weights(size_t((size + kRun - 1) / kRun * kRun)), run_sums(size_t((size + kRun - 1) / kRun)) {}
};

inline float scalar(const bf16* p) { return to_float(*p); }
inline float scalar(const float* p) { return *p; }

inline int bucket_of(float weight) {
    uint32_t bits;
    std::memcpy(&bits, &weight, 4);
    return int(bits >> kBucketShift);
}

// The maximum; NaN when the row holds a NaN.
template <class T>
float maximum_of(const T* row, int64_t size) {
    Vec high = splat(-INFINITY);
    VecI nan{};
    int64_t i = 0;
    for (; i + kLanes <= size; i += kLanes) {
        const Vec v = load(row + i);
        nan |= (VecI)(v != v);
        high = maximum(high, v);
    }
    float best = horizontal_max(high);
    for (int lane = 0; lane < kLanes; ++lane)
        if (nan[lane]) return NAN;
    for (; i < size; ++i) {
        const float x = scalar(row + i);
        if (x != x) return NAN;
        best = std::max(best, x);
    }
    return best;
}

// weights[i] = e^((x - best) / temperature); those behind the row's end are zero.
template <class T>
void weigh(const T* row, int64_t size, float best, float temperature, Scratch& s) {
    const float scale = 1.0f / temperature;
    float* w = s.weights.data();
    int64_t i = 0;
    for (; i + kLanes <= size; i += kLanes) store(w + i, exp((load(row + i) - best) * scale));
    if (i < size) {
        float rest[kLanes];
        for (int lane = 0; lane < kLanes; ++lane) rest[lane] = i + lane < size ? scalar(row + i + lane) : -INFINITY;
        float out[kLanes];
        store(out, exp((load(rest) - best) * scale));
        for (int lane = 0; i + lane < size; ++lane) w[i + lane] = out[lane];
    }
    std::fill(s.weights.begin() + size, s.weights.end(), 0.0f);
}

// Sums the runs after weights below `least` have become zero; returns the total.
double sum_runs(float least, Scratch& s) {
    const Vec bound = splat(least);
    double total = 0.0;
    for (size_t run = 0; run < s.run_sums.size(); ++run) {
        float* w = s.weights.data() + run * kRun;
        Vec sum{};
        for (int64_t i = 0; i < kRun; i += kLanes) {
            const Vec v = load(w + i);
            const Vec kept = select((VecI)(v < bound), Vec{}, v);
            store(w + i, kept);
            sum += kept;
        }
        s.run_sums[run] = double(horizontal_sum(sum));
        total += s.run_sums[run];
    }
    return total;
}

// Counts and masses of the tokens that have a weight.
void fill_buckets(int64_t size, Scratch& s) {
    std::fill(s.mass, s.mass + kNumBuckets, 0.0);
    std::fill(s.count, s.count + kNumBuckets, 0);
    for (int64_t i = 0; i < size; ++i) {
        const float weight = s.weights[size_t(i)];
        if (weight == 0.0f) continue;
        const int bucket = bucket_of(weight);
        s.mass[bucket] += double(weight);
        ++s.count[bucket];
    }
}

// The members of a bucket, best first.
void collect(int bucket, int64_t size, Scratch& s) {
    s.candidates.clear();
    for (int64_t i = 0; i < size; ++i)
        if (bucket_of(s.weights[size_t(i)]) == bucket) s.candidates.push_back({s.weights[size_t(i)], int32_t(i)});
    std::sort(s.candidates.begin(), s.candidates.end());
}

// Drops every token after `last` in the order of `Candidate`. `s.candidates` holds the bucket `last` lies in.
void cut_after(const Candidate& last, Scratch& s) {
    for (const Candidate& c : s.candidates)
        if (last < c) s.weights[size_t(c.id)] = 0.0f;
}

// Leaves the k heaviest.
void keep_top_k(int64_t k, int64_t size, Scratch& s) {
    int64_t above = 0;
    int bucket = kNumBuckets - 1;
    for (; bucket >= 0 && above + s.count[bucket] < k; --bucket) above += s.count[bucket];
    if (bucket < 0) return;  // fewer than k have any weight
    collect(bucket, size, s);
    const Candidate last = s.candidates[size_t(k - above - 1)];
    cut_after(last, s);
    sum_runs(last.weight, s);
}

// Leaves the fewest heaviest whose mass reaches `target`.
void keep_mass(double target, int64_t size, Scratch& s) {
    double above = 0.0;
    int bucket = kNumBuckets - 1, lowest = 0;
    while (s.count[lowest] == 0) ++lowest;
    for (; bucket > lowest && above + s.mass[bucket] < target; --bucket) above += s.mass[bucket];
    while (s.count[bucket] == 0) --bucket;  // a target of zero ends above every weight
    collect(bucket, size, s);
    size_t last = 0;
    for (double mass = above + double(s.candidates[0].weight);
         mass < target && last + 1 < s.candidates.size() && s.candidates[last + 1].weight > 0.0f; ++last)
        mass += double(s.candidates[last + 1].weight);
    const Candidate cut = s.candidates[last];
    cut_after(cut, s);
    sum_runs(cut.weight, s);
}

template <class T>
int64_t draw(const T* row, int64_t size, const Options& options, Scratch& s) {
    const float best = maximum_of(row, size);
    if (!std::isfinite(best)) return kNotFinite;
    weigh(row, size, best, options.temperature, s);
    if (options.top_k > 0 && options.top_k < size) {
        fill_buckets(size, s);
        keep_top_k(options.top_k, size, s);
    }
    if (options.top_p < 1.0f) {
        fill_buckets(size, s);
        double total = 0.0;
        for (double mass : s.mass) total += mass;
        keep_mass(double(options.top_p) * total, size, s);
    }
    const double target = options.uniform * sum_runs(std::min(options.min_p, 1.0f), s);
    double before = 0.0;
    size_t run = 0, last_run = s.run_sums.size() - 1;
    while (s.run_sums[last_run] == 0.0) --last_run;
    while (run < last_run && before + s.run_sums[run] <= target) before += s.run_sums[run++];
    int64_t chosen = 0;
    for (int64_t i = int64_t(run) * kRun; i < int64_t(run + 1) * kRun; ++i) {
        if (s.weights[size_t(i)] == 0.0f) continue;
        chosen = i;
        before += double(s.weights[size_t(i)]);
        if (before > target) break;
    }
    return chosen;
}

template <class T>
void draw_rows(int threads, int64_t* out, const T* logits, const float* temperature, const int64_t* top_k,
               const float* top_p, const float* min_p, const double* uniform, int64_t rows, int64_t size,
               int64_t stride) {
#pragma omp parallel num_threads(threads) if (rows > 1)
    {
        Scratch scratch(size);
#pragma omp for schedule(dynamic, 1)
        for (int64_t r = 0; r < rows; ++r)
            out[r] = draw(logits + r * stride, size, {temperature[r], top_k[r], top_p[r], min_p[r], uniform[r]}, scratch);
    }
}

}  // namespace

// out, temperature, top_k, top_p, min_p, uniform [rows]; rows of logits lie `stride` apart.
MANTA_EXPORT void manta_draw(int threads, int is_bf16, int64_t* out, const void* logits, const float* temperature,
                             const int64_t* top_k, const float* top_p, const float* min_p, const double* uniform,
                             int64_t rows, int64_t size, int64_t stride) {
    if (is_bf16)
        draw_rows(threads, out, (const bf16*)logits, temperature, top_k, top_p, min_p, uniform, rows, size, stride);
    else
        draw_rows(threads, out, (const float*)logits, temperature, top_k, top_p, min_p, uniform, rows, size, stride);
}
