// The CPU's share of skipping that runs at every step: the skip rules of rule.py, the budget on
// distinct experts, the forms of cpu.py, the counters, and the sum of gathered outputs. Between
// two kernels that stream weights through the caches, the same in Python costs more than skipping
// saves in a small model.
#include <math.h>
#include <stdint.h>
#include <string.h>

enum { ALL_KEPT = 0, EVEN = 1, REDIRECT = 2, COMPACT = 3 };
enum { ROW_MASK = 255, MANDATORY = 256 };
// Less than one assignment in so many skipped is few; measured by `leanmoe bench kernel`.
enum { FEW_SKIPPED = 8 };

// What one layer ran since the start (Counters in state.py).
struct counts {
    int64_t tokens, skipped, substituted, steps, distinct, nonfinite;
    double skipped_weight;
};

// Where a plan is written; each with room for every pair of a step, the last three for every
// expert.
struct plan {
    uint8_t *keep;      // [T, K]
    float *weights;     // [N]
    int32_t *ids;       // [N]
    int64_t *rows;      // [N], COMPACT only: the token of each pair, rising
    float *changed_weights;  // [T, K] and
    int32_t *changed_ids;    // [T, K]: the assignments once the budget has moved some
    uint8_t *loaded;    // [E]: the experts whose weights the step reads
    float *mass;        // [E]
    uint8_t *taken;     // [E]: the experts one token has
};

// One layer's step: T tokens with K weights and ids each, of E experts.
struct step {
    const float *weights;  // [T, K]
    const int32_t *ids;    // [T, K]
    const int32_t *rows;   // [T] or NULL: the row of betas each token uses, MANDATORY added
    const float *logits;   // [T, E] or NULL; given, the budget moves assignments (redirect)
    const float *betas;    // thresholds, each of which says its rule (leanmoe/skip_rule.py)
    const float *factors;  // [E]: of the norm rule
    struct counts *counts;
    int32_t *skipped;      // [T] or NULL: each token's skipped assignments are added to it
    int64_t t, k, e;
    int64_t renormalize, redirect_max_rows, budget;
};

static int32_t row_of(const struct step *s, int64_t i) { return s->rows ? s->rows[i] : 0; }

static float beta_of(const struct step *s, int64_t i) { return s->betas[row_of(s, i) & ROW_MASK]; }

static float factor_of(const struct step *s, float beta, int32_t expert) {
    return beta < 0.0f ? s->factors[expert] : 1.0f;
}

// What assignment n is judged by: its weight, times its expert's factor under the norm rule.
static float score_of(const struct step *s, float beta, int64_t n) {
    return beta < 0.0f ? s->weights[n] * s->factors[s->ids[n]] : s->weights[n];
}

// Best slot of token i, the first of equals.
static int64_t top_of(const struct step *s, int64_t i) {
    const float beta = beta_of(s, i);
    int64_t top = 0;
    for (int64_t j = 1; j < s->k; j++)
        if (score_of(s, beta, i * s->k + j) > score_of(s, beta, i * s->k + top)) top = j;
    return top;
}

static float total_of(const float *weights, int64_t k) {
    float total = 0.0f;
    for (int64_t j = 0; j < k; j++) total += weights[j];
    return total;
}

// Keep slot j of token i when its score reaches beta times the best one's.
static void keep_reaching(const struct step *s, int64_t i, float beta, uint8_t *keep) {
    const int64_t top = top_of(s, i);
    const float threshold = fabsf(beta) * score_of(s, beta, i * s->k + top);
    for (int64_t j = 0; j < s->k; j++)
        keep[j] = j == top || score_of(s, beta, i * s->k + j) >= threshold;
}

// Keep the so many largest weights of a row; of equals, the first slot comes first.
static void keep_largest(const float *weights, int64_t k, int64_t kept, uint8_t *keep) {
    for (int64_t j = 0; j < k; j++) {
        int64_t before = 0;
        for (int64_t other = 0; other < k; other++)
            before += weights[other] > weights[j] || (weights[other] == weights[j] && other < j);
        keep[j] = before < kept;
    }
}

static void keep_row(const struct step *s, int64_t i, uint8_t *keep) {
    const float beta = beta_of(s, i);
    if (beta > 1.0f)
        keep_largest(s->weights + i * s->k, s->k, (int64_t)beta - 1, keep);
    else
        keep_reaching(s, i, beta, keep);
}

// What kept weights are multiplied by: where the router renormalises, the row's sum stays.
static float scale_of(float total, const float *weights, const uint8_t *keep, int64_t k,
                      int64_t renormalize) {
    float kept = 0.0f;
    for (int64_t j = 0; j < k; j++) kept += keep[j] ? weights[j] : 0.0f;
    return renormalize && kept != 0.0f ? total / kept : 1.0f;
}

