"""Rebuild the reference MoE, bit for bit.

Eight experts per layer are the parent's feed-forward layer plus a low-rank change
each: ``W = bf16(bf16(base) + 2 B A)``, multiplied and added in float32 and rounded
once. Rank 8 and bfloat16 factors make every product exact in float32, so the
result does not depend on whether a CPU fuses multiply and add.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from leanmoe.errors import InputError, OutputError
from leanmoe.provenance import bytes_digest, file_digest
from leanmoe_pruning.checkpoints.shards import (
    ShardReader,
    TensorInfo,
    tensor_bytes,
    write_index,
    write_shard,
)
from leanmoe_pruning.progress import Tick
from leanmoe_pruning.reference.gguf_base import GGUFBase
from leanmoe_pruning.reference.tokenizer import write_tokenizer

N_EXPERTS = 8
TOP_K = 2
SCALE = 2.0
N_SHARDS = 3
ADAPTERS = "adapters.safetensors"
ROUTERS = "routers.safetensors"
ARTEFACT_DIGESTS = {
    ADAPTERS: "sha256:c690787024635b7733e165e5b9ab91cd1ba6dc3033fee192253f4f80611a0a3f",
    ROUTERS: "sha256:d2692b78608ab7fe522977f05ae6344a165da6ce088798f05ae254c6935e9419",
}
TENSORS_DIGEST = "sha256:ef3f827444d471b39a6867c102852081329a997d144b494cf1c95dae0ce67c8b"

_HERE = Path(__file__).parent
_FFN = (("w1", "gate"), ("w2", "down"), ("w3", "up"))
_COPIED = (
    ("input_layernorm", "attn_norm"),
    ("post_attention_layernorm", "ffn_norm"),
    ("self_attn.v_proj", "attn_v"),
    ("self_attn.o_proj", "attn_output"),
)


def check_artefacts(directory: Path = _HERE) -> None:
    """Raise unless the low-rank changes and the routers are the files the digest was pinned for."""
    for name, expected in ARTEFACT_DIGESTS.items():
        path = directory / name
        if not path.is_file():
            raise InputError(f"{path} is missing from the installation; install leanmoe again")
        found = file_digest(path)
        if found != expected:
            raise InputError(
                f"{path} is damaged (found {found}, expected {expected}); install leanmoe again"
            )


@dataclass(frozen=True)
class ReferenceModel:
    """The tensors of the reference MoE by checkpoint name, made when asked for."""

    base: GGUFBase
    artefacts: Path = _HERE

    @cached_property
    def _adapters(self) -> Any:
        return safe_open(self.artefacts / ADAPTERS, framework="pt")

    @cached_property
    def _routers(self) -> Any:
        return safe_open(self.artefacts / ROUTERS, framework="pt")

    @property
    def n_layers(self) -> int:
        return int(self.base.field("llama.block_count"))

    def embedding(self) -> Iterator[tuple[str, torch.Tensor]]:
        yield "model.embed_tokens.weight", self.base.tensor("token_embd.weight").bfloat16()
        yield "model.norm.weight", self.base.tensor("output_norm.weight").bfloat16()

    def layer(self, layer: int) -> Iterator[tuple[str, torch.Tensor]]:
        """Every tensor of one decoder layer, bfloat16."""
        ours, theirs = f"model.layers.{layer}", f"blk.{layer}"
        for name, source in _COPIED:
            yield f"{ours}.{name}.weight", self.base.tensor(f"{theirs}.{source}.weight").bfloat16()
        for name, key in (("q", "head_count"), ("k", "head_count_kv")):
            heads = self.base.field(f"llama.attention.{key}")
            weight = self.base.rotary(f"{theirs}.attn_{name}.weight", heads)
            yield f"{ours}.self_attn.{name}_proj.weight", weight.bfloat16()
        gate = self._routers.get_tensor(f"layers.{layer}.gate.weight")
        yield f"{ours}.block_sparse_moe.gate.weight", gate
        for ours_name, projection in _FFN:
            dense = self.base.tensor(f"{theirs}.ffn_{projection}.weight").bfloat16()
            for expert in range(N_EXPERTS):
                name = f"{ours}.block_sparse_moe.experts.{expert}.{ours_name}.weight"
                yield name, self._expert(layer, expert, projection, dense)

    def _expert(
        self, layer: int, expert: int, projection: str, dense: torch.Tensor
    ) -> torch.Tensor:
        if expert == 0:
            return dense
        key = f"layers.{layer}.experts.{expert}.{projection}_proj"
        down = self._adapters.get_tensor(f"{key}.lora_A.weight").float()
        up = self._adapters.get_tensor(f"{key}.lora_B.weight").float()
        changed: torch.Tensor = (dense.float() + SCALE * (up @ down)).bfloat16()
        return changed

    def config(self) -> dict[str, Any]:
        """``config.json`` of the checkpoint."""
        field = self.base.field
        heads = field("llama.attention.head_count")
        return {
            "architectures": ["MixtralForCausalLM"],
            "model_type": "mixtral",
            "attention_dropout": 0.0,
            "bos_token_id": field("tokenizer.ggml.bos_token_id"),
            "eos_token_id": field("tokenizer.ggml.eos_token_id"),
            "pad_token_id": field("tokenizer.ggml.padding_token_id"),
            "head_dim": field("llama.embedding_length") // heads,
            "hidden_act": "silu",
            "hidden_size": field("llama.embedding_length"),
            "initializer_range": 0.02,
            "intermediate_size": field("llama.feed_forward_length"),
            "max_position_embeddings": field("llama.context_length"),
            "num_attention_heads": heads,
            "num_experts_per_tok": TOP_K,
            "num_hidden_layers": self.n_layers,
            "num_key_value_heads": field("llama.attention.head_count_kv"),
            "num_local_experts": N_EXPERTS,
            "output_router_logits": False,
            "rms_norm_eps": 1e-05,
            "rope_theta": field("llama.rope.freq_base"),
            "router_aux_loss_coef": 0.02,
            "sliding_window": None,
            "tie_word_embeddings": True,
            "torch_dtype": "bfloat16",
            "use_cache": True,
            "vocab_size": field("llama.vocab_size"),
        }


def write_reference(model: ReferenceModel, directory: Path, tick: Tick) -> None:
    """Write the whole checkpoint into ``directory``, the index last."""
    write_tokenizer(model.base, directory)
    config = model.config()
    _write_json(directory / "config.json", config)
    ids = {key: config[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    _write_json(directory / "generation_config.json", ids)
    shards = {}
    for number in range(N_SHARDS):
        name = f"model-{number + 1:05d}-of-{N_SHARDS:05d}.safetensors"
        shards[name] = _write_one_shard(model, directory / name, number, tick)
    write_index(directory, shards)


def _write_one_shard(
    model: ReferenceModel, path: Path, number: int, tick: Tick
) -> list[TensorInfo]:
    tensors = dict(model.embedding()) if number == 0 else {}
    per_shard = -(-model.n_layers // N_SHARDS)
    for layer in range(model.n_layers)[number * per_shard : (number + 1) * per_shard]:
        tensors.update(model.layer(layer))
        tick()
    plan = [TensorInfo(name, t.dtype, tuple(t.shape)) for name, t in tensors.items()]
    write_shard(path, plan, tensors.values())
    return plan


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def tensors_digest(directory: Path) -> str:
    """SHA-256 over name, dtype, shape and bytes of every tensor, in the order of their names."""
    reader = ShardReader(directory)

    def parts() -> Iterator[bytes]:
        for name in sorted(reader.names):
            tensor = reader.read(name)
            yield f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode()
            yield tensor_bytes(tensor)

    return bytes_digest(parts())


def check_written(directory: Path) -> str:
    """The digest of what was written; raise ``OutputError`` unless it is the pinned one."""
    found = tensors_digest(directory)
    if found != TENSORS_DIGEST:
        raise OutputError(
            f"the rebuilt reference model differs from the published one (found {found}, expected "
            f"{TENSORS_DIGEST}): the disk or the arithmetic of this machine is at fault; "
            "nothing was kept"
        )
    return found
