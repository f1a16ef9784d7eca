// A MoE block on packed experts behind a plain C interface, for CPUs: layer.h on the addresses that
// kernel.py tells. Nothing here knows torch, so that a library compiled once runs beside any.
#include <cstdint>
#include <new>
#include <string>

#include "layer.h"

namespace {

// One projection of all experts; with overflow where `starts` is not null.
struct ToldProjection {
    const void* values;            // [E, R, G * keep]
    const uint32_t* mask;          // [E, R, G]
    const int64_t* starts;         // [E * R + 1] or null
    const int16_t* narrow;         // columns of the overflow, in one of two widths
    const int32_t* wide;
    const void* overflow;
    int64_t rows, groups, keep;
    sparse::Scales scales;         // of float8
};

enum Type : int64_t { BFLOAT16, FLOAT16, FLOAT32, FLOAT8 };

template <class Weight>
sparse::Projection<Weight> typed(const ToldProjection& told) {
    return {static_cast<const Weight*>(told.values), told.mask, told.rows, told.groups, told.keep,
            {told.starts, told.narrow, told.wide, static_cast<const Weight*>(told.overflow)},
            told.scales};
}

}  // namespace

// One layer, of E experts, as long as it is loaded.
struct LeanMoEPackedLayer {
    ToldProjection gate_up, down;
    const int32_t* orders;         // [E, D] or null
    int64_t experts;
    int64_t type;                  // of values
    int64_t activation;            // silu, gelu, gelu_tanh
    const char* isa;               // one of the processor's instruction sets
};

// One step of it, of T tokens with K experts each.
struct LeanMoEPackedStep {
    const void* x;                 // [T, D]
    const float* weights;          // [T, K]
    const int32_t* ids;            // [T, K]
    void* out;                     // [T, D]
    int64_t tokens, top_k, threads;
    int64_t type;                  // of inputs and outputs: that of values, any where they are float8
};

namespace {

constexpr sparse::Activate ACTIVATIONS[] = {sparse::activate<sparse::silu>,
                                            sparse::activate<sparse::gelu>,
                                            sparse::activate<sparse::gelu_tanh>};

template <class Weight, class Value>
void run_typed(const LeanMoEPackedLayer& layer, const LeanMoEPackedStep& step) {
    const auto gate_up = typed<Weight>(layer.gate_up), down = typed<Weight>(layer.down);
    const sparse::Step<Weight, Value> told = {
        gate_up, down, static_cast<const Value*>(step.x), step.weights, step.ids, layer.orders,
        static_cast<Value*>(step.out), step.tokens, step.top_k, layer.experts, down.rows,
        gate_up.rows / 2, ACTIVATIONS[layer.activation]};
    sparse::run_on<Weight, Value>(layer.isa, told, static_cast<int>(step.threads));
}

template <class Value>
void run_for(const LeanMoEPackedLayer& layer, const LeanMoEPackedStep& step) {
    if (layer.type == FLOAT8) run_typed<sparse::Float8, Value>(layer, step);
    else run_typed<Value, Value>(layer, step);
}

void run(const LeanMoEPackedLayer& layer, const LeanMoEPackedStep& step) {
    if (step.type == BFLOAT16) run_for<sparse::Bfloat16>(layer, step);
    else if (step.type == FLOAT16) run_for<sparse::Float16>(layer, step);
    else run_for<float>(layer, step);
}

}  // namespace

// Which place among the ids names an expert that is not there, -1 if none does and `out` is
// written, -2 where memory ran out.
extern "C" int64_t leanmoe_packed_experts(const LeanMoEPackedLayer* layer,
                                          const LeanMoEPackedStep* step) {
    for (int64_t place = 0; place < step->tokens * step->top_k; place++)
        if (step->ids[place] >= layer->experts) return place;
    try {
        run(*layer, *step);
    } catch (const std::bad_alloc&) {
        return -2;
    }
    return -1;
}

// The instruction sets that this processor has, best first, with commas between.
extern "C" const char* leanmoe_packed_instruction_sets() {
    static const std::string found = [] {
        std::string joined;
        for (const auto& one : sparse::instruction_sets()) joined += (joined.empty() ? "" : ",") + one;
        return joined;
    }();
    return found.c_str();
}
