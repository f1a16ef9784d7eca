"""A tiny random Mixtral checkpoint that vLLM loads on a CPU: the real format, a few megabytes.

The answers are noise; routing, skipping, counting, streaming and stopping are real.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from leanmoe.curve import CurvePoint, QualityCurve
from leanmoe.files.digest import file_digest
from leanmoe.manifest import Manifest, write_manifest

_WORDS = (
    "the a of to and in is was for on that with as it at by from are this be or an not have one "
    "you all were when can said there use each which she do how their if will up other about out "
    "many then them these so some her would make like him into time has look two more write go "
    "see number no way could people my than first water been call who oil its now find long down "
    "day did get come made may part what capital france paris expert token model answer question"
)
_SPECIAL = ["<s>", "</s>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>"]
_CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
_HEADS, _KV_HEADS, MAX_LENGTH = 4, 2, 2048


def write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=2), encoding="utf-8")


def write_tokenizer(path: Path) -> int:
    """Write a byte-level BPE tokenizer with a chat template; return its size."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=512,
        special_tokens=_SPECIAL,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator([_WORDS] * 4, trainer)
    tokenizer.save(str(path / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "pad_token": "</s>",
        "model_max_length": MAX_LENGTH,
        "chat_template": _CHAT_TEMPLATE,
    }
    write_json(path / "tokenizer_config.json", settings)
    return int(tokenizer.get_vocab_size())


def _tensor_shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    hidden, ffn = config["hidden_size"], config["intermediate_size"]
    kv = config["head_dim"] * _KV_HEADS
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (config["vocab_size"], hidden),
        "lm_head.weight": (config["vocab_size"], hidden),
        "model.norm.weight": (hidden,),
    }
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}"
        shapes |= {
            f"{prefix}.input_layernorm.weight": (hidden,),
            f"{prefix}.post_attention_layernorm.weight": (hidden,),
            f"{prefix}.self_attn.q_proj.weight": (hidden, hidden),
            f"{prefix}.self_attn.k_proj.weight": (kv, hidden),
            f"{prefix}.self_attn.v_proj.weight": (kv, hidden),
            f"{prefix}.self_attn.o_proj.weight": (hidden, hidden),
            f"{prefix}.block_sparse_moe.gate.weight": (config["num_local_experts"], hidden),
        }
        for expert in range(config["num_local_experts"]):
            name = f"{prefix}.block_sparse_moe.experts.{expert}"
            shapes |= {
                f"{name}.w1.weight": (ffn, hidden),
                f"{name}.w2.weight": (hidden, ffn),
                f"{name}.w3.weight": (ffn, hidden),
            }
    return shapes


def write_weights(path: Path, shapes: dict[str, tuple[int, ...]], dtype: str, seed: int) -> None:
    """Write random tensors; norms are ones, biases small."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, shape in shapes.items():
        # Wider than usual initialisation, so that a skipped expert changes the next tokens.
        drawn = torch.randn(shape, generator=generator) * (1.6 / shape[-1] ** 0.5)
        if len(shape) == 1:
            drawn = 0.1 * drawn if name.endswith("bias") else torch.ones(shape)
        tensors[name] = drawn.to(getattr(torch, dtype))
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})


def write_tiny_mixtral(
    path: Path,
    *,
    layers: int = 4,
    experts: int = 8,
    top_k: int = 2,
    hidden: int = 128,
    ffn: int = 256,
    seed: int = 0,
    dtype: str = "bfloat16",
) -> Path:
    """Write a random Mixtral checkpoint with tokenizer and chat template; return ``path``."""
    path.mkdir(parents=True, exist_ok=True)
    config = {
        "architectures": ["MixtralForCausalLM"],
        "model_type": "mixtral",
        "vocab_size": -(-write_tokenizer(path) // 64) * 64,
        "hidden_size": hidden,
        "intermediate_size": ffn,
        "num_hidden_layers": layers,
        "num_attention_heads": _HEADS,
        "num_key_value_heads": _KV_HEADS,
        "head_dim": hidden // _HEADS,
        "num_local_experts": experts,
        "num_experts_per_tok": top_k,
        "max_position_embeddings": MAX_LENGTH,
        "rms_norm_eps": 1e-5,
        "rope_theta": 1e6,
        "hidden_act": "silu",
        "sliding_window": None,
        "tie_word_embeddings": False,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": 1,
        "torch_dtype": dtype,
    }
    write_json(path / "config.json", config)
    write_weights(path, _tensor_shapes(config), dtype, seed)
    return path


def write_tiny_curve(path: Path, *, level_half_beta: float = 0.6) -> Path:
    """Give the checkpoint at ``path`` a manifest with a made-up quality curve; return ``path``.

    Three points: exact, 0.5 (KLD bound 0.04) and top-1 only (KLD bound 0.4).
    """
    config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    layers = range(config["num_hidden_layers"])

    def point(level: float, beta: float, skip_rate: float, kld: float) -> CurvePoint:
        return CurvePoint(
            level=level,
            betas=dict.fromkeys(layers, beta),
            skip_rate=skip_rate,
            kld=kld,
            kld_upper=2 * kld,
            top1_agreement=1.0 - kld,
            perplexity=10.0 + kld,
        )

    curve = QualityCurve(
        rule="made up for tests",
        data="none",
        calibration="none",
        calibration_digest="sha256:none",
        tokens=1,
        median_betas=dict.fromkeys(layers, level_half_beta),
        points=[
            point(0.0, 0.0, 0.0, 0.0),
            point(0.5, level_half_beta, 0.25, 0.02),
            point(1.0, 1.0, 0.5, 0.2),
        ],
    )
    files = {name: file_digest(path / name) for name in ("config.json", "model.safetensors")}
    write_manifest(path, Manifest(family="mixtral", method="none", files=files, curve=curve))
    return path