// A token whose weights are no numbers keeps everything: nothing can be said about its experts.
static void apply_rule(const struct plan *plan, const struct step *s) {
    for (int64_t i = 0; i < s->t; i++) {
        const float *weights = s->weights + i * s->k;
        uint8_t *keep = plan->keep + i * s->k;
        if (isfinite(total_of(weights, s->k))) {
            keep_row(s, i, keep);
        } else {
            memset(keep, 1, s->k);
            s->counts->nonfinite++;
        }
    }
}

static int is_bound(const struct step *s, int64_t i) {
    return row_of(s, i) & MANDATORY || !isfinite(total_of(s->weights + i * s->k, s->k));
}

// Experts that the budget may not leave out: every token's top one, all of those opted out.
static int64_t load_mandatory(const struct plan *plan, const struct step *s) {
    int64_t loaded = 0;
    memset(plan->loaded, 0, s->e);
    for (int64_t i = 0; i < s->t; i++) {
        const int64_t start = i * s->k, top = top_of(s, i);
        const int bound = is_bound(s, i);
        for (int64_t j = 0; j < s->k; j++)
            if (plan->keep[start + j] && (bound || j == top)) {
                loaded += !plan->loaded[s->ids[start + j]];
                plan->loaded[s->ids[start + j]] = 1;
            }
    }
    return loaded;
}

// Fill the budget with the experts that carry most of the remaining gate weight.
static void load_heaviest(const struct plan *plan, const struct step *s, int64_t loaded) {
    memset(plan->mass, 0, s->e * sizeof *plan->mass);
    for (int64_t n = 0; n < s->t * s->k; n++)
        if (plan->keep[n]) plan->mass[s->ids[n]] += s->weights[n];
    for (; loaded < s->budget; loaded++) {
        int64_t best = -1;
        for (int64_t e = 0; e < s->e; e++)
            if (!plan->loaded[e] && plan->mass[e] > (best < 0 ? 0.0f : plan->mass[best])) best = e;
        if (best < 0) return;
        plan->loaded[best] = 1;
    }
}

// The best-scored loaded expert that a token does not have yet, or -1.
static int64_t substitute(const struct plan *plan, const struct step *s, const float *logits) {
    int64_t best = -1;
    for (int64_t e = 0; e < s->e; e++)
        if (plan->loaded[e] && !plan->taken[e] && (best < 0 || logits[e] > logits[best])) best = e;
    return best;
}

// Whether the skip rule keeps an expert of that weight relative to the best one's. The static rule
// does: a moved assignment takes a place that it keeps.
static int stays(const struct step *s, float beta, float ratio, int32_t expert, int32_t best) {
    const float threshold = beta > 1.0f ? 0.0f : fabsf(beta) * factor_of(s, beta, best);
    return ratio > 0.0f && ratio * factor_of(s, beta, expert) >= threshold;
}

// Move the assignments that lost their expert to loaded ones, at the weight the router gives
// those, as long as the skip rule would keep it; what finds none vanishes.
static void move_row(const struct plan *plan, const struct step *s, int64_t i) {
    const int64_t start = i * s->k, top = start + top_of(s, i);
    const float *logits = s->logits + i * s->e, beta = beta_of(s, i);
    memset(plan->taken, 0, s->e);
    for (int64_t n = start; n < start + s->k; n++)
        if (plan->keep[n] && plan->loaded[s->ids[n]]) plan->taken[s->ids[n]] = 1;
    for (int64_t n = start; n < start + s->k; n++) {
        if (!plan->keep[n] || plan->loaded[s->ids[n]]) continue;
        const int64_t expert = substitute(plan, s, logits);
        const float ratio = expert < 0 ? 0.0f : expf(logits[expert] - logits[s->ids[top]]);
        plan->keep[n] =
            expert >= 0 && stays(s, beta, ratio, (int32_t)expert, s->ids[top]);
        if (!plan->keep[n]) continue;
        plan->taken[expert] = 1;
        plan->changed_ids[n] = (int32_t)expert;
        plan->changed_weights[n] = ratio * s->weights[top];
        s->counts->substituted++;
    }
}

static int64_t apply_budget(const struct plan *plan, const struct step *s) {
    const int64_t pairs = s->t * s->k, before = s->counts->substituted;
    load_heaviest(plan, s, load_mandatory(plan, s));
    memcpy(plan->changed_weights, s->weights, pairs * sizeof *s->weights);
    memcpy(plan->changed_ids, s->ids, pairs * sizeof *s->ids);
    for (int64_t i = 0; i < s->t; i++) {
        if (is_bound(s, i)) continue;
        if (s->logits) {
            move_row(plan, s, i);
            continue;
        }
        for (int64_t n = i * s->k; n < (i + 1) * s->k; n++)
            plan->keep[n] = plan->keep[n] && plan->loaded[s->ids[n]];
    }
    return s->counts->substituted - before;
}

