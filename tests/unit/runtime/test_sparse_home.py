"""Packed experts loaded for a GPU, its kernels run on a CPU; and what stops there."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from leanmoe.errors import CheckpointError, RuntimeSeamError
from leanmoe.messages import SkipMode
from leanmoe.sparse.packing import Packed, pack_by, to_indices
from leanmoe.sparse.scale_blocks import Blocks
from leanmoe.sparse.sparse_format import SparseFormat
from leanmoe_runtime.device.masking import SkipExpertsMixin
from leanmoe_runtime.sparse import home, method
from leanmoe_runtime.sparse.gpu import packed_experts, packed_experts_fake
from leanmoe_runtime.sparse.method import LeanSparseConfig, LeanSparseMethod
from leanmoe_runtime.sparse.units import Units
from leanmoe_runtime.sparse.workspace import Workspace
from tests.unit.runtime.packed_host import FLOAT8, Layer, host_library, words_of

# What torch takes columns of.
BITS = {torch.bfloat16: torch.int16, torch.float16: torch.int16, FLOAT8: torch.uint8}


def platform(capability: int = 90, *, cuda: bool = True) -> SimpleNamespace:
    text = f"{capability // 10}.{capability % 10}"
    return SimpleNamespace(
        is_cpu=lambda: False,
        is_cuda=lambda: cuda,
        has_device_capability=lambda least: capability >= least,
        get_device_capability=lambda: SimpleNamespace(as_version_str=lambda: text),
    )


@pytest.fixture
def on_a_gpu(monkeypatch):
    loading = SimpleNamespace(
        load_config=SimpleNamespace(load_format="auto"),
        model_config=SimpleNamespace(model="/models/lean"),
    )
    monkeypatch.setattr(home, "current_platform", platform())
    monkeypatch.setattr(home, "device_of_worker", lambda: "cpu")
    monkeypatch.setattr(home, "gpu_library", host_library)
    monkeypatch.setattr(home, "registered", lambda: packed_experts)
    engine = SimpleNamespace(workspace=Workspace())
    monkeypatch.setattr(home, "current_engine", lambda: engine)
    monkeypatch.setattr(method, "get_current_vllm_config", lambda: loading)


def routed(hidden: int, experts: int = 3, activation: str = "silu") -> Any:
    """What the method reads of a ``RoutedExperts``."""
    layer = torch.nn.Module()
    layer.layer_name, layer.local_num_experts = "layers.3.experts", experts
    layer.intermediate_size_per_partition = hidden
    layer.activation = SimpleNamespace(value=activation)
    layer.params_dtype = torch.bfloat16
    layer.apply_router_weight_on_input = False
    return layer


def sparse_method(how: SparseFormat, ranks: int = 1, rank: int = 0, **moe: Any) -> LeanSparseMethod:
    parallel = {"use_ep": False, "enable_eplb": False, "tp_size": ranks, "tp_rank": rank}
    parallel |= {name: moe.pop(name) for name in list(moe) if name in parallel}
    told = {"is_lora_enabled": False, **moe, "moe_parallel_config": SimpleNamespace(**parallel)}
    return LeanSparseMethod(how, SimpleNamespace(**told))


def parts(packed: Packed, how: SparseFormat, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """The tensors of a file, by the ends of their names."""
    signed = np.int8 if dtype == FLOAT8 else np.int16
    number = lambda words: torch.from_numpy(words.view(signed)).view(dtype)  # noqa: E731
    found = {".weight_values": number(packed.values_RV)}
    if how.layout == "indices":
        return {**found, ".weight_indices": torch.from_numpy(to_indices(packed.mask_RB))}
    found[".weight_mask"] = torch.from_numpy(packed.mask_RB)
    if packed.overflow is not None:
        listed = packed.overflow
        found[".weight_overflow_rows"] = torch.from_numpy(listed.rows)
        found[".weight_overflow_columns"] = torch.from_numpy(listed.columns_N)
        found[".weight_overflow_values"] = number(listed.values_N)
    return found


def loaded(source: Layer, ranks: int = 1, rank: int = 0) -> tuple[LeanSparseMethod, Any]:
    """The layer's weights through the parameters that the method names, as vLLM's loader calls."""
    how = source.how.model_copy(update={"input_orders": source.orders is not None})
    hidden = source.down.shape[2] // ranks
    layer, of_layer = routed(hidden), sparse_method(how, ranks, rank)
    # As vLLM loads.
    torch.set_default_dtype(source.dtype)
    try:
        of_layer.create_weights(layer, 3, source.wide, hidden, source.dtype)
    finally:
        torch.set_default_dtype(torch.float32)
    stacks = (
        (source.gate_up_codes, source.down_codes)
        if how.is_float8
        else (source.gate_up, source.down)
    )
    dtype = stacks[0].dtype
    for expert in range(3):
        # Of float8 torch takes no rows and columns by a list.
        gate_up, down = (stack[expert].view(BITS[dtype]) for stack in stacks)
        if source.orders is not None:
            gate_up = gate_up[:, source.orders[expert]]
        three = dict(zip(("w1", "w3"), gate_up.chunk(2), strict=True)) | {"w2": down}
        for shard, weight in three.items():
            packed = pack_by(how, words_of(weight.contiguous().view(dtype)), "w")
            held = parts(packed, how, dtype)
            if how.is_float8:
                scales = source.scales[shard == "w2"][expert]
                held[".weight_scale_inv"] = scales[1 if shard == "w3" else 0]
            if source.orders is not None and shard != "w2":
                held[".weight_input_order"] = source.orders[expert]
            for end, tensor in held.items():
                name = f"{'w2' if shard == 'w2' else 'w13'}_{end[1:]}"
                parameter = layer.get_parameter(name)
                parameter.weight_loader(parameter, tensor, name, shard, expert)
    of_layer.process_weights_after_loading(layer)
    return of_layer, layer


@pytest.mark.parametrize("pattern", ["16:32", "2:4", "0.5"])
@pytest.mark.parametrize("ordered", [False, True], ids=["plain", "ordered"])
def test_loaded_from_files_they_compute_their_sum(pattern, ordered, on_a_gpu):
    source = Layer(pattern, 96, 64, ordered=ordered)
    of_layer, layer = loaded(source)
    for tokens in (1, 5):
        step = source.step(tokens)
        assert source.error(of_layer.apply(layer, *step, None, None), step) < 1
    assert packed_experts_fake(*step, 0).shape == step[0].shape


@pytest.mark.parametrize("ranks", [1, 2])
def test_experts_wider_than_config_json_says_are_not_taken_in_part(ranks, on_a_gpu):
    source = Layer("16:32", 64, 128)
    how, hidden = source.how, 64 // ranks
    of_layer, layer = sparse_method(how, ranks), routed(hidden)
    of_layer.create_weights(layer, 3, source.wide, hidden, source.dtype)
    gate, down = source.gate_up[0].chunk(2)[0], source.down[0]
    for shard, weight, size in (("w1", gate, r"\[64, 32\]"), ("w2", down, r"\[64, 32\]")):
        held = parts(pack_by(how, words_of(weight.contiguous()), "w"), how, weight.dtype)
        said = rf"{shard}: its values are .*, expected {size} from config.json; config and shards"
        with pytest.raises(CheckpointError, match=said):
            for end, tensor in held.items():
                name = f"{'w2' if shard == 'w2' else 'w13'}_{end[1:]}"
                parameter = layer.get_parameter(name)
                parameter.weight_loader(parameter, tensor, name, shard, 0)


def test_parts_of_tensor_parallelism_add_up(on_a_gpu):
    source = Layer("0.5", 64, 128, ordered=True)
    both = [loaded(source, 2, rank) for rank in range(2)]
    step = source.step(3)
    found = sum(of_layer.apply(layer, *step, None, None).float() for of_layer, layer in both)
    assert source.error(found.to(source.dtype), step) < 1.5


# 128 x 128 as released; and blocks that parts of tensor parallelism cut.
FLOAT8_SIZES = {"whole": (Blocks(), 256, 128), "cut": (Blocks(64, 64), 96, 192)}


@pytest.fixture
def on_a_cpu(monkeypatch):
    loading = SimpleNamespace(
        load_config=SimpleNamespace(load_format="auto"),
        model_config=SimpleNamespace(model="/models/lean"),
    )
    monkeypatch.setattr(method, "get_current_vllm_config", lambda: loading)


@pytest.mark.parametrize("device", ["on_a_cpu", "on_a_gpu"])
@pytest.mark.parametrize("pattern", ["16:32", "2:4", "0.5"])
@pytest.mark.parametrize("sizes", FLOAT8_SIZES)
@pytest.mark.parametrize("ranks", [1, 2])
def test_float8_from_files_and_in_parts(device, pattern, sizes, ranks, request):
    request.getfixturevalue(device)
    blocks, wide, hidden = FLOAT8_SIZES[sizes]
    source = Layer(pattern, wide, hidden, ordered=pattern != "2:4", blocks=blocks)
    every = [loaded(source, ranks, rank) for rank in range(ranks)]
    step = source.step(3)
    found = sum(of_layer.apply(layer, *step, None, None).float() for of_layer, layer in every)
    assert source.error(found.to(source.dtype), step) < 1.5
    values = every[0][1].get_parameter("w13_weight_values")
    assert values.dtype == FLOAT8


@pytest.mark.parametrize(("wide", "hidden"), [(4096, 14336), (2048, 768)])
@pytest.mark.parametrize(
    ("pattern", "share"), [("16:32", 0.5625), ("2:4", 0.5625), ("8:32", 0.3125)]
)
def test_bytes_of_real_shapes(wide, hidden, pattern, share):
    how = SparseFormat.of_pattern(pattern, "bfloat16")
    for rows, columns in ((2 * hidden, wide), (wide, hidden)):
        units = Units.of(how, rows, columns)
        held = 2 * rows * units.values_per_row + rows * units.padded // 8
        assert held == share * 2 * rows * columns
        assert units.gather_bytes < 64 << 10 or pattern == "2:4"


def test_the_router_leaves_skipped_assignments_out_by_their_id(on_a_gpu):
    class Experts(SkipExpertsMixin):
        def __init__(self) -> None:
            self.quant_method = SimpleNamespace(skip_mode=SkipMode.MASK, moe_kernel=None)

    experts = Experts()
    experts.before_experts()
    assert experts.device_mode() is SkipMode.MASK
    assert not experts._needs_map


@pytest.mark.parametrize(
    ("dtype", "inner", "sentence"),
    [
        ("bfloat16", {"quant_method": "fp8"}, "bfloat16' and .* inner 'fp8', expected another"),
        ("float8_e4m3fn", {"quant_method": "gptq"}, "inner 'gptq', expected 'fp8'"),
        ("float8_e4m3fn", {}, "inner None, expected 'fp8'"),
    ],
)
def test_a_start_stops_where_values_are_not_what_the_sources_settings_say(dtype, inner, sentence):
    told = SparseFormat(keep=16).to_config() | {"dtype": dtype, "inner": inner}
    with pytest.raises(CheckpointError, match=sentence):
        LeanSparseConfig.from_config(told)


def test_experts_that_float8_settings_leave_plain_are_read_as_such():
    left = {"quant_method": "fp8", "modules_to_not_convert": ["model.layers.0.mlp.experts"]}
    config = LeanSparseConfig.from_config(SparseFormat(keep=16).to_config() | {"inner": left})
    assert config.how.inner == left


def test_blocks_that_are_none_are_told_with_the_model_that_vllm_loads():
    """It hands over the settings alone, and the folder by its own later call."""
    inner = {"quant_method": "fp8", "weight_block_size": [128]}
    told = SparseFormat(keep=16, dtype="float8_e4m3fn").to_config() | {"inner": inner}
    config = LeanSparseConfig.from_config(told)
    with pytest.raises(CheckpointError, match=r"some/model/config\.json has the weight_block_size"):
        config.maybe_update_config("some/model")


KEPT_16 = SparseFormat(keep=16)


def float8(block: Sequence[int] = (128, 128), **how: Any) -> SparseFormat:
    return SparseFormat(dtype="float8_e4m3fn", inner={"weight_block_size": [*block]}, **how)


@pytest.mark.parametrize(
    ("how", "given", "sentence"),
    [
        (KEPT_16, {"capability": 75}, r"capability 8\.0 or newer, and this one has 7\.5"),
        (KEPT_16, {"cuda": False}, "run on CPUs and NVIDIA GPUs; `leanmoe unpack`"),
        (KEPT_16, {"dtype": torch.float32}, "in float32 on a GPU, which knows bfloat16, float16"),
        (float8(keep=16, layout="indices", input_orders=True), {}, "2:4 with input orders"),
        (float8([128, 96], keep=16), {}, "for 32 columns or a power of two more"),
        (SparseFormat(keep=28), {}, r"keep 28 of 32 .* up to 24"),
        (KEPT_16, {"use_ep": True}, "expert parallelism; serve them with tensor"),
        (KEPT_16, {"enable_eplb": True}, "expert parallelism"),
        (KEPT_16, {"is_lora_enabled": True}, "take no LoRA adapters"),
        (KEPT_16, {"activation": "relu2"}, "do not compute relu2"),
        (KEPT_16, {"hidden": 48}, "this process would get 48 of the hidden width"),
    ],
)
def test_what_a_gpu_cannot_do_stops_with_a_sentence(how, given, sentence, on_a_gpu, monkeypatch):
    shown = {name: given.pop(name) for name in ("capability", "cuda") if name in given}
    monkeypatch.setattr(home, "current_platform", platform(**shown))
    hidden, dtype = given.pop("hidden", 64), given.pop("dtype", torch.bfloat16)
    layer = routed(hidden, activation=given.pop("activation", "silu"))
    with pytest.raises(RuntimeSeamError, match=sentence):
        sparse_method(how, **given).create_weights(layer, 3, 64, hidden, dtype)


def test_rows_that_a_cpu_multiplies_together_share_their_scales(on_a_cpu):
    with pytest.raises(RuntimeSeamError, match="a multiple of 32 rows, and these are for 48"):
        sparse_method(float8([48, 128], keep=16)).create_weights(
            *(routed(64), 3, 64, 64, torch.bfloat16)
        )


def test_without_library_and_compiler_nothing_starts(on_a_gpu, monkeypatch, tmp_path):
    from leanmoe_runtime import native

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(native, "_SHIPPED", tmp_path / "nothing-shipped")
    monkeypatch.setenv("NVCC", "no-such-compiler")
    monkeypatch.setattr(home, "gpu_library", native.gpu_library.__wrapped__)
    with pytest.raises(RuntimeSeamError, match=r"packed\.cu.*install CUDA's compiler.*NVCC"):
        sparse_method(KEPT_16).create_weights(routed(64), 3, 64, 64, torch.bfloat16)
