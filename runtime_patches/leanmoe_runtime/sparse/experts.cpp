// The operator leanmoe::sparse_experts: layer.h on tensors, for CPUs (kernel.py).
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include <cstdint>
#include <optional>
#include <string>

#include "layer.h"

namespace {

using at::Tensor;
using sparse::GROUP;
using sparse::Overflow;
using sparse::Projection;
using sparse::Step;

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

sparse::Activate activation_of(c10::string_view name) {
    if (name == "silu") return sparse::activate<sparse::silu>;
    if (name == "gelu") return sparse::activate<sparse::gelu>;
    TORCH_CHECK(name == "gelu_tanh", "packed experts know silu, gelu and gelu_tanh");
    return sparse::activate<sparse::gelu_tanh>;
}

void check_ids(const Tensor& ids, int64_t experts) {
    const int32_t* first = ids.const_data_ptr<int32_t>();
    for (int64_t i = 0; i < ids.numel(); i++)
        TORCH_CHECK(first[i] < experts, "expert ", first[i], " of ", experts);
}

template <class Value>
Tensor run_typed(const Tensor& x, const Tensor& weights, const Tensor& ids,
                 const Projection<Value>& gate_up, const Projection<Value>& down,
                 const std::optional<Tensor>& orders, int64_t experts, sparse::Activate activate,
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
    sparse::run_on(isa, step, at::get_num_threads());
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
                                isa.empty() ? sparse::instruction_sets().front() : std::string(isa));
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
        for (const auto& one : sparse::instruction_sets()) joined += (joined.empty() ? "" : ",") + one;
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
