// A MoE block on packed experts. Two passes over the experts that a step uses: gate and up
// projections give each pair of token and expert its hidden row; blocks of output columns then add
// up all pairs of every token, always in the same order, so that threads change no result. A pair
// without an expert (id -1) costs nothing.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <string>
#include <type_traits>
#include <vector>

#include "products.h"

namespace sparse {

// Runs of blocks that a thread is given, one after the other.
constexpr int64_t RUNS = 8;

// What groups have beyond their share, over the rows of all experts in turn, as in files.
template <class Value>
struct Overflow {
    const int64_t* starts = nullptr;  // [experts * rows + 1]
    const int16_t* narrow = nullptr;  // columns, in one of two widths
    const int32_t* wide = nullptr;
    const Value* values = nullptr;

    template <class Input>
    void add(int64_t row, const Input* const* x, int tokens, Sums& sums) const {
        if (!starts) return;
        for (int r = 0; r < BLOCK; r++)
            for (int64_t i = starts[row + r]; i < starts[row + r + 1]; i++) {
                const int64_t column = narrow ? narrow[i] : wide[i];
                const float weight = to_float(values[i]);
                for (int t = 0; t < tokens; t++) sums[t][r] += weight * to_float(x[t][column]);
            }
    }
};

// A projection of all experts.
template <class Value>
struct Projection {
    const Value* values;
    const uint32_t* mask;
    int64_t rows, groups, keep;
    Overflow<Value> overflow;

    Matrix<Value> of(int64_t expert) const {
        const int64_t first = expert * rows * groups, next = first + rows * groups;
        return {values + first * keep, mask + first, groups, keep, values + next * keep};
    }
};

// Turns a block's up projections into hidden values.
using Activate = void (*)(const Sums& gate, Sums& up);

// One step of one layer.
template <class Value>
struct Step {
    // [E, 2F, D], a block of gate rows and the block of up rows beside it in turn; and [E, D, F].
    Projection<Value> gate_up, down;
    const Value* x;                   // [T, D]
    const float* weights;             // [T, K]
    const int32_t* ids;               // [T, K]
    const int32_t* orders;            // [E, D] or null: an input's column, by its packed place
    Value* out;                       // [T, D]
    int64_t tokens, top_k, experts, width, hidden;
    Activate activate;
};

// e^x without a call, so that compilers compute several at a time: 2^n e^r with |r| below ln(2) / 2.
inline float exponential(float x) {
    constexpr float to_integer = 12582912.0f;  // 1.5 * 2^23: its sum with a number holds no fraction
    x = std::min(std::max(x, -87.0f), 88.0f);
    const float shifted = x * 1.44269504f + to_integer, n = shifted - to_integer;
    const float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    float sum = 1.9875691500e-4f;
    sum = sum * r + 1.3981999507e-3f;
    sum = sum * r + 8.3334519073e-3f;
    sum = sum * r + 4.1665795894e-2f;
    sum = sum * r + 1.6666665459e-1f;
    sum = sum * r + 5.0000001201e-1f;
    sum = sum * r * r + r + 1.0f;
    uint32_t power;
    std::memcpy(&power, &shifted, sizeof power);
    return sum * bits_to_float((power << 23) + 0x3f800000u);
}

inline float silu(float x) { return x / (1.0f + exponential(-x)); }
inline float gelu(float x) { return 0.5f * x * (1.0f + std::erf(x * 0.70710678f)); }
inline float gelu_tanh(float x) {
    const float inner = 0.79788456f * (x + 0.044715f * x * x * x);
    return x * (1.0f - 1.0f / (exponential(2.0f * inner) + 1.0f));
}

template <float (*ACTIVATION)(float)>
void activate(const Sums& gate, Sums& up) {
    for (int t = 0; t < TILE_TOKENS; t++)
        for (int r = 0; r < BLOCK; r++) up[t][r] *= ACTIVATION(gate[t][r]);
}

// The pairs of a step by expert, each expert's in the order of its tokens.
struct Pairs {
    std::vector<int64_t> used;    // experts that have a pair
    std::vector<int64_t> starts;  // [E + 1]
    std::vector<int32_t> token;   // [N]
    std::vector<float> weight;    // [N]

