"""Each experts class gets the mode of the table; what is unknown saves nothing but is right."""

import ast
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from leanmoe.messages import SkipMode
from leanmoe_runtime.device import masking, modes, sum_kernel
from leanmoe_runtime.device.masking import SkipExpertsMixin

NO_DISPATCH = "MoEPrepareAndFinalizeNoDPEPModular"


def experts_of(name: str, **changed):
    config = SimpleNamespace(use_int8_w8a16=False, use_int4_w4a16=False)
    plain = {
        "quant_dtype": None,
        "a2_scale": None,
        "block_shape": None,
        "per_act_token_quant": False,
        "quantization_emulation": False,
        "quant_config": config,
    }
    return type(name, (), {**plain, **changed})()


def kernel_of(experts, carrier: str = NO_DISPATCH):
    return SimpleNamespace(fused_experts=experts, prepare_finalize=type(carrier, (), {})())


@pytest.mark.parametrize("name", modes.MODES)
def test_the_table_is_what_a_layer_gets(name):
    assert modes.mode_of(kernel_of(experts_of(name))) is modes.MODES[name].mode


def test_what_is_in_no_row_saves_nothing_and_says_so(caplog):
    assert modes.mode_of(kernel_of(experts_of("SomethingNew"))) is SkipMode.ZERO
    modes.say_once("SomethingNew", SkipMode.ZERO)
    assert "a class that this LeanMoE does not know" in caplog.text
    assert "skipping saves nothing" in caplog.text


def other_platform(path: Path) -> bool:
    return path.stem.startswith(("cpu", "xpu", "zentorch", "rocm", "aiter", "rdna3"))


def test_every_experts_class_that_cuda_can_have_stands_in_the_table():
    """A class of a new vLLM is found here before it silently saves nothing."""
    import vllm.model_executor.layers.fused_moe as package

    bases: dict[str, list[str]] = {}
    for path in Path(package.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef) and not other_platform(path):
                bases[node.name] = [ast.unparse(base).split(".")[-1] for base in node.bases]

    def is_modular(name: str) -> bool:
        return name == "FusedMoEExpertsModular" or any(map(is_modular, bases.get(name, ())))

    abstract = {name for held in bases.values() for name in held if name != "TritonExperts"}
    found = {name for name in bases if is_modular(name) and name not in abstract}
    known = set(modes.MODES) | modes.PAIRS
    assert found - known == set() and known - found == set()


@pytest.mark.parametrize(
    ("changed", "mode"),
    [
        ({}, SkipMode.REDIRECT),
        ({"a2_scale": 1.0}, SkipMode.MASK),
        ({"block_shape": [128, 128]}, SkipMode.MASK),
        ({"per_act_token_quant": True}, SkipMode.MASK),
        ({"per_act_token_quant": True, "quantization_emulation": True}, SkipMode.REDIRECT),
    ],
)
def test_one_dynamic_scale_over_all_rows_is_redirected(changed, mode):
    experts = experts_of("TritonExperts", quant_dtype=torch.float8_e4m3fn, **changed)
    assert modes.experts_mode(experts) is mode


def test_a_pair_that_switches_by_shape_takes_the_weaker_mode():
    def pair(first, second):
        return experts_of("Pair", experts=first, fallback_experts=second)

    triton, deep = experts_of("TritonExperts"), experts_of("DeepGemmExperts")
    assert modes.experts_mode(pair(deep, triton)) is SkipMode.MASK
    assert modes.experts_mode(pair(deep, experts_of("Unknown"))) is SkipMode.ZERO
    dynamic = experts_of("TritonExperts", quant_dtype=torch.float8_e4m3fn)
    assert modes.experts_mode(pair(deep, dynamic)) is SkipMode.REDIRECT


@pytest.mark.parametrize(("adapters", "mode"), [(True, SkipMode.ZERO), (False, SkipMode.MASK)])
def test_ids_that_go_to_adapters_too_are_kept(adapters, mode):
    config = SimpleNamespace(is_lora_enabled=adapters)
    experts = experts_of("TritonExperts", moe_config=config)
    assert modes.mode_of(kernel_of(experts)) is mode


