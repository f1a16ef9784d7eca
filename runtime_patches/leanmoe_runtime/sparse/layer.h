// A MoE block on packed experts. Two passes over the experts that a step uses: gate and up
// projections give each pair of token and expert its hidden row; blocks of output columns then add
// up all pairs of every token, always in the same order, so that threads change no result. A pair
// without an expert (id -1) costs nothing. Scales of float8 blocks multiply inputs, not weights: once
// for all rows of a block.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <string>
#include <type_traits>
#include <vector>

#include "products.h"

#if defined(__x86_64__)
#include "avx512.h"
#endif

namespace sparse {

// Runs of blocks that a thread is given, one after the other.
constexpr int64_t RUNS = 8;
// Blocks that a thread multiplies with the same inputs: float8 has scales for 128 rows.
constexpr int64_t PANEL = 4;

// What groups have beyond their share, over the rows of all experts in turn, as in files.
template <class Value>
struct Overflow {
    const int64_t* starts = nullptr;  // [experts * rows + 1]
    const int16_t* narrow = nullptr;  // columns, in one of two widths
    const int32_t* wide = nullptr;
    const Value* values = nullptr;

    // `of_a_code`: what inputs were multiplied by, since weights are read as less than they mean.
    template <class Input>
    void add(int64_t row, const Batch<Input>& batch, Sums* sums, float of_a_code) const {
        if (!starts) return;
        for (int i = 0; i < batch.count; i++)
            add(row, batch.x[i], batch.tokens[i], sums[i], of_a_code);
    }

  private:
    template <class Input>
    void add(int64_t row, const Input* const* x, int tokens, Sums& sums, float of_a_code) const {
        for (int r = 0; r < BLOCK; r++)
            for (int64_t i = starts[row + r]; i < starts[row + r + 1]; i++) {
                const int64_t column = narrow ? narrow[i] : wide[i];
                const float weight = to_float(values[i]) / of_a_code;
                for (int t = 0; t < tokens; t++) sums[t][r] += weight * to_float(x[t][column]);
            }
    }
};

// What float8 weights are multiplied by, one number a block, columns counted as in the source. All
// rows of a BLOCK have the same.
struct Scales {
    const float* numbers;  // [E, halves, row blocks, column blocks]; halves: gate and up, or one
    int64_t halves, row_blocks, column_blocks;
    int64_t block_rows, block_columns;
    int64_t first_row, first_column;  // where in the first block the matrix begins

