"""Each experts class gets the mode of the table; what is unknown saves nothing but is right."""

from types import SimpleNamespace

import pytest
import torch

from leanmoe.messages import SkipMode
from leanmoe_runtime.device import experts as experts_module
from leanmoe_runtime.device import modes
from leanmoe_runtime.device.experts import SkipExpertsMixin

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


@pytest.mark.parametrize(("name", "mode"), [*modes.MODES.items(), ("SomethingNew", SkipMode.ZERO)])
def test_the_table_is_what_a_layer_gets(name, mode):
    assert modes.mode_of(kernel_of(experts_of(name))) is mode


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
        self.quant_method = SimpleNamespace(moe_kernel=kernel_of(experts_of("TritonExperts")))

    @property
    def expert_map(self):
        return self.stock_map


class Layer(SkipExpertsMixin, StockExperts):
    pass


@pytest.fixture
def cuda(monkeypatch):
    monkeypatch.setattr(experts_module, "current_platform", SimpleNamespace(is_cuda=lambda: True))


def layer_of(stock_map=None, method="Renormalize"):
    from leanmoe_runtime.compat import RoutingMethodType

    config = SimpleNamespace(routing_method=RoutingMethodType[method])
    return Layer("model.layers.0", torch.bfloat16, config, stock_map=stock_map), config


def call(layer, tokens: int):
    layer.before_experts(torch.zeros(tokens, 2, dtype=torch.int32))
    return layer.expert_map


def test_a_masked_layer_has_an_identity_map_except_on_the_naive_path(cuda):
    layer, _ = layer_of()
    assert layer.read_early is None and layer.device_mode() is SkipMode.MASK
    assert call(layer, 9).tolist() == list(range(64)) and layer.expert_map.dtype == torch.int32
    assert call(layer, 8) is None  # 8 * 2 * 4 <= 64
    assert call(layer, 9) is not None


def test_a_map_of_expert_parallelism_stays(cuda):
    stock_map = torch.tensor([0, -1])
    layer, _ = layer_of(stock_map)
    assert call(layer, 100) is stock_map


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
    assert layer.device_mode() is SkipMode.ZERO and call(layer, 100) is None


def test_a_class_is_logged_once(cuda, caplog, monkeypatch):
    monkeypatch.setattr(modes, "_SAID", set())
    for _ in range(3):
        layer_of()[0].device_mode()
    assert [record.getMessage() for record in caplog.records] == [
        "experts of class TritonExperts skip by mode mask"
    ]