def test_tokens_carried_by_a_library_are_not_masked():
    assert modes.mode_of(kernel_of(experts_of("TritonExperts"), "NixlEP")) is SkipMode.ZERO
    assert modes.mode_of(None) is SkipMode.ZERO


def test_nothing_is_ever_redirected_into_kernels_that_duplicates_break():
    for name in ("FlashInferExperts", "OAITritonExperts", "UnfusedOAITritonExperts"):
        assert modes.experts_mode(experts_of(name)) is not SkipMode.REDIRECT


def test_the_naive_path_is_told_apart_at_its_border():
    triton = experts_of("TritonExperts")
    assert modes.is_naive(triton, 4, 8, 128) and not modes.is_naive(triton, 5, 8, 128)
    assert not modes.is_naive(experts_of("DeepGemmExperts"), 1, 1, 128)
    config = SimpleNamespace(use_int8_w8a16=True, use_int4_w4a16=False)
    grouped = experts_of("TritonExperts", quant_config=config, block_shape=[0, 128])
    assert not modes.is_naive(grouped, 1, 1, 128)


class StockExperts:
    """What the mixin stands before: a layer of vLLM's with its own map."""

    def __init__(self, layer_name, params_dtype, moe_config, stock_map=None):
        self.stock_map = stock_map
        self.read_early = self.expert_map
        self.global_num_experts = self.local_num_experts = 64
        self.top_k, self.params_dtype = 2, params_dtype
        self.quant_method = SimpleNamespace(moe_kernel=kernel_of(experts_of("MarlinExperts")))

    @property
    def expert_map(self):
        return self.stock_map


class Layer(SkipExpertsMixin, StockExperts):
    pass


@pytest.fixture
def cuda(monkeypatch):
    monkeypatch.setattr(masking, "current_platform", SimpleNamespace(is_cuda=lambda: True))


def layer_of(stock_map=None, method="Renormalize"):
    from leanmoe_runtime.compat import RoutingMethodType

    config = SimpleNamespace(routing_method=RoutingMethodType[method])
    return Layer("model.layers.0", torch.bfloat16, config, stock_map=stock_map), config


@staticmethod
def stock_sum():
    """Stands for vLLM's own."""


def with_triton(layer):
    layer.quant_method.moe_kernel = kernel_of(experts_of("TritonExperts", moe_sum=stock_sum))
    layer.before_experts()
    return layer.quant_method.moe_kernel.fused_experts


def test_a_masked_layer_has_an_identity_map(cuda):
    layer, _ = layer_of()
    assert layer.read_early is None and layer.device_mode() is SkipMode.MASK
    layer.before_experts()
    assert layer.expert_map.tolist() == list(range(64)) and layer.expert_map.dtype == torch.int32


def test_triton_experts_have_a_sum_of_ours_instead_of_a_map(cuda):
    layer, _ = layer_of()
    experts = with_triton(layer)
    assert layer.expert_map is None and "moe_sum" in vars(experts)
    layer.take_mode(SkipMode.ZERO)  # stock's sum again
    assert experts.moe_sum is stock_sum.__func__ and layer.expert_map is None


def test_a_kernel_made_anew_is_fitted_again(cuda):
    layer, _ = layer_of()
    first = with_triton(layer)
    second = with_triton(layer)
    assert second is not first and "moe_sum" in vars(second)


def test_the_sum_of_ours_leaves_a_map_and_sums_without_ids_to_stock(cuda):
    told = []
    layer, _ = layer_of()
    stock = staticmethod(lambda *given: told.append(given))
    layer.quant_method.moe_kernel = kernel_of(experts_of("TritonExperts", moe_sum=stock))
    layer.before_experts()
    rows, out = torch.zeros(3, 2, 4), torch.zeros(3, 4)
    ids, ranks = torch.zeros(3, 2, dtype=torch.int32), torch.zeros(64, dtype=torch.int32)
    moe_sum = layer.quant_method.moe_kernel.fused_experts.moe_sum
    moe_sum(rows, out)
    moe_sum(rows, out, ids, ranks)
    assert len(told) == 2


