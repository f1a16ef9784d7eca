"""``--data self:``: text that the model itself writes, sampled at temperature 1.

What a model is used for is what it writes: answers, and the reasoning that its chat template leads
it to, which no shipped text has (calibration on a model's own reasoning: RAC, arXiv 2509.12464).
The whole model is in memory meanwhile.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import cycle, islice

import torch

from leanmoe.checkpoint import Checkpoint
from leanmoe.errors import DataError
from leanmoe_pruning.checkpoints.opening import OpenedModel, open_runnable_model
from leanmoe_pruning.data.builtin import Split
from leanmoe_pruning.data.files import cut_windows, prompt_ids
from leanmoe_pruning.data.spec import Item
from leanmoe_pruning.evaluation.generation import continuations, sampled
from leanmoe_pruning.evaluation.resident import ResidentModel
from leanmoe_pruning.forward.stream import DecoderStream
from leanmoe_pruning.progress import progress

_AT_ONCE, _MOST_ROUNDS = 32, 64
# A document ends by itself or after so many windows.
_WINDOWS = 2


def own_windows(
    checkpoint: Checkpoint, item: Item, split: Split, window: int, seed: int
) -> torch.Tensor:
    """``item.count`` windows ``[N, window]``; other ones for each seed and each split."""
    opened = checkpoint
    if not isinstance(opened, OpenedModel):
        opened = open_runnable_model(checkpoint.path)
    stream = DecoderStream(opened)
    with progress("loading the model", stream.n_layers) as tick:
        model = ResidentModel.load(stream, tick)
    assert item.count is not None, "the specification was checked"
    documents = _documents(model, item, item.count * window, window, _first_seed(split, seed))
    return cut_windows(documents, model.tokenizer.separator, window, item.name)[: item.count]


def _first_seed(split: Split, seed: int) -> int:
    return (2 * seed + (split == "heldout")) * _MOST_ROUNDS


def _documents(
    model: ResidentModel, item: Item, needed: int, window: int, seed: int
) -> Iterator[list[int]]:
    """Prompts with what the model wrote after them, until there are ``needed`` tokens."""
    given = cycle(_prompts(model, item))
    written = 0
    for turn in range(_MOST_ROUNDS):
        count = min(_AT_ONCE, -(-(needed - written) // window))
        batch = list(islice(given, count))
        for prompt, answer in zip(batch, _answers(model, batch, window, seed + turn), strict=True):
            document = [*prompt, *answer]
            written += len(document)
            yield document
        if written >= needed:
            return
    raise DataError(
        f"--data {item.text!r}: the model wrote only {written} tokens in {_MOST_ROUNDS} tries, "
        f"{needed} are needed; give prompts that it answers at length, or fewer windows"
    )


def _prompts(model: ResidentModel, item: Item) -> list[list[int]]:
    """What is to be answered; nothing, once, where no file was named."""
    if item.path is None:
        return [[]]
    prompts = [prompt for prompt in prompt_ids(item.path, model.tokenizer) if prompt]
    if not prompts:
        raise DataError(
            f"--data {item.text!r}: {item.path} holds no prompt; add some, or give "
            f"self:{item.count} for text that begins from nothing"
        )
    return prompts


def _answers(
    model: ResidentModel, prompts: list[list[int]], window: int, seed: int
) -> list[list[int]]:
    """What the model writes, without the end token where one stands between documents anyway."""
    most = min(_WINDOWS * window, model.max_length - 1)
    started = [prompt or [model.start_id] for prompt in prompts]
    pick = sampled(torch.Generator().manual_seed(seed))
    with progress("writing text", len(prompts)) as tick:
        found = continuations(model, started, most, None, pick, tick)
    end = model.tokenizer.separator
    return [ids[:-1] if end and ids[-1:] == end else ids for ids in found]
