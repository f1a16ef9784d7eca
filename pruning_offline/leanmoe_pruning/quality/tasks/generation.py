"""Greedy continuations, many prompts at once.

Each step runs the rows whole again: one way through a layer for every family is worth more
here than a cache of keys and values, since answers are a few tokens long. A row that has
ended is not run any more. N rows, T tokens, D model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from leanmoe_pruning.progress import Tick, no_tick
from leanmoe_pruning.quality.resident import ResidentModel
from leanmoe_pruning.quality.tasks.likelihood import BATCH_TOKENS, padded

# Given a row's number and its text so far, whether nothing more is needed.
Done = Callable[[int, str], bool]


@torch.inference_mode()
def generate(
    model: ResidentModel,
    prompts: Sequence[Sequence[int]],
    max_tokens: int,
    done: Done,
    tick: Tick = no_tick,
) -> list[str]:
    """The text after each prompt, until ``done``, an end token or ``max_tokens``.

    The likeliest token is taken each time, the lowest id among equals; ``tick`` is called once
    per prompt.
    """
    found: dict[int, list[int]] = {}
    order = sorted(range(len(prompts)), key=lambda which: (-len(prompts[which]), which))
    while order:
        length = len(prompts[order[0]]) + max_tokens
        count = max(1, BATCH_TOKENS // length)
        batch, order = order[:count], order[count:]
        found |= _batch(model, {which: prompts[which] for which in batch}, max_tokens, done, tick)
    return [model.tokenizer.decode(found[which]) for which in range(len(prompts))]


def _batch(
    model: ResidentModel,
    prompts: dict[int, Sequence[int]],
    max_tokens: int,
    done: Done,
    tick: Tick,
) -> dict[int, list[int]]:
    new: dict[int, list[int]] = {which: [] for which in prompts}
    alive = list(prompts)
    for _ in range(max_tokens):
        if not alive:
            break
        rows = [[*prompts[which], *new[which]][-model.max_length :] for which in alive]
        for which, best in zip(alive, _next(model, rows), strict=True):
            new[which].append(best)
        alive = [which for which in alive if not _ended(model, which, new[which], done)]
    for _ in prompts:
        tick()
    return new


def _ended(model: ResidentModel, which: int, ids: list[int], done: Done) -> bool:
    return ids[-1] in model.end_ids or done(which, model.tokenizer.decode(ids))


def _next(model: ResidentModel, rows: Sequence[Sequence[int]]) -> list[int]:
    """The likeliest token after each row."""
    last = torch.tensor([len(row) - 1 for row in rows])
    hidden_NTD = model.final_hidden(padded(rows))
    log_p_NV = model.log_probabilities(hidden_NTD[torch.arange(len(rows)), last])
    best: list[int] = log_p_NV.argmax(-1).tolist()
    return best
