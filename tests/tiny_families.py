"""A tiny random checkpoint of every family, tensors named and shaped as in the real files.

The names are written out here, not taken from the families under test; a unit test compares
them with what transformers saves. N layers 3, 8 experts, a few megabytes at most.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.tiny import MAX_LENGTH, write_json, write_tiny_mixtral, write_tokenizer, write_weights

Config = dict[str, Any]
Shapes = dict[str, tuple[int, ...]]

LAYERS, EXPERTS, HIDDEN, HEADS, KV_HEADS, EXPERT_FFN, DENSE_FFN = 3, 8, 128, 4, 2, 64, 96
_HEAD = HIDDEN // HEADS
_COMMON: Config = {
    "hidden_size": HIDDEN,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
    "max_position_embeddings": MAX_LENGTH,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1e4,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 1,
}
# vLLM's CPU kernel for latent attention computes these two widths only.
_LATENT: Config = {
    "num_key_value_heads": HEADS,
    "kv_lora_rank": 512,
    "qk_rope_head_dim": 64,
    "qk_nope_head_dim": 32,
    "v_head_dim": 32,
}
_DEEPSEEK: Config = {
    "n_routed_experts": EXPERTS,
    "n_shared_experts": 2,
    "intermediate_size": DENSE_FFN,
    "moe_intermediate_size": EXPERT_FFN,
    "first_k_dense_replace": 1,
    "moe_layer_freq": 1,
}
_QWEN: Config = {
    "num_experts": EXPERTS,
    "intermediate_size": DENSE_FFN,
    "moe_intermediate_size": EXPERT_FFN,
    "decoder_sparse_step": 1,
}

CONFIGS: dict[str, Config] = {
    "qwen2_moe": {
        **_QWEN,
        "architectures": ["Qwen2MoeForCausalLM"],
        "num_experts_per_tok": 4,
        "shared_expert_intermediate_size": 2 * EXPERT_FFN,
        "mlp_only_layers": [1],
    },
    "qwen3_moe": {
        **_QWEN,
        "architectures": ["Qwen3MoeForCausalLM"],
        "num_experts_per_tok": 3,
        "norm_topk_prob": True,
        "head_dim": 2 * _HEAD,
        "mlp_only_layers": [],
    },
    "olmoe": {
        "architectures": ["OlmoeForCausalLM"],
        "num_experts": EXPERTS,
        "num_experts_per_tok": 4,
        "intermediate_size": EXPERT_FFN,
        "num_key_value_heads": HEADS,
        # Which vLLM does not read.
        "norm_topk_prob": True,
    },
    "deepseek": {
        **_DEEPSEEK,
        "architectures": ["DeepseekForCausalLM"],
        "num_experts_per_tok": 3,
        "num_key_value_heads": HEADS,
        "norm_topk_prob": False,
        "scoring_func": "softmax",
        "auto_map": {"AutoConfig": "configuration_deepseek.DeepseekConfig"},
    },
    "deepseek_v2": {
        **_DEEPSEEK,
        **_LATENT,
        "architectures": ["DeepseekV2ForCausalLM"],
        "num_experts_per_tok": 3,
        "q_lora_rank": None,
        "n_group": 2,
        "topk_group": 2,
        "topk_method": "group_limited_greedy",
        "norm_topk_prob": False,
        "scoring_func": "softmax",
        "routed_scaling_factor": 1.5,
    },
    "deepseek_v3": {
        **_DEEPSEEK,
        **_LATENT,
        "architectures": ["DeepseekV3ForCausalLM"],
        "num_experts_per_tok": 3,
        "n_shared_experts": 1,
        "q_lora_rank": 96,
        "n_group": 2,
        "topk_group": 1,
        "topk_method": "noaux_tc",
        "norm_topk_prob": True,
        "scoring_func": "sigmoid",
        "routed_scaling_factor": 2.5,
        "num_nextn_predict_layers": 1,
    },
    "granitemoe": {
        "architectures": ["GraniteMoeForCausalLM"],
        "num_local_experts": EXPERTS,
        "num_experts_per_tok": 3,
        "intermediate_size": EXPERT_FFN,
        "attention_multiplier": _HEAD**-0.5,
        "embedding_multiplier": 1.0,
        "logits_scaling": 1.0,
        "residual_multiplier": 1.0,
        "tie_word_embeddings": True,
    },
    "phimoe": {
        "architectures": ["PhiMoEForCausalLM"],
        "num_local_experts": EXPERTS,
        "num_experts_per_tok": 2,
        "intermediate_size": EXPERT_FFN,
        "attention_bias": True,
        "lm_head_bias": True,
    },
    "gpt_oss": {
        "architectures": ["GptOssForCausalLM"],
        "num_local_experts": EXPERTS,
        "num_experts_per_tok": 3,
        "intermediate_size": EXPERT_FFN,
        "head_dim": 2 * _HEAD,
        "attention_bias": True,
        "sliding_window": 16,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        "swiglu_limit": 7.0,
        "rope_scaling": {
            "rope_type": "yarn",
            "factor": 32.0,
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "truncate": False,
            "original_max_position_embeddings": 64,
        },
    },
}
FAMILY_NAMES = ("mixtral", *CONFIGS)

_DEEPSEEK_CODE = '''"""The config class that DeepSeek-MoE brings along: transformers has none."""

from transformers import PretrainedConfig


class DeepseekConfig(PretrainedConfig):
    model_type = "deepseek"
'''


def _linear(name: str, rows: int, columns: int, *, bias: bool = False) -> Shapes:
    return {f"{name}.weight": (rows, columns), **({f"{name}.bias": (rows,)} if bias else {})}


def _swiglu(prefix: str, ffn: int, names: tuple[str, str, str]) -> Shapes:
    gate, up, down = names
    return {
        f"{prefix}.{gate}.weight": (ffn, HIDDEN),
        f"{prefix}.{up}.weight": (ffn, HIDDEN),
        f"{prefix}.{down}.weight": (HIDDEN, ffn),
    }


_OWN, _MIXTRAL = ("gate_proj", "up_proj", "down_proj"), ("w1", "w3", "w2")


def _attention(prefix: str, config: Config, *, qkv_bias: bool, o_bias: bool = False) -> Shapes:
    head = config.get("head_dim", _HEAD)
    query, key = HEADS * head, config["num_key_value_heads"] * head
    return {
        **_linear(f"{prefix}.q_proj", query, HIDDEN, bias=qkv_bias),
        **_linear(f"{prefix}.k_proj", key, HIDDEN, bias=qkv_bias),
        **_linear(f"{prefix}.v_proj", key, HIDDEN, bias=qkv_bias),
        **_linear(f"{prefix}.o_proj", HIDDEN, query, bias=o_bias),
    }


def _latent_attention(prefix: str, config: Config) -> Shapes:
    rank, rope = config["kv_lora_rank"], config["qk_rope_head_dim"]
    nope, value, low = config["qk_nope_head_dim"], config["v_head_dim"], config["q_lora_rank"]
    query = HEADS * (nope + rope)
    if low is None:
        shapes = _linear(f"{prefix}.q_proj", query, HIDDEN)
    else:
        shapes = {
            **_linear(f"{prefix}.q_a_proj", low, HIDDEN),
            f"{prefix}.q_a_layernorm.weight": (low,),
            **_linear(f"{prefix}.q_b_proj", query, low),
        }
    return {
        **shapes,
        **_linear(f"{prefix}.kv_a_proj_with_mqa", rank + rope, HIDDEN),
        f"{prefix}.kv_a_layernorm.weight": (rank,),
        **_linear(f"{prefix}.kv_b_proj", HEADS * (nope + value), rank),
        **_linear(f"{prefix}.o_proj", HIDDEN, HEADS * value),
    }


def _experts(prefix: str, names: tuple[str, str, str]) -> Shapes:
    shapes = {f"{prefix}.gate.weight": (EXPERTS, HIDDEN)}
    for expert in range(EXPERTS):
        shapes |= _swiglu(f"{prefix}.experts.{expert}", EXPERT_FFN, names)
    return shapes


def _qwen_layer(prefix: str, layer: int, config: Config) -> Shapes:
    bias, mlp = config["model_type"] == "qwen2_moe", f"{prefix}.mlp"
    shapes = _attention(f"{prefix}.self_attn", config, qkv_bias=bias)
    if not bias:
        shapes |= {f"{prefix}.self_attn.{one}_norm.weight": (config["head_dim"],) for one in "qk"}
    if layer in config["mlp_only_layers"]:
        return shapes | _swiglu(mlp, DENSE_FFN, _OWN)
    if bias:
        shapes |= _swiglu(f"{mlp}.shared_expert", 2 * EXPERT_FFN, _OWN)
        shapes |= _linear(f"{mlp}.shared_expert_gate", 1, HIDDEN)
    return shapes | _experts(mlp, _OWN)


def _olmoe_layer(prefix: str, layer: int, config: Config) -> Shapes:
    attention = f"{prefix}.self_attn"
    norms: Shapes = {f"{attention}.{one}_norm.weight": (HIDDEN,) for one in "qk"}
    return _attention(attention, config, qkv_bias=False) | norms | _experts(f"{prefix}.mlp", _OWN)


def _deepseek_layer(prefix: str, layer: int, config: Config) -> Shapes:
    attention, mlp = f"{prefix}.self_attn", f"{prefix}.mlp"
    latent = "kv_lora_rank" in config
    shapes = (
        _latent_attention(attention, config)
        if latent
        else _attention(attention, config, qkv_bias=False)
    )
    if layer < config["first_k_dense_replace"]:
        return shapes | _swiglu(mlp, DENSE_FFN, _OWN)
    if config.get("topk_method") == "noaux_tc":
        shapes |= {f"{mlp}.gate.e_score_correction_bias": (EXPERTS,)}
    shapes |= _swiglu(f"{mlp}.shared_experts", config["n_shared_experts"] * EXPERT_FFN, _OWN)
    return shapes | _experts(mlp, _OWN)


def _granite_layer(prefix: str, layer: int, config: Config) -> Shapes:
    block = f"{prefix}.block_sparse_moe"
    return {
        **_attention(f"{prefix}.self_attn", config, qkv_bias=False),
        f"{block}.router.layer.weight": (EXPERTS, HIDDEN),
        f"{block}.input_linear.weight": (EXPERTS, 2 * EXPERT_FFN, HIDDEN),
        f"{block}.output_linear.weight": (EXPERTS, HIDDEN, EXPERT_FFN),
    }


def _phimoe_layer(prefix: str, layer: int, config: Config) -> Shapes:
    norms = ("input_layernorm", "post_attention_layernorm")
    return {
        **_attention(f"{prefix}.self_attn", config, qkv_bias=True, o_bias=True),
        **{f"{prefix}.{norm}.bias": (HIDDEN,) for norm in norms},
        **_experts(f"{prefix}.block_sparse_moe", _MIXTRAL),
    }


def _gpt_oss_layer(prefix: str, layer: int, config: Config) -> Shapes:
    attention, mlp = f"{prefix}.self_attn", f"{prefix}.mlp"
    return {
        **_attention(attention, config, qkv_bias=True, o_bias=True),
        f"{attention}.sinks": (HEADS,),
        f"{mlp}.router.weight": (EXPERTS, HIDDEN),
        f"{mlp}.router.bias": (EXPERTS,),
        f"{mlp}.experts.gate_up_proj": (EXPERTS, HIDDEN, 2 * EXPERT_FFN),
        f"{mlp}.experts.gate_up_proj_bias": (EXPERTS, 2 * EXPERT_FFN),
        f"{mlp}.experts.down_proj": (EXPERTS, EXPERT_FFN, HIDDEN),
        f"{mlp}.experts.down_proj_bias": (EXPERTS, HIDDEN),
    }


_LAYER: dict[str, Callable[[str, int, Config], Shapes]] = {
    "qwen2_moe": _qwen_layer,
    "qwen3_moe": _qwen_layer,
    "olmoe": _olmoe_layer,
    "deepseek": _deepseek_layer,
    "deepseek_v2": _deepseek_layer,
    "deepseek_v3": _deepseek_layer,
    "granitemoe": _granite_layer,
    "phimoe": _phimoe_layer,
    "gpt_oss": _gpt_oss_layer,
}


def _layer(layer: int, config: Config) -> Shapes:
    prefix = f"model.layers.{layer}"
    norms = ("input_layernorm", "post_attention_layernorm")
    shapes = _LAYER[config["model_type"]](prefix, layer, config)
    return shapes | {f"{prefix}.{norm}.weight": (HIDDEN,) for norm in norms}


def _prediction_layer(config: Config) -> Shapes:
    """The one after the last, for multi-token prediction, as in DeepSeek-V3's files."""
    prefix, vocabulary = f"model.layers.{LAYERS}", config["vocab_size"]
    return {
        **_layer(LAYERS, config),
        f"{prefix}.embed_tokens.weight": (vocabulary, HIDDEN),
        f"{prefix}.enorm.weight": (HIDDEN,),
        f"{prefix}.hnorm.weight": (HIDDEN,),
        f"{prefix}.eh_proj.weight": (HIDDEN, 2 * HIDDEN),
        f"{prefix}.shared_head.norm.weight": (HIDDEN,),
        f"{prefix}.shared_head.head.weight": (vocabulary, HIDDEN),
    }


