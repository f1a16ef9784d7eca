"""The SmolLM2 tokenizer as Hugging Face files, written from the GGUF's metadata alone.

Written by hand so that the files are the same bytes whatever libraries are installed.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from leanmoe_reference.gguf_base import GGUFBase

_CONTROL = 3
_BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}


def _added(index: int, content: str) -> dict[str, Any]:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": index, "content": content, **flags, "special": True}


def tokenizer_json(base: GGUFBase) -> dict[str, Any]:
    """The content of ``tokenizer.json``: byte-level BPE as the base model was trained with."""
    tokens = base.field("tokenizer.ggml.tokens")
    types = base.field("tokenizer.ggml.token_type")
    special = [i for i, kind in enumerate(types) if kind == _CONTROL]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [_added(i, tokens[i]) for i in special],
        "normalizer": None,
        "pre_tokenizer": {**_BYTE_LEVEL, "use_regex": True},
        "post_processor": None,
        "decoder": {**_BYTE_LEVEL, "add_prefix_space": True, "use_regex": True},
        "model": _bpe(tokens, base.field("tokenizer.ggml.merges")),
    }


def _bpe(tokens: list[str], merges: list[str]) -> dict[str, Any]:
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": "",
        "end_of_word_suffix": "",
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": False,
        "vocab": {token: index for index, token in enumerate(tokens)},
        "merges": [merge.split(" ", 1) for merge in merges],
    }


def tokenizer_config(base: GGUFBase) -> dict[str, Any]:
    """The content of ``tokenizer_config.json``, chat template included."""
    tokens = base.field("tokenizer.ggml.tokens")
    names = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": base.field("llama.context_length"),
        "clean_up_tokenization_spaces": False,
        "add_bos_token": False,
        **{
            f"{ours}_token": tokens[base.field(f"tokenizer.ggml.{theirs}_token_id")]
            for ours, theirs in names.items()
        },
        "chat_template": base.field("tokenizer.chat_template"),
    }


def write_tokenizer(base: GGUFBase, directory: Path) -> None:
    """Write ``tokenizer.json``, ``tokenizer_config.json`` and ``chat_template.jinja``."""
    config = tokenizer_config(base)
    text = json.dumps(tokenizer_json(base), ensure_ascii=False)
    (directory / "tokenizer.json").write_text(text, encoding="utf-8")
    text = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
    (directory / "tokenizer_config.json").write_text(text, encoding="utf-8")
    (directory / "chat_template.jinja").write_text(config["chat_template"], encoding="utf-8")