    const float* of(int64_t expert, int64_t half, int64_t row) const {
        const int64_t block = (first_row + row) / block_rows;
        return numbers + ((expert * halves + half) * row_blocks + block) * column_blocks;
    }
    // to[c] is from[c] times the scale of its column, and what a code needs beside it.
    template <class Product>
    void multiply(const float* scales, const float* from, int64_t columns,
                  typename Product::Input* to) const {
        for (int64_t at = 0; at < columns;) {
            const int64_t block = (first_column + at) / block_columns;
            const int64_t end = std::min(columns, (block + 1) * block_columns - first_column);
            Product::scale(from + at, scales[block] * Product::OF_A_CODE, end - at, to + at);
            at = end;
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
    Scales scales = {};  // of float8

    Matrix<Value> of(int64_t expert) const {
        const int64_t first = expert * rows * groups, next = first + rows * groups;
        return {values + first * keep, mask + first, groups, keep, values + next * keep};
    }
};

// Turns a block's up projections into hidden values.
using Activate = void (*)(const Sums& gate, Sums& up);

// One step of one layer, of weights of one type and inputs of the same or another.
template <class Weight, class Value = Weight>
struct Step {
    // [E, 2F, D], a block of gate rows and the block of up rows beside it in turn; and [E, D, F].
    Projection<Weight> gate_up, down;
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

    template <class Weight, class Value>
    explicit Pairs(const Step<Weight, Value>& step) : starts(step.experts + 1) {
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

    // Tiles that the tokens of one expert fill at most.
    int64_t most_tiles() const {
        int64_t most = 0;
        for (int64_t e : used) most = std::max(most, starts[e + 1] - starts[e]);
        return (most + TILE_TOKENS - 1) / TILE_TOKENS;
    }
};

// Up to 4 pairs of an expert in turn, and what their tokens bring.
template <class Source>
struct Tile {
    int64_t expert, pair;
    int tokens;
    const Source* x[TILE_TOKENS];
};

// The inputs of a tile as rows of weights multiply them: of float8, times the scales of columns.
template <class Product>
class Inputs {
    using Input = typename Product::Input;

  public:
    static constexpr bool SCALES = std::is_same_v<typename Product::Value, Float8>;
    static constexpr float OF_A_CODE = SCALES ? Product::OF_A_CODE : 1.0f;
    // What is scaled is rounded once, afterwards.
    using Source = std::conditional_t<SCALES, float, Input>;

    // Pairs whose rows are held at once: blocks of weights in turn have the same scales.
    static constexpr int64_t HELD = SCALES ? BATCH_TOKENS : int64_t{1} << 32;

    Inputs(int64_t width, int64_t most_tiles) : width_(width), source_(SCALES ? width : 0) {
        if (!SCALES) return;
        held_.resize(std::min(most_tiles, HELD / TILE_TOKENS));
        scaled_.resize(held_.size() * TILE_TOKENS * width);
    }

    // `order` says which column of x each packed place multiplies, null: its own.
    Batch<Input> batch(const Tile<Source>* tiles, int count, const Scales& scales, int64_t half,
                       int64_t row, const int32_t* order) {
        Batch<Input> found;
        found.count = count;
        for (int i = 0; i < count; i++) {
            found.tokens[i] = tiles[i].tokens;
            found.x[i] = of(tiles[i], scales, half, row, order);
        }
        return found;
    }

  private:
    struct Scaled {
        const float* numbers = nullptr;
        int64_t pair = -1;
        const Input* of[TILE_TOKENS] = {};
    };

    const Input* const* of(const Tile<Source>& tile, const Scales& scales, int64_t half, int64_t row,
                           const int32_t* order) {
        if constexpr (SCALES) {
            const size_t place = tile.pair / TILE_TOKENS % held_.size();
            const float* numbers = scales.of(tile.expert, half, row);
            Scaled& rows = held_[place];
            if (numbers == rows.numbers && tile.pair == rows.pair) return rows.of;
            rows.numbers = numbers, rows.pair = tile.pair;
            for (int t = 0; t < tile.tokens; t++) {
                Input* to = scaled_.data() + (place * TILE_TOKENS + t) * width_;
                scale(scales, numbers, order, tile.x[t], to);
                rows.of[t] = to;
            }
            return rows.of;
        } else {
            return tile.x;
        }
    }

    void scale(const Scales& scales, const float* numbers, const int32_t* order, const float* x,
               Input* to) {
        scales.multiply<Product>(numbers, x, width_, order ? source_.data() : to);
        if (!order) return;
        for (int64_t c = 0; c < width_; c++) to[c] = source_[order[c]];
    }

    const int64_t width_;
    Numbers<Input> source_, scaled_;
    std::vector<Scaled> held_;
};

template <class Product, class Value>
class Layer {
    using Weight = typename Product::Value;
    using Source = typename Inputs<Product>::Source;
    static constexpr float OF_A_CODE = Inputs<Product>::OF_A_CODE;

  public:
    explicit Layer(const Step<Weight, Value>& step)
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
    // Where inputs are scaled, they are reordered afterwards.
    bool reorders() const { return step_.orders && !Inputs<Product>::SCALES; }

    const int32_t* order_of(int64_t expert) const {
        return step_.orders ? step_.orders + expert * step_.width : nullptr;
    }

    // Rows the kernel multiplies with: the tokens' own, or one per pair where experts reorder them.
    void read_inputs() {
        const int64_t rows = reorders() ? pairs_.size() : step_.tokens;
        const bool is_direct = std::is_same_v<Source, Value> && !reorders();
        #pragma omp single
        if (!is_direct) inputs_.resize(rows * step_.width);
        if (is_direct) return;
        #pragma omp for schedule(static)
        for (int64_t row = 0; row < rows; row++) read_input(row);
    }

    void read_input(int64_t row) {
        const int64_t token = reorders() ? pairs_.token[row] : row;
        const Value* from = step_.x + token * step_.width;
        Source* to = inputs_.data() + row * step_.width;
        const int32_t* order = reorders() ? order_of(expert_of(row)) : nullptr;
        for (int64_t d = 0; d < step_.width; d++) convert(from[order ? order[d] : d], to + d);
    }

    static void convert(Value from, Source* to) {
        if constexpr (std::is_same_v<Source, Value>) *to = from;
        else *to = to_float(from);
    }

    int64_t expert_of(int64_t pair) const {
        const auto& starts = pairs_.starts;
        return std::upper_bound(starts.begin(), starts.end(), pair) - starts.begin() - 1;
    }

    const Source* input_of(int64_t pair) const {
        if (reorders()) return inputs_.data() + pair * step_.width;
        const int64_t first = pairs_.token[pair] * step_.width;
        if constexpr (std::is_same_v<Source, Value>) return step_.x + first;
        else return inputs_.data() + first;
    }

    void project_in() {
        const auto used = static_cast<int64_t>(pairs_.used.size()), blocks = step_.hidden / BLOCK;
        const int64_t shares = RUNS * threads_;
        const int64_t size = std::clamp<int64_t>(used * blocks / shares, 1, PANEL);
        const int64_t panels = (blocks + size - 1) / size, tasks = used * panels;
        // Several panels in turn: each begins where the one before it ends.
        const int64_t run = std::max<int64_t>(1, tasks / shares);
        Hiding hiding(step_, pairs_.most_tiles());
        #pragma omp for schedule(dynamic, run)
        for (int64_t task = 0; task < tasks; task++) {
            const int64_t first = task % panels * size, end = std::min(first + size, blocks);
            hide(pairs_.used[task / panels], first * BLOCK, end * BLOCK, hiding);
        }
    }

    // The tiles of a batch of an expert's pairs from `pair` on.
    template <class Row>
    int list(int64_t expert, int64_t pair, Row row, Tile<Source>* tiles) const {
        const int64_t last = std::min(pairs_.starts[expert + 1], pair + BATCH_TOKENS);
        int count = 0;
        for (; pair < last; pair += TILE_TOKENS) {
            const int tokens = static_cast<int>(std::min<int64_t>(TILE_TOKENS, last - pair));
            Tile<Source>& tile = tiles[count++] = {expert, pair, tokens, {}};
            for (int t = 0; t < tokens; t++) tile.x[t] = row(pair + t);
        }
        return count;
    }

    // What a thread needs to project in. Places of tokens that are not there are computed with, and
    // must hold numbers.
    struct Hiding {
        Inputs<Product> of_gate, of_up;
        typename Product::Buffer buffer;
        Sums gate[BATCH_TILES] = {}, up[BATCH_TILES] = {};

        Hiding(const Step<Weight, Value>& step, int64_t most_tiles)
            : of_gate(step.width, most_tiles), of_up(step.width, most_tiles) {}
    };

    // Hidden values of a panel of rows for every pair of an expert: of as many as inputs are held of.
    void hide(int64_t expert, int64_t first, int64_t end, Hiding& hiding) {
        const int64_t last = pairs_.starts[expert + 1];
        for (int64_t pair = pairs_.starts[expert]; pair < last; pair += Inputs<Product>::HELD)
            for (int64_t row = first; row < end; row += BLOCK)
                for (int64_t at = pair; at < std::min(last, pair + Inputs<Product>::HELD);
                     at += BATCH_TOKENS)
                    hide_block(expert, row, at, hiding);
    }

    // Those of a block of rows for a batch of pairs.
    void hide_block(int64_t expert, int64_t row, int64_t pair, Hiding& hiding) {
        auto& [of_gate, of_up, buffer, gate, up] = hiding;
        const int64_t listed = expert * step_.gate_up.rows + row;
        const auto& weights = step_.gate_up;
        const auto matrix = weights.of(expert);
        Tile<Source> tiles[BATCH_TILES];
        const int count = list(expert, pair, [&](int64_t one) { return input_of(one); }, tiles);
        const auto batch_of = [&](Inputs<Product>& inputs, int64_t half) {
            return inputs.batch(tiles, count, weights.scales, half, row, order_of(expert));
        };
        const auto to_gate = batch_of(of_gate, 0), to_up = batch_of(of_up, 1);
        buffer.multiply(matrix, 2 * row, to_gate, gate);
        buffer.multiply(matrix, 2 * row + BLOCK, to_up, up);
        weights.overflow.add(listed, to_gate, gate, OF_A_CODE);
        weights.overflow.add(listed + step_.hidden, to_up, up, OF_A_CODE);
        for (int i = 0; i < count; i++) {
            step_.activate(gate[i], up[i]);
            Source* to = hidden_.data() + tiles[i].pair * step_.hidden + row;
            for (int t = 0; t < tiles[i].tokens; t++)
                for (int r = 0; r < BLOCK; r++) from_float(up[i][t][r], to + t * step_.hidden + r);
        }
    }

    // What a thread needs to project out: inputs of one batch, scaled for one block of rows after the
    // other.
    struct Adding {
        Inputs<Product> inputs;
        typename Product::Buffer buffer;
        Sums found[BATCH_TILES];
        std::vector<float> sums;

        Adding(const Step<Weight, Value>& step, int64_t most_tiles)
            : inputs(step.hidden, std::min<int64_t>(most_tiles, BATCH_TILES)), sums(step.tokens * BLOCK) {}
    };

    void project_out() {
        Adding adding(step_, pairs_.most_tiles());
        #pragma omp for schedule(dynamic)
        for (int64_t row = 0; row < step_.width; row += BLOCK) {
            std::fill(adding.sums.begin(), adding.sums.end(), 0.0f);
            for (int64_t expert : pairs_.used)
                for (int64_t pair = pairs_.starts[expert]; pair < pairs_.starts[expert + 1];
                     pair += BATCH_TOKENS)
                    add(expert, row, pair, adding);
            for (int64_t t = 0; t < step_.tokens; t++)
                for (int r = 0; r < BLOCK; r++)
                    from_float(adding.sums[t * BLOCK + r], step_.out + t * step_.width + row + r);
        }
    }

    // Add what an expert gives a batch of its pairs to a block of output columns of their tokens.
    void add(int64_t expert, int64_t row, int64_t pair, Adding& adding) {
        auto& [inputs, buffer, found, sums] = adding;
        const auto& weights = step_.down;
        Tile<Source> tiles[BATCH_TILES];
        const auto hidden_of = [&](int64_t one) { return hidden_.data() + one * step_.hidden; };
        const int count = list(expert, pair, hidden_of, tiles);
        const auto batch = inputs.batch(tiles, count, weights.scales, 0, row, nullptr);
        buffer.multiply(weights.of(expert), row, batch, found);
        weights.overflow.add(expert * weights.rows + row, batch, found, OF_A_CODE);
        for (int i = 0; i < count; i++)
            for (int t = 0; t < tiles[i].tokens; t++) {
                float* of_token = sums.data() + pairs_.token[tiles[i].pair + t] * BLOCK;
                const float weight = pairs_.weight[tiles[i].pair + t];
                for (int r = 0; r < BLOCK; r++) of_token[r] += weight * found[i][t][r];
            }
    }

    const Step<Weight, Value>& step_;
    int threads_ = 1;
    const Pairs pairs_;
    Numbers<Source> inputs_, hidden_;
};

template <class Product, class Value>
void run(const Step<typename Product::Value, Value>& step, int threads) {
    Layer<Product, Value>(step).run(threads);
}

// The best product this processor can do, or the one that a test names.
#if defined(__x86_64__)
inline bool has_avx2() {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
           __builtin_cpu_supports("f16c") && __builtin_cpu_supports("bmi2");
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

template <class Weight, class Value>
void run_on(const std::string& isa, const Step<Weight, Value>& step, int threads) {
#if defined(__x86_64__)
    const int64_t keep = step.gate_up.keep;
    // Inputs are rounded to what they are anyway.
    constexpr bool in_pairs = std::is_same_v<Value, Bfloat16>;
    if constexpr (in_pairs) {
        if (isa == "avx512_bf16" && keep == 16) return run<Avx512Bf16<Weight, 16>>(step, threads);
        if (isa == "avx512_bf16" && keep == 8) return run<Avx512Bf16<Weight, 8>>(step, threads);
        if (isa == "avx512_bf16") return run<Avx512Bf16<Weight, 0>>(step, threads);
    }
    if constexpr (std::is_same_v<Weight, Float8>) {
        const bool is_wide = isa == "avx512" || isa == "avx512_bf16";
        if (is_wide && keep == 16) return run<Avx512<Weight, 16>>(step, threads);
        if (is_wide && keep == 8) return run<Avx512<Weight, 8>>(step, threads);
    }
    if (isa == "avx512" || isa == "avx512_bf16") return run<Avx512<Weight, 0>>(step, threads);
    if (isa == "avx2") return run<Avx2<Weight>>(step, threads);
#endif
    run<Plain<Weight>>(step, threads);
}

}  // namespace sparse
