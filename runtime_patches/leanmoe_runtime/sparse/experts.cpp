// The operator leanmoe::sparse_experts: a whole MoE block on packed experts, for CPUs (kernel.py).
// Two passes over the experts that the step uses: gate and up projections give each pair of token
// and expert its hidden row; blocks of output columns then add up all pairs of every token, always in
// the same order, so that threads change no result. A pair without an expert (id -1) costs nothing.
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty_like.h>
#include <omp.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "products.h"

namespace {

using at::Tensor;
using sparse::GROUP;
using sparse::Matrix;
using sparse::Sums;
using sparse::TILE_ROWS;
using sparse::TILE_TOKENS;

// Rows of a projection, or columns of the output, that a thread takes at a time.
constexpr int64_t BLOCK = 16;

// What groups have beyond their share, over the rows of all experts in turn.
template <class Value>
struct Overflow {
    const int64_t* starts = nullptr;  // [experts * rows + 1]
    const int16_t* narrow = nullptr;  // columns, in one of two widths
    const int32_t* wide = nullptr;
    const Value* values = nullptr;

    template <class Input>
    void add(int64_t row, const Input* const* x, int tokens, Sums& sums) const {
        if (!starts) return;
        for (int r = 0; r < TILE_ROWS; r++)
            for (int64_t i = starts[row + r]; i < starts[row + r + 1]; i++) {
                const int64_t column = narrow ? narrow[i] : wide[i];
                const float weight = sparse::to_float(values[i]);
                for (int t = 0; t < tokens; t++)
                    sums[r][t] += weight * sparse::to_float(x[t][column]);
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

// One step of one layer.
template <class Value>
struct Step {
    Projection<Value> gate_up, down;  // [E, 2F, D] and [E, D, F]
    const Value* x;                   // [T, D]
    const float* weights;             // [T, K]
    const int32_t* ids;               // [T, K]
    const int32_t* orders;            // [E, D] or null: an input's column, by its packed place
    Value* out;                       // [T, D]
    int64_t tokens, top_k, experts, width, hidden;
    float (*activate)(float);
};

float silu(float x) { return x / (1.0f + std::exp(-x)); }
float gelu(float x) { return 0.5f * x * (1.0f + std::erf(x * 0.70710678f)); }
float gelu_tanh(float x) {
    return 0.5f * x * (1.0f + std::tanh(0.79788456f * (x + 0.044715f * x * x * x)));
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

// Four rows times up to 4 tokens.
template <class Product>
void multiply(const Matrix<typename Product::Value>& matrix, int64_t row,
              const typename Product::Input* const* x, int tokens, Sums& sums) {
    using Tile = void (*)(const Matrix<typename Product::Value>&, int64_t,
                          const typename Product::Input* const*, Sums&);
    static constexpr Tile tiles[] = {&Product::template tile<1>, &Product::template tile<2>,
                                     &Product::template tile<3>, &Product::template tile<4>};
    tiles[tokens - 1](matrix, row, x, sums);
}

template <class Product>
class Layer {
    using Value = typename Product::Value;
    using Input = typename Product::Input;

  public:
    explicit Layer(const Step<Value>& step)
        : step_(step), pairs_(step), hidden_(pairs_.size() * step.hidden) {}

    void run() {
        const int threads = at::get_num_threads();
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
        else *to = sparse::to_float(from);
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
        const int64_t blocks = (step_.hidden + BLOCK - 1) / BLOCK;
        const int64_t tasks = static_cast<int64_t>(pairs_.used.size()) * blocks;
        #pragma omp for schedule(dynamic)
        for (int64_t task = 0; task < tasks; task++) {
            const int64_t expert = pairs_.used[task / blocks], first = task % blocks * BLOCK;
            for (int64_t row = first; row < std::min(first + BLOCK, step_.hidden); row += TILE_ROWS)
                hide(expert, row);
        }
    }

    // Hidden values of some rows for every pair of an expert.
    void hide(int64_t expert, int64_t row) {
        const auto matrix = step_.gate_up.of(expert);
        const int64_t last = pairs_.starts[expert + 1], first_row = expert * step_.gate_up.rows;
        for (int64_t pair = pairs_.starts[expert]; pair < last; pair += TILE_TOKENS) {
            const int tokens = static_cast<int>(std::min<int64_t>(TILE_TOKENS, last - pair));
            const Input* x[TILE_TOKENS];
            for (int t = 0; t < tokens; t++) x[t] = input_of(pair + t);
            Sums gate, up;
            multiply<Product>(matrix, row, x, tokens, gate);
            multiply<Product>(matrix, row + step_.hidden, x, tokens, up);
            const auto& overflow = step_.gate_up.overflow;
            overflow.add(first_row + row, x, tokens, gate);
            overflow.add(first_row + row + step_.hidden, x, tokens, up);
            for (int t = 0; t < tokens; t++)
                for (int r = 0; r < TILE_ROWS; r++)
                    sparse::from_float(step_.activate(gate[r][t]) * up[r][t],
                                       hidden_.data() + (pair + t) * step_.hidden + row + r);
        }
    }

    void project_out() {
        const int64_t blocks = (step_.width + BLOCK - 1) / BLOCK;
        std::vector<float> sums(step_.tokens * BLOCK);
        #pragma omp for schedule(dynamic)
        for (int64_t block = 0; block < blocks; block++) {
            const int64_t first = block * BLOCK, end = std::min(first + BLOCK, step_.width);
            std::fill(sums.begin(), sums.end(), 0.0f);
            for (int64_t expert : pairs_.used)
                for (int64_t row = first; row < end; row += TILE_ROWS)
                    add(expert, row, sums.data() + (row - first));
            for (int64_t t = 0; t < step_.tokens; t++)
                for (int64_t d = first; d < end; d++)
                    sparse::from_float(sums[t * BLOCK + d - first],
                                       step_.out + t * step_.width + d);
        }
    }

    // Add an expert's share of some output columns to the sums of its tokens.
    void add(int64_t expert, int64_t row, float* sums) {
        const auto matrix = step_.down.of(expert);
        const int64_t last = pairs_.starts[expert + 1];
        for (int64_t pair = pairs_.starts[expert]; pair < last; pair += TILE_TOKENS) {
            const int tokens = static_cast<int>(std::min<int64_t>(TILE_TOKENS, last - pair));
            const Input* x[TILE_TOKENS];
            for (int t = 0; t < tokens; t++) x[t] = hidden_.data() + (pair + t) * step_.hidden;
            Sums found;
            multiply<Product>(matrix, row, x, tokens, found);
            step_.down.overflow.add(expert * step_.down.rows + row, x, tokens, found);
            for (int t = 0; t < tokens; t++)
                for (int r = 0; r < TILE_ROWS; r++)
                    sums[pairs_.token[pair + t] * BLOCK + r] +=
                        pairs_.weight[pair + t] * found[r][t];
        }
    }

    const Step<Value>& step_;
    const Pairs pairs_;
    std::vector<Input> inputs_;
    std::vector<Input> hidden_;
};

template <class Product>
void run(const Step<typename Product::Value>& step) {
    Layer<Product>(step).run();
}

// The best product this processor can do, or the one that a test names.
#if defined(__x86_64__)
bool has_avx2() {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
           __builtin_cpu_supports("f16c");
}
bool has_avx512() {
    return __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512vbmi2");
}
bool has_bf16() { return has_avx512() && __builtin_cpu_supports("avx512bf16"); }
#endif

std::vector<std::string> instruction_sets() {
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
void run_on(const std::string& isa, const Step<Value>& step) {
#if defined(__x86_64__)
    const int64_t keep = step.gate_up.keep;
    if constexpr (std::is_same_v<Value, sparse::Bfloat16>) {
        if (isa == "avx512_bf16" && keep == 16) return run<sparse::Avx512Bf16<16>>(step);
        if (isa == "avx512_bf16" && keep == 8) return run<sparse::Avx512Bf16<8>>(step);
        if (isa == "avx512_bf16") return run<sparse::Avx512Bf16<0>>(step);
    }
    if (isa == "avx512" || isa == "avx512_bf16") return run<sparse::Avx512<Value, 0>>(step);
    if (isa == "avx2") return run<sparse::Avx2<Value>>(step);
#endif
    run<sparse::Plain<Value>>(step);
}

template <class Value>
Overflow<Value> overflow_of(at::TensorList parts, int64_t rows) {
    Overflow<Value> found;
    if (parts.empty()) return found;
    TORCH_CHECK(parts.size() == 3 && parts[0].numel() == rows + 1, "overflow of other rows");
    found.starts = parts[0].const_data_ptr<int64_t>();
    if (parts[1].scalar_type() == at::kShort) found.narrow = parts[1].const_data_ptr<int16_t>();
    else found.wide = parts[1].const_data_ptr<int32_t>();
    found.values = static_cast<const Value*>(parts[2].const_data_ptr());
    return found;
}

template <class Value>
Projection<Value> projection_of(const Tensor& values, const Tensor& mask, at::TensorList overflow) {
    const int64_t rows = mask.size(1), groups = mask.size(2) * 8 / GROUP;
    TORCH_CHECK(values.is_contiguous() && mask.is_contiguous() && values.size(1) == rows &&
                    mask.size(2) * 8 % GROUP == 0 && groups && values.size(2) % groups == 0,
                "values and mask are not of one matrix");
    return {static_cast<const Value*>(values.const_data_ptr()),
            static_cast<const uint32_t*>(mask.const_data_ptr()),
            rows,
            groups,
            values.size(2) / groups,
            overflow_of<Value>(overflow, mask.size(0) * rows)};
}

using Activation = float (*)(float);

Activation activation_of(c10::string_view name) {
    if (name == "silu") return silu;
    if (name == "gelu") return gelu;
    TORCH_CHECK(name == "gelu_tanh", "packed experts know silu, gelu and gelu_tanh");
    return gelu_tanh;
}

void check_ids(const Tensor& ids, int64_t experts) {
    const int32_t* first = ids.const_data_ptr<int32_t>();
    for (int64_t i = 0; i < ids.numel(); i++)
        TORCH_CHECK(first[i] < experts, "expert ", first[i], " of ", experts);
}

template <class Value>
Tensor run_typed(const Tensor& x, const Tensor& weights, const Tensor& ids,
                 const Projection<Value>& gate_up, const Projection<Value>& down,
                 const std::optional<Tensor>& orders, int64_t experts, Activation activate,
                 const std::string& isa) {
    Tensor out = at::empty_like(x);
    const Step<Value> step{gate_up,
                           down,
                           static_cast<const Value*>(x.const_data_ptr()),
                           weights.const_data_ptr<float>(),
                           ids.const_data_ptr<int32_t>(),
                           orders ? orders->const_data_ptr<int32_t>() : nullptr,
                           static_cast<Value*>(out.mutable_data_ptr()),
                           x.size(0),
                           ids.size(1),
                           experts,
                           down.rows,
                           gate_up.rows / 2,
                           activate};
    TORCH_CHECK(x.size(1) == step.width && gate_up.groups * GROUP == step.width &&
                    down.groups * GROUP == step.hidden && gate_up.keep == down.keep,
                "projections of other sizes than the input's");
    run_on(isa, step);
    return out;
}

Tensor sparse_experts(const Tensor& x, const Tensor& topk_weights, const Tensor& topk_ids,
                      const Tensor& w13_values, const Tensor& w13_mask, const Tensor& w2_values,
                      const Tensor& w2_mask, const std::optional<Tensor>& input_orders,
                      at::TensorList w13_overflow, at::TensorList w2_overflow,
                      c10::string_view activation, c10::string_view isa) {
    const Tensor rows = x.contiguous(), weights = topk_weights.to(at::kFloat).contiguous();
    const Tensor ids = topk_ids.to(at::kInt).contiguous();
    check_ids(ids, w13_mask.size(0));
    TORCH_CHECK(w13_values.scalar_type() == x.scalar_type() &&
                    w2_values.scalar_type() == x.scalar_type(),
                "packed values and inputs are of two types");
    const auto run = [&](auto value) {
        using Value = decltype(value);
        return run_typed<Value>(rows, weights, ids,
                                projection_of<Value>(w13_values, w13_mask, w13_overflow),
                                projection_of<Value>(w2_values, w2_mask, w2_overflow), input_orders,
                                w13_mask.size(0), activation_of(activation),
                                isa.empty() ? instruction_sets().front() : std::string(isa));
    };
    if (x.scalar_type() == at::kBFloat16) return run(sparse::Bfloat16{});
    if (x.scalar_type() == at::kHalf) return run(sparse::Float16{});
    TORCH_CHECK(x.scalar_type() == at::kFloat, "packed experts know bfloat16, float16 and float32");
    return run(0.0f);
}

}  // namespace

// The instruction sets that this processor has, best first, with commas between.
extern "C" const char* leanmoe_sparse_instruction_sets() {
    static const std::string found = [] {
        std::string joined;
        for (const auto& one : instruction_sets()) joined += (joined.empty() ? "" : ",") + one;
        return joined;
    }();
    return found.c_str();
}

TORCH_LIBRARY_FRAGMENT(leanmoe, library) {
    library.def(
        "sparse_experts(Tensor x, Tensor topk_weights, Tensor topk_ids, Tensor w13_values, "
        "Tensor w13_mask, Tensor w2_values, Tensor w2_mask, Tensor? input_orders, "
        "Tensor[] w13_overflow, Tensor[] w2_overflow, str activation, str isa) -> Tensor");
}

TORCH_LIBRARY_IMPL(leanmoe, CPU, library) { library.impl("sparse_experts", &sparse_experts); }