static void count_tokens(struct counts *counts, int64_t tokens) {
    counts->tokens += tokens;
    counts->steps++;
}

static void count(const struct plan *plan, const struct step *s, const int32_t *ids, int64_t kept) {
    struct counts *counts = s->counts;
    count_tokens(counts, s->t);
    counts->skipped += s->t * s->k - kept;
    memset(plan->taken, 0, s->e);
    for (int64_t n = 0; n < s->t * s->k; n++) plan->taken[ids[n]] |= plan->keep[n];
    for (int64_t e = 0; e < s->e; e++) counts->distinct += plan->taken[e];
    if (kept == s->t * s->k) return;
    for (int64_t i = 0; i < s->t; i++) {
        const float *weights = s->weights + i * s->k;
        const float total = total_of(weights, s->k);
        float skipped = 0.0f;
        for (int64_t j = 0; j < s->k; j++) skipped += plan->keep[i * s->k + j] ? 0.0f : weights[j];
        if (skipped > 0.0f) counts->skipped_weight += skipped / total;
        if (!s->skipped) continue;
        for (int64_t j = 0; j < s->k; j++) s->skipped[i] += !plan->keep[i * s->k + j];
    }
}

static void write_pairs(const struct plan *plan, const struct step *s, const float *weights,
                        const int32_t *ids, int form) {
    int64_t n = 0;
    for (int64_t i = 0; i < s->t; i++) {
        const int64_t start = i * s->k, top = start + top_of(s, i);
        const uint8_t *keep = plan->keep + start;
        const float total = total_of(s->weights + start, s->k);
        const float scale = scale_of(total, weights + start, keep, s->k, s->renormalize);
        for (int64_t j = 0; j < s->k; j++) {
            if (!keep[j] && form != REDIRECT) continue;
            plan->weights[n] = keep[j] ? weights[start + j] * scale : 0.0f;
            plan->ids[n] = keep[j] ? ids[start + j] : s->ids[top];
            plan->rows[n++] = i;
        }
    }
}

// Gathering few pairs less costs more than it saves, as it does where few rows run.
static int uneven_form(const struct step *s, int64_t kept) {
    const int little = FEW_SKIPPED * (s->t * s->k - kept) < s->t * s->k;
    const int redirects = s->t <= s->redirect_max_rows || (little && s->redirect_max_rows > 0);
    return redirects ? REDIRECT : COMPACT;
}

static int form_of(const struct plan *plan, const struct step *s, int64_t kept) {
    if (s->redirect_max_rows < 0) return REDIRECT;  // the shapes are the router's, always
    for (int64_t i = 0; i < s->t; i++) {
        int64_t stay = 0;
        for (int64_t j = 0; j < s->k; j++) stay += plan->keep[i * s->k + j];
        if (stay * s->t != kept) return uneven_form(s, kept);
    }
    return EVEN;
}

// Decide and count a step. Returns 4 * (pairs kept) + form.
int64_t leanmoe_plan(const struct plan *plan, const struct step *s) {
    const float *weights = s->weights;
    const int32_t *ids = s->ids;
    int64_t kept = 0, moved = 0;
    apply_rule(plan, s);
    if (s->budget > 0) {
        moved = apply_budget(plan, s);
        weights = plan->changed_weights;
        ids = plan->changed_ids;
    }
    for (int64_t n = 0; n < s->t * s->k; n++) kept += plan->keep[n];
    count(plan, s, ids, kept);
    if (kept == s->t * s->k && !moved) return 4 * kept + ALL_KEPT;
    const int form = form_of(plan, s, kept);
    write_pairs(plan, s, weights, ids, form);
    return 4 * kept + form;
}

// Count a step of which nothing is skipped, as leanmoe_plan does where every beta is 0.
void leanmoe_count_whole(struct counts *counts, const float *weights, const int32_t *ids,
                         int64_t t, int64_t k, int64_t e) {
    uint8_t taken[e > 0 ? e : 1];
    memset(taken, 0, sizeof taken);
    count_tokens(counts, t);
    for (int64_t i = 0; i < t; i++) counts->nonfinite += !isfinite(total_of(weights + i * k, k));
    for (int64_t n = 0; n < t * k; n++) taken[ids[n]] = 1;
    for (int64_t j = 0; j < e; j++) counts->distinct += taken[j];
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
