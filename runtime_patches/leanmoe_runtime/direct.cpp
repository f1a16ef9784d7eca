// The operator leanmoe::direct_experts: a layer's experts without Python where nothing is skipped.
// Between two kernels that stream weights through the caches Python has to be fetched anew, so that
// an operator with a body in Python costs more there than counting a step does (direct.py).
#include <ATen/core/Tensor.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace {

using at::Tensor;
using Bias = std::optional<Tensor>;
using Count = void (*)(void* counts, const float* weights, const int32_t* ids, int64_t tokens,
                       int64_t top_k, int64_t experts);
using InPython = Tensor(const Tensor&, const Tensor&, const Tensor&, int64_t);
using Kernel = void(Tensor&, const Tensor&, const Tensor&, const Tensor&, const Bias&, const Bias&,
                    const Tensor&, const Tensor&, bool, const std::string&, const std::string&);

// Of one layer; without counts it neither skips nor counts. Counts and beta lie in its LayerState,
// steady in its Engine: said in Python by the layer that begins the engine's pass, that the pass is
// traffic and no token of it has a level of its own. A layer's first call is Python's in any case,
// which notes for the handshake that the layer ran.
struct Layer {
    void* counts;
    const float* beta;
    const int64_t* steady;
    int64_t experts;
    bool begins;
    bool ran;
};

Count count_whole = nullptr;
std::vector<Layer> layers;

template <typename Signature>
c10::TypedOperatorHandle<Signature> operator_of(const char* name) {
    return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Signature>();
}

bool is_plain(const Tensor& weights, const Tensor& ids) {
    return weights.scalar_type() == at::kFloat && ids.scalar_type() == at::kInt &&
           weights.is_contiguous() && ids.is_contiguous();
}

}  // namespace

extern "C" void leanmoe_add_layer(int64_t slot, void* counts, const float* beta,
                                  const int64_t* steady, int64_t experts, int64_t begins,
                                  Count count) {
    count_whole = count;
    if (static_cast<int64_t>(layers.size()) <= slot) layers.resize(slot + 1);
    layers[slot] = {counts, beta, steady, experts, begins != 0, false};
}

namespace {

// Whether nothing but the kernel is to be called, and the step counted.
bool is_whole(const Layer& layer, const Tensor& weights, const Tensor& ids) {
    if (!layer.counts) return true;
    return !layer.begins && *layer.steady && *layer.beta == 0.0f && is_plain(weights, ids);
}

Tensor direct_experts(const Tensor& x, const Tensor& weights, const Tensor& ids, const Tensor& w13,
                      const Tensor& w2, const Bias& w13_bias, const Bias& w2_bias,
                      c10::string_view activation, c10::string_view isa, int64_t slot) {
    static const auto in_python = operator_of<InPython>("leanmoe::experts");
    static const auto kernel = operator_of<Kernel>("_C::cpu_fused_moe");
    Layer& layer = layers.at(slot);
    const bool is_first = !layer.ran;
    layer.ran = true;
    if (is_first || !is_whole(layer, weights, ids)) return in_python.call(x, weights, ids, slot);
    if (layer.counts)
        count_whole(layer.counts, weights.const_data_ptr<float>(), ids.const_data_ptr<int32_t>(),
                    weights.size(0), weights.size(1), layer.experts);
    Tensor out = at::empty_like(x);
    kernel.call(out, x, w13, w2, w13_bias, w2_bias, weights, ids, false, std::string(activation),
                std::string(isa));
    return out;
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(leanmoe, library) {
    library.def(
        "direct_experts(Tensor x, Tensor topk_weights, Tensor topk_ids, Tensor w13, Tensor w2, "
        "Tensor? w13_bias, Tensor? w2_bias, str activation, str isa, int slot) -> Tensor");
}

TORCH_LIBRARY_IMPL(leanmoe, CPU, library) { library.impl("direct_experts", &direct_experts); }