    template <class Value>
    explicit Pairs(const Step<Value>& step) : starts(step.experts + 1) {
        const int64_t count = step.tokens * step.top_k;
        for (int64_t i = 0; i < count; i++)
            if (step.ids[i] >= 0) starts[step.ids[i] + 1]++;
        for (int64_t e = 0; e < step.experts; e++) {
            if (starts[e + 1]) used.push_back(e);
            starts[e + 1] += starts[e];
        }
        token.resize(starts.back());
        weight.resize(starts.back());
        std::vector<int64_t> next(starts.begin(), starts.end() - 1);
        for (int64_t i = 0; i < count; i++) {
            if (step.ids[i] < 0) continue;
            const int64_t place = next[step.ids[i]]++;
            token[place] = static_cast<int32_t>(i / step.top_k);
            weight[place] = step.weights[i];
        }
    }

    int64_t size() const { return starts.back(); }
};

// A block of rows times up to 4 tokens.
template <class Product>
void multiply(const Projection<typename Product::Value>& projection, int64_t expert, int64_t row,
              const typename Product::Input* const* x, int tokens, Sums& sums) {
    using Tile = void (*)(const Matrix<typename Product::Value>&, int64_t,
                          const typename Product::Input* const*, Sums&, int);
    static constexpr Tile tiles[] = {&Product::template tile<1>, &Product::template tile<2>,
                                     &Product::template tile<3>, &Product::template tile<4>};
    const auto matrix = projection.of(expert);
    for (int at = 0; at < BLOCK; at += TILE_ROWS) tiles[tokens - 1](matrix, row + at, x, sums, at);
}

template <class Product>
class Layer {
    using Value = typename Product::Value;
    using Input = typename Product::Input;

  public:
    explicit Layer(const Step<Value>& step)
        : step_(step), pairs_(step), hidden_(pairs_.size() * step.hidden) {}

    void run(int threads) {
        threads_ = threads;
        #pragma omp parallel num_threads(threads)
        {
            read_inputs();
            project_in();
            project_out();
        }
    }

  private:
    // Rows the kernel multiplies with: the tokens' own, or one per pair where experts reorder them.
    void read_inputs() {
        const int64_t rows = step_.orders ? pairs_.size() : step_.tokens;
        const bool is_direct = std::is_same_v<Input, Value> && !step_.orders;
        #pragma omp single
        if (!is_direct) inputs_.resize(rows * step_.width);
        if (is_direct) return;
        #pragma omp for schedule(static)
        for (int64_t row = 0; row < rows; row++) read_input(row);
    }

    void read_input(int64_t row) {
        const int64_t token = step_.orders ? pairs_.token[row] : row;
        const Value* from = step_.x + token * step_.width;
        Input* to = inputs_.data() + row * step_.width;
        const int32_t* order = step_.orders ? step_.orders + expert_of(row) * step_.width : nullptr;
        for (int64_t d = 0; d < step_.width; d++) convert(from[order ? order[d] : d], to + d);
    }

    static void convert(Value from, Input* to) {
        if constexpr (std::is_same_v<Input, Value>) *to = from;
        else *to = to_float(from);
    }

    int64_t expert_of(int64_t pair) const {
        const auto& starts = pairs_.starts;
        return std::upper_bound(starts.begin(), starts.end(), pair) - starts.begin() - 1;
    }

    const Input* input_of(int64_t pair) const {
        if (step_.orders) return inputs_.data() + pair * step_.width;
        const int64_t first = pairs_.token[pair] * step_.width;
        if constexpr (std::is_same_v<Input, Value>) return step_.x + first;
        else return inputs_.data() + first;
    }

    void project_in() {
        const int64_t blocks = step_.hidden / BLOCK;
        const int64_t tasks = static_cast<int64_t>(pairs_.used.size()) * blocks;
        // Several blocks in turn: each begins where the one before it ends.
        const int64_t run = std::max<int64_t>(1, tasks / (RUNS * threads_));
        #pragma omp for schedule(dynamic, run)
        for (int64_t task = 0; task < tasks; task++)
            hide(pairs_.used[task / blocks], task % blocks * BLOCK);
    }

