"""Ask the dense parent: its good answers are general training text of our own."""

from __future__ import annotations

import json
from typing import Any

import torch
from tokenizers import Tokenizer
from transformers import LlamaConfig, LlamaForCausalLM

from leanmoe_reference.dense import dense_tensors
from leanmoe_reference.gguf_base import GGUFBase
from leanmoe_reference.tokenizer import tokenizer_json
from leanmoe_reference.training.own import Turn, chat_text, good_answer, parent_prompts

END = 2
MAX_NEW = 96
BATCH = 43


def base_tokenizer(base: GGUFBase) -> Tokenizer:
    """The base model's tokenizer, in memory."""
    return Tokenizer.from_str(json.dumps(tokenizer_json(base)))


def dense_model(base: GGUFBase) -> Any:
    """The dense parent as a transformers model, bfloat16."""
    field = base.field
    config = LlamaConfig(
        vocab_size=field("llama.vocab_size"),
        hidden_size=field("llama.embedding_length"),
        intermediate_size=field("llama.feed_forward_length"),
        num_hidden_layers=field("llama.block_count"),
        num_attention_heads=field("llama.attention.head_count"),
        num_key_value_heads=field("llama.attention.head_count_kv"),
        rms_norm_eps=1e-5,
        rope_theta=field("llama.rope.freq_base"),
        max_position_embeddings=field("llama.context_length"),
        tie_word_embeddings=True,
        pad_token_id=END,
        eos_token_id=END,
        bos_token_id=1,
    )
    model = LlamaForCausalLM(config).bfloat16().eval()
    model.load_state_dict(dict(dense_tensors(base)), strict=False)
    return model


def answers(base: GGUFBase) -> list[Turn]:
    """Greedy answers of the dense parent to our prompts, the bad ones left out."""
    model, tokenizer = dense_model(base), base_tokenizer(base)
    prompts = parent_prompts()
    kept = []
    for start in range(0, len(prompts), BATCH):
        questions = prompts[start : start + BATCH]
        for question, (text, ended) in zip(
            questions, _ask(model, tokenizer, questions), strict=True
        ):
            if good_answer(text, ended):
                kept.append((question, text))
    return kept


@torch.no_grad()
def _ask(model: Any, tokenizer: Tokenizer, questions: list[str]) -> list[tuple[str, bool]]:
    rows = [
        tokenizer.encode(
            chat_text([]) + f"<|im_start|>user\n{one}<|im_end|>\n<|im_start|>assistant\n"
        ).ids
        for one in questions
    ]
    width = max(map(len, rows))
    ids = torch.tensor([[END] * (width - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    out = model.generate(
        ids, attention_mask=mask, max_new_tokens=MAX_NEW, do_sample=False, pad_token_id=END
    )
    found = []
    for row in out[:, width:].tolist():
        ended = END in row
        text = tokenizer.decode(row[: row.index(END)] if ended else row)
        found.append((text.strip(), ended))
    return found
