"""Write the table of docs/sizing.md: what ten well-known models take on GPUs of 80 and 141 GB.

``python docs/tools/sizing.py`` builds each model from its published configuration without any
weight (names and shapes by transformers, an empty file behind the headers) and asks
``leanmoe plan --fit``.
"""

from __future__ import annotations

import io
import json
import tempfile
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.core_model_loading import revert_weight_conversion

from leanmoe.cli import main as leanmoe

PAGE = Path(__file__).parents[1] / "sizing.md"
BEGIN, END = "<!-- table: docs/tools/sizing.py -->", "<!-- end of the table -->"
DEVICES = (80, 141)
_SHARE = 0.92  # of a device, which vLLM takes
Shapes = dict[str, tuple[str, tuple[int, ...]]]
_BLOCK, _MX = 128, 32


@dataclass(frozen=True)
class Model:
    """A released model: its name and the keys of its ``config.json`` that decide its size."""

    name: str
    config: dict[str, Any]
    stored: str = "bf16"


def _config(kind: str, layers: int, hidden: int, heads: tuple[int, int], **more: Any) -> Any:
    query, key_value = heads
    return {
        "model_type": kind,
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "num_attention_heads": query,
        "num_key_value_heads": key_value,
        **more,
    }


def _qwen(kind: str, layers: int, hidden: int, heads: tuple[int, int], **more: Any) -> Any:
    return _config(kind, layers, hidden, heads, vocab_size=151936, decoder_sparse_step=1, **more)


def _deepseek(kind: str, layers: int, hidden: int, heads: int, **more: Any) -> Any:
    latent = {
        "kv_lora_rank": 512,
        "qk_nope_head_dim": 128,
        "qk_rope_head_dim": 64,
        "v_head_dim": 128,
        "moe_layer_freq": 1,
    }
    return _config(kind, layers, hidden, (heads, heads), **latent, **more)


def _gpt_oss(layers: int, experts: int) -> Any:
    return _config(
        *("gpt_oss", layers, 2880, (64, 8)),
        head_dim=64,
        intermediate_size=2880,
        num_local_experts=experts,
        num_experts_per_tok=4,
        vocab_size=201088,
    )


MODELS = (
    Model(
        "Mixtral-8x7B",
        _config(
            *("mixtral", 32, 4096, (32, 8)),
            intermediate_size=14336,
            num_local_experts=8,
            num_experts_per_tok=2,
            vocab_size=32000,
        ),
    ),
    Model(
        "Mixtral-8x22B",
        _config(
            *("mixtral", 56, 6144, (48, 8)),
            intermediate_size=16384,
            num_local_experts=8,
            num_experts_per_tok=2,
            vocab_size=32768,
        ),
    ),
    Model(
        "Qwen3-30B-A3B",
        _qwen(
            *("qwen3_moe", 48, 2048, (32, 4)),
            head_dim=128,
            intermediate_size=6144,
            moe_intermediate_size=768,
            num_experts=128,
            num_experts_per_tok=8,
        ),
    ),
    Model(
        "Qwen3-235B-A22B",
        _qwen(
            *("qwen3_moe", 94, 4096, (64, 4)),
            head_dim=128,
            intermediate_size=12288,
            moe_intermediate_size=1536,
            num_experts=128,
            num_experts_per_tok=8,
        ),
    ),
    Model(
        "Qwen1.5-MoE-A2.7B",
        _qwen(
            *("qwen2_moe", 24, 2048, (16, 16)),
            intermediate_size=5632,
            moe_intermediate_size=1408,
            shared_expert_intermediate_size=5632,
            num_experts=60,
            num_experts_per_tok=4,
        ),
    ),
    Model(
        "OLMoE-1B-7B",
        _config(
            *("olmoe", 16, 2048, (16, 16)),
            intermediate_size=1024,
            num_experts=64,
            num_experts_per_tok=8,
            vocab_size=50304,
        ),
    ),
    Model(
        "Phi-3.5-MoE",
        _config(
            *("phimoe", 32, 4096, (32, 8)),
            intermediate_size=6400,
            num_local_experts=16,
            num_experts_per_tok=2,
            vocab_size=32064,
            attention_bias=True,
            lm_head_bias=True,
        ),
    ),
    Model(
        "DeepSeek-V2-Lite",
        _deepseek(
            *("deepseek_v2", 27, 2048, 16),
            q_lora_rank=None,
            intermediate_size=10944,
            moe_intermediate_size=1408,
            n_routed_experts=64,
            n_shared_experts=2,
            num_experts_per_tok=6,
            first_k_dense_replace=1,
            vocab_size=102400,
            topk_method="greedy",
            n_group=1,
            topk_group=1,
            scoring_func="softmax",
        ),
    ),
    Model(
        "DeepSeek-V3",
        _deepseek(
            *("deepseek_v3", 61, 7168, 128),
            q_lora_rank=1536,
            intermediate_size=18432,
            moe_intermediate_size=2048,
            n_routed_experts=256,
            n_shared_experts=1,
            num_experts_per_tok=8,
            first_k_dense_replace=3,
            n_group=8,
            topk_group=4,
            vocab_size=129280,
            scoring_func="sigmoid",
            topk_method="noaux_tc",
            norm_topk_prob=True,
        ),
        stored="float8",
    ),
    Model("gpt-oss-120b", _gpt_oss(36, 128), stored="mxfp4"),
)