    // Hidden values of a block of rows for every pair of an expert.
    void hide(int64_t expert, int64_t row) {
        const int64_t last = pairs_.starts[expert + 1];
        // Places of tokens that are not there are computed with, and must hold numbers.
        Sums gate = {}, up = {};
        for (int64_t pair = pairs_.starts[expert]; pair < last; pair += TILE_TOKENS) {
            const int tokens = static_cast<int>(std::min<int64_t>(TILE_TOKENS, last - pair));
            const Input* x[TILE_TOKENS];
            for (int t = 0; t < tokens; t++) x[t] = input_of(pair + t);
            multiply<Product>(step_.gate_up, expert, 2 * row, x, tokens, gate);
            multiply<Product>(step_.gate_up, expert, 2 * row + BLOCK, x, tokens, up);
            const int64_t listed = expert * step_.gate_up.rows + row;
            step_.gate_up.overflow.add(listed, x, tokens, gate);
            step_.gate_up.overflow.add(listed + step_.hidden, x, tokens, up);
            step_.activate(gate, up);
            for (int t = 0; t < tokens; t++)
                for (int r = 0; r < BLOCK; r++)
                    from_float(up[t][r], hidden_.data() + (pair + t) * step_.hidden + row + r);
        }
    }

    void project_out() {
        std::vector<float> sums(step_.tokens * BLOCK);
        #pragma omp for schedule(dynamic)
        for (int64_t row = 0; row < step_.width; row += BLOCK) {
            std::fill(sums.begin(), sums.end(), 0.0f);
            for (int64_t expert : pairs_.used) add(expert, row, sums.data());
            for (int64_t t = 0; t < step_.tokens; t++)
                for (int r = 0; r < BLOCK; r++)
                    from_float(sums[t * BLOCK + r], step_.out + t * step_.width + row + r);
        }
    }

    // Add an expert's share of a block of output columns to the sums of its tokens.
    void add(int64_t expert, int64_t row, float* sums) {
        const int64_t last = pairs_.starts[expert + 1];
        for (int64_t pair = pairs_.starts[expert]; pair < last; pair += TILE_TOKENS) {
            const int tokens = static_cast<int>(std::min<int64_t>(TILE_TOKENS, last - pair));
            const Input* x[TILE_TOKENS];
            for (int t = 0; t < tokens; t++) x[t] = hidden_.data() + (pair + t) * step_.hidden;
            Sums found;
            multiply<Product>(step_.down, expert, row, x, tokens, found);
            step_.down.overflow.add(expert * step_.down.rows + row, x, tokens, found);
            for (int t = 0; t < tokens; t++) {
                float* of_token = sums + pairs_.token[pair + t] * BLOCK;
                const float weight = pairs_.weight[pair + t];
                for (int r = 0; r < BLOCK; r++) of_token[r] += weight * found[t][r];
            }
        }
    }

    const Step<Value>& step_;
    int threads_ = 1;
    const Pairs pairs_;
    std::vector<Input> inputs_;
    std::vector<Input> hidden_;
};

template <class Product>
void run(const Step<typename Product::Value>& step, int threads) {
    Layer<Product>(step).run(threads);
}

// The best product this processor can do, or the one that a test names.
#if defined(__x86_64__)
inline bool has_avx2() {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
           __builtin_cpu_supports("f16c");
}
inline bool has_avx512() {
    return __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512vbmi2");
}
inline bool has_bf16() { return has_avx512() && __builtin_cpu_supports("avx512bf16"); }
#endif

inline std::vector<std::string> instruction_sets() {
    std::vector<std::string> found;
#if defined(__x86_64__)
    if (has_bf16()) found.push_back("avx512_bf16");
    if (has_avx512()) found.push_back("avx512");
    if (has_avx2()) found.push_back("avx2");
#endif
    found.push_back("plain");
    return found;
}

template <class Value>
void run_on(const std::string& isa, const Step<Value>& step, int threads) {
#if defined(__x86_64__)
    const int64_t keep = step.gate_up.keep;
    if constexpr (std::is_same_v<Value, Bfloat16>) {
        if (isa == "avx512_bf16" && keep == 16) return run<Avx512Bf16<16>>(step, threads);
        if (isa == "avx512_bf16" && keep == 8) return run<Avx512Bf16<8>>(step, threads);
        if (isa == "avx512_bf16") return run<Avx512Bf16<0>>(step, threads);
    }
    if (isa == "avx512" || isa == "avx512_bf16") return run<Avx512<Value, 0>>(step, threads);
    if (isa == "avx2") return run<Avx2<Value>>(step, threads);
#endif
    run<Plain<Value>>(step, threads);
}

}  // namespace sparse