def test_ids_and_rows_of_any_layout_come_to_the_sum_of_ours(cuda, monkeypatch):
    """Stock's sum without a map would add rows that nobody wrote."""
    told = []
    monkeypatch.setattr(sum_kernel, "sum_computed", lambda *given: told.append(given))
    layer, _ = layer_of()
    moe_sum = with_triton(layer).moe_sum
    out, ids = torch.zeros(3, 2), torch.arange(6, dtype=torch.int32).view(2, 3).t()
    rows = torch.rand(3, 2, 2).transpose(1, 2)
    moe_sum(rows, out, ids)
    ((found, _, found_ids),) = told
    assert found.stride(-1) == 1 and torch.equal(found, rows)
    assert found_ids.is_contiguous() and torch.equal(found_ids, ids)


def test_a_map_of_expert_parallelism_stays(cuda):
    stock_map = torch.tensor([0, -1])
    layer, _ = layer_of(stock_map)
    layer.before_experts()
    assert layer.expert_map is stock_map


@pytest.mark.parametrize(
    ("tokens", "changed", "has_room"),
    [
        (9, {}, True),
        (8, {}, False),  # 8 * 2 * 4 <= 64: each assignment has a block to itself
        (33, {}, False),  # more assignments than one program lays out
        (9, {"quant_dtype": torch.float8_e4m3fn, "a2_scale": 1.0}, False),
    ],
)
def test_blocks_are_laid_out_in_the_routing_launch_where_steps_are_small(
    cuda, monkeypatch, tokens, changed, has_room
):
    monkeypatch.setattr(masking, "triton_block_rows", lambda layer, tokens, dtype: 16)
    layer, _ = layer_of()
    layer.quant_method.moe_kernel = kernel_of(
        experts_of("TritonExperts", moe_sum=stock_sum, **changed)
    )
    layer.before_experts()
    blocks = layer.empty_blocks(tokens, torch.zeros(tokens, 64))
    assert (blocks is not None) is has_room
    if blocks is not None:
        assert (blocks.rows, len(blocks.sorted_N), len(blocks.experts)) == (16, 18 * 16, 18)


def test_no_blocks_are_laid_out_for_other_classes_or_ranks(cuda):
    layer, _ = layer_of()
    assert layer.empty_blocks(9, torch.zeros(9, 64)) is None
    layer, _ = layer_of(torch.tensor([0, -1]))
    with_triton(layer)
    assert layer.empty_blocks(9, torch.zeros(9, 64)) is None


def test_routing_inside_the_kernel_is_ruled_out_on_cuda_but_for_deepseek_v4(cuda):
    assert layer_of()[1].routing_method.name == "Unspecified"
    assert layer_of(method="DeepseekV4")[1].routing_method.name == "DeepseekV4"


def test_vllm_that_can_be_told_so_keeps_the_true_routing(cuda):
    """0.33's field, for DeepSeek-V4, too."""
    config = SimpleNamespace(routing_method="Renormalize", require_decomposed_backend=False)
    Layer("model.layers.0", torch.bfloat16, config, stock_map=None)
    assert config.require_decomposed_backend is True and config.routing_method == "Renormalize"


def test_outside_cuda_nothing_changes():
    layer, config = layer_of()
    assert config.routing_method.name == "Renormalize"
    layer.before_experts()
    assert layer.device_mode() is SkipMode.ZERO and layer.expert_map is None


def test_a_class_is_logged_once(cuda, caplog, monkeypatch):
    monkeypatch.setattr(modes, "_SAID", set())
    for _ in range(3):
        layer_of()[0].device_mode()
    assert [record.getMessage() for record in caplog.records] == [
        "experts of class MarlinExperts skip by mode mask (read)"
    ]