def tensor_shapes(config: Config) -> Shapes:
    """Every tensor of a family's files."""
    biased = config.get("lm_head_bias", False)
    shapes: Shapes = {
        "model.embed_tokens.weight": (config["vocab_size"], HIDDEN),
        "model.norm.weight": (HIDDEN,),
    }
    if biased:
        shapes["model.norm.bias"] = (HIDDEN,)
    if not config["tie_word_embeddings"]:
        shapes |= _linear("lm_head", config["vocab_size"], HIDDEN, bias=biased)
    for layer in range(LAYERS):
        shapes |= _layer(layer, config)
    if config.get("num_nextn_predict_layers"):
        shapes |= _prediction_layer(config)
    return shapes


def tiny_config(name: str, vocabulary: int = 512, dtype: str = "bfloat16") -> Config:
    """The ``config.json`` of a tiny model of the family."""
    own = {"model_type": name, "vocab_size": vocabulary, "torch_dtype": dtype}
    return {**_COMMON, **CONFIGS[name], **own}


def write_tiny(path: Path, name: str, *, seed: int = 0, dtype: str = "bfloat16") -> Path:
    """Write a random checkpoint of the family with tokenizer and chat template; return ``path``."""
    if name == "mixtral":
        return write_tiny_mixtral(path, layers=LAYERS, experts=EXPERTS, hidden=HIDDEN, dtype=dtype)
    path.mkdir(parents=True, exist_ok=True)
    vocabulary = -(-write_tokenizer(path) // 64) * 64
    config = tiny_config(name, vocabulary, dtype)
    write_json(path / "config.json", config)
    if name == "deepseek":
        (path / "configuration_deepseek.py").write_text(_DEEPSEEK_CODE, encoding="utf-8")
    write_weights(path, tensor_shapes(config), dtype, seed)
    return path
