// The CPU's share of skipping that runs at every step: the skip rule of rule.py, the forms of
// drop.py, and the sum of gathered outputs. Between two kernels that stream weights through
// the caches, the same in Python costs more than skipping saves in a small model.
#include <stdint.h>

enum { ALL_KEPT = 0, EVEN = 1, REDIRECT = 2, COMPACT = 3 };

// Where a plan is written; each with room for every pair of a step.
struct plan {
    uint8_t *keep;    // [T, K]
    float *weights;   // [N]
    int32_t *ids;     // [N]
    int64_t *rows;    // [N], COMPACT only: the token of each pair, rising
};

// Largest weight of a row; a NaN in the first place stays there, so one expert always wins.
static int64_t top_of(const float *weights, int64_t k) {
    int64_t top = 0;
    for (int64_t j = 1; j < k; j++)
        if (weights[j] > weights[top]) top = j;
    return top;
}

// Keep weight j of a row when it reaches beta times the largest; returns how many stay.
static int64_t keep_row(const float *weights, int64_t k, float beta, uint8_t *keep) {
    const int64_t top = top_of(weights, k);
    const float threshold = beta * weights[top];
    int64_t kept = 0;
    for (int64_t j = 0; j < k; j++) {
        keep[j] = j == top || weights[j] >= threshold;
        kept += keep[j];
    }
    return kept;
}

// What kept weights are multiplied by: where the router renormalises, the row's sum stays.
static float scale_of(const float *weights, const uint8_t *keep, int64_t k, int renormalize) {
    float total = 0.0f, kept = 0.0f;
    for (int64_t j = 0; j < k; j++) {
        total += weights[j];
        kept += keep[j] ? weights[j] : 0.0f;
    }
    return renormalize ? total / kept : 1.0f;
}

static void write_pairs(const struct plan *plan, const float *weights, const int32_t *ids,
                        int64_t t, int64_t k, int renormalize, int form) {
    int64_t n = 0;
    for (int64_t i = 0; i < t; i++, weights += k, ids += k) {
        const uint8_t *keep = plan->keep + i * k;
        const float scale = scale_of(weights, keep, k, renormalize);
        const int32_t top_id = ids[top_of(weights, k)];
        for (int64_t j = 0; j < k; j++) {
            if (!keep[j] && form != REDIRECT) continue;
            plan->weights[n] = keep[j] ? weights[j] * scale : 0.0f;
            plan->ids[n] = keep[j] ? ids[j] : top_id;
            plan->rows[n++] = i;
        }
    }
}

// Decide a step of T tokens with K weights and ids each. Token i uses betas[rows[i]], or
// betas[0] where rows is NULL. Returns 4 * (pairs kept) + form.
int64_t leanmoe_plan(const struct plan *plan, const float *weights, const int32_t *ids, int64_t t,
                     int64_t k, const float *betas, const int32_t *rows, int renormalize,
                     int64_t redirect_max_rows) {
    int64_t kept = 0, fewest = k, most = 0;
    for (int64_t i = 0; i < t; i++) {
        const float beta = betas[rows ? rows[i] : 0];
        const int64_t stay = keep_row(weights + i * k, k, beta, plan->keep + i * k);
        kept += stay;
        fewest = stay < fewest ? stay : fewest;
        most = stay > most ? stay : most;
    }
    if (kept == t * k) return 4 * kept + ALL_KEPT;
    const int form = fewest == most ? EVEN : t <= redirect_max_rows ? REDIRECT : COMPACT;
    write_pairs(plan, weights, ids, t, k, renormalize, form);
    return 4 * kept + form;
}

static inline float bf16_to_float(uint16_t value) {
    const union { uint32_t bits; float number; } wide = {.bits = (uint32_t)value << 16};
    return wide.number;
}

// Rounds to nearest even, as torch does; a NaN stays one.
static inline uint16_t float_to_bf16(float value) {
    const union { float number; uint32_t bits; } wide = {.number = value};
    if (value != value) return 0x7FC0;
    return (uint16_t)((wide.bits + 0x7FFF + ((wide.bits >> 16) & 1)) >> 16);
}

#define SAME(value) (value)
#define COLUMNS 1024

// out[T, D] = sum of the pairs of each token, in float32. Pairs [N, D] lie in order of rows.
#define DEFINE_SUM(NAME, TYPE, LOAD, STORE)                                                   \
    void NAME(const TYPE *pairs, const int64_t *rows, int64_t n, int64_t d, TYPE *out) {      \
        float sum[COLUMNS];                                                                   \
        for (int64_t first = 0, end; first < n; first = end) {                                \
            for (end = first + 1; end < n && rows[end] == rows[first]; end++) {}              \
            for (int64_t start = 0; start < d; start += COLUMNS) {                            \
                const int64_t width = d - start < COLUMNS ? d - start : COLUMNS;              \
                for (int64_t c = 0; c < width; c++) sum[c] = 0.0f;                            \
                for (int64_t pair = first; pair < end; pair++)                                \
                    for (int64_t c = 0; c < width; c++)                                       \
                        sum[c] += LOAD(pairs[pair * d + start + c]);                          \
                for (int64_t c = 0; c < width; c++)                                           \
                    out[rows[first] * d + start + c] = STORE(sum[c]);                         \
            }                                                                                 \
        }                                                                                     \
    }

DEFINE_SUM(leanmoe_sum_bfloat16, uint16_t, bf16_to_float, float_to_bf16)
DEFINE_SUM(leanmoe_sum_float32, float, SAME, SAME)