def shapes_of(model: Model) -> tuple[dict[str, Any], Shapes]:
    """The configuration and every tensor's number format and shape, as the release has them."""
    settings = dict(model.config)
    config = AutoConfig.for_model(settings.pop("model_type"), **settings)
    with torch.device("meta"):
        built = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    saved = revert_weight_conversion(built, built.state_dict())
    plain = {name: ("BF16", tuple(one.shape)) for name, one in sorted(saved.items())}
    content = {
        **config.to_dict(),
        **model.config,
        "architectures": [type(built).__name__],
        "dtype": "bfloat16",
    }
    if model.stored == "float8":
        content["quantization_config"] = {
            "quant_method": "fp8",
            "fmt": "e4m3",
            "activation_scheme": "dynamic",
            "weight_block_size": [_BLOCK, _BLOCK],
        }
        return content, dict(_float8(plain))
    if model.stored == "mxfp4":
        content["quantization_config"] = {"quant_method": "mxfp4"}
        return content, dict(_mxfp4(plain))
    return content, plain


def _float8(plain: Shapes) -> Iterator[tuple[str, tuple[str, tuple[int, ...]]]]:
    """Linear layers in 8 bits with a scale for each block of 128 x 128."""
    for name, (kind, shape) in plain.items():
        if "_proj" not in name:
            yield name, (kind, shape)
            continue
        yield name, ("F8_E4M3", shape)
        blocks = tuple(-(-width // _BLOCK) for width in shape)
        yield f"{name}_scale_inv", ("F32", blocks)


def _mxfp4(plain: Shapes) -> Iterator[tuple[str, tuple[str, tuple[int, ...]]]]:
    """Experts in 4 bits with a scale for each 32 weights of a row, rows of outputs."""
    for name, (kind, shape) in plain.items():
        if not name.endswith(("gate_up_proj", "down_proj")):
            yield name, (kind, shape)
            continue
        experts, inputs, outputs = shape
        groups = (experts, outputs, inputs // _MX)
        yield f"{name}_blocks", ("U8", (*groups, _MX // 2))
        yield f"{name}_scales", ("U8", groups)


def write_headers(model: Model, folder: Path) -> None:
    """A checkpoint of ``model`` whose weights are a hole in a file."""
    content, shapes = shapes_of(model)
    (folder / "config.json").write_text(json.dumps(content))
    header, end = {}, 0
    for name, (kind, shape) in shapes.items():
        begin, end = end, end + _bytes(kind, shape)
        header[name] = {"dtype": kind, "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)


def _bytes(kind: str, shape: tuple[int, ...]) -> int:
    width = {"BF16": 2, "F32": 4}.get(kind, 1)
    return width * torch.Size(shape).numel()


def plan(folder: Path, *options: str) -> dict[str, Any] | None:
    """What ``leanmoe plan`` prints; ``None`` where nothing fits."""
    said, refused = io.StringIO(), io.StringIO()
    with redirect_stdout(said), redirect_stderr(refused):
        code = leanmoe(["plan", str(folder), "--tflops", "1", *options, "--json"])
    if code == 2 and "cannot be made to fit" in refused.getvalue():
        return None
    if code:
        raise SystemExit(refused.getvalue())
    return dict(json.loads(said.getvalue()))


def _gpus(row: dict[str, Any], gigabytes: int) -> str:
    """The smallest tensor-parallel size whose parts fit, of those that the heads allow."""
    need = row["serve"]["total_bytes"] / (_SHARE * gigabytes * 1e9)
    return str(next((size for size in row["tensor_parallel"] if size >= need), "none"))


def row_of(model: Model) -> str:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_headers(model, folder)
        found = plan(folder) or {}
        fits = [_largest(plan(folder, "--fit", f"{size}GB")) for size in DEVICES]
    rows = [_kept(found, share) for share in (1.0, 0.75, 0.5)]
    cells = [
        f"{model.name}, {model.stored}",
        f"{found['weight_bytes'] / 1e9:,.0f} GB",
        f"{found['kv_bytes_per_1k_tokens'] / 1e6:,.0f} MB",
        *(" / ".join(_gpus(row, size) for row in rows) for size in DEVICES),
        *fits,
    ]
    return f"| {' | '.join(cells)} |"


def _kept(found: dict[str, Any], share: float) -> dict[str, Any]:
    """The row of a share of the experts; of the whole model, the weights added to the rest."""
    experts = found["n_routed_experts"]
    cut = [one for one in found["rows"] if "keep" in one["budget"]]
    if share < 1.0:
        return min(cut, key=lambda one: abs(one["budget"]["keep"] - share * experts))
    serve = cut[0]["serve"]
    whole = serve["total_bytes"] - serve["weights_bytes"] + found["weight_bytes"]
    return {"serve": {"total_bytes": whole}, "tensor_parallel": found["tensor_parallel"]}


def _largest(found: dict[str, Any] | None) -> str:
    if found is None:
        return "no"
    rows = found["rows"]
    if any(row["kind"] == "as it is" for row in rows):
        return "whole"
    keep = [row["budget"]["keep"] for row in rows if "keep" in row["budget"]]
    return f"{max(keep)} of {found['n_routed_experts']}" if keep else "no"


def main() -> None:
    """Write the table into the page."""
    page = PAGE.read_text()
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    head = [
        "| model, as released | weights | KV per 1,000 tokens "
        + "".join(f"| GPUs of {size} GB: whole / ¾ / ½ of the experts " for size in DEVICES)
        + "".join(f"| kept on one of {size} GB " for size in DEVICES)
        + "|",
        "|" + "---|" * 7,
    ]
    table = "\n".join([*head, *map(row_of, MODELS)])
    PAGE.write_text(f"{before}{BEGIN}\n{table}\n{END}{after}")


if __name__ == "__main__":
    main()
