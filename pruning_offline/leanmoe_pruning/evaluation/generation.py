"""Continuations of many prompts at once, with keys and values kept in transformers' cache.

N rows, T tokens, S tokens kept, D model, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from leanmoe_pruning.evaluation.resident import ResidentModel
from leanmoe_pruning.forward.passes import CHUNK_TOKENS
from leanmoe_pruning.forward.placing import Placing
from leanmoe_pruning.progress import Tick, no_tick

# Given a row's number and its text so far, whether nothing more is needed.
Done = Callable[[int, str], bool]
# The next token of each row, from its log probabilities ``[N, V]``.
Pick = Callable[[torch.Tensor], list[int]]


def likeliest(log_probabilities_NV: torch.Tensor) -> list[int]:
    """Greedy: the lowest id among equals."""
    found: list[int] = log_probabilities_NV.argmax(-1).tolist()
    return found


def sampled(generator: torch.Generator, temperature: float = 1.0) -> Pick:
    """From the model's own distribution at a temperature above 0."""

    def pick(log_probabilities_NV: torch.Tensor) -> list[int]:
        # At 1 not normalised again, which could change a last bit and with it a token.
        own = temperature == 1.0
        p_NV = (
            log_probabilities_NV.exp() if own else (log_probabilities_NV / temperature).softmax(-1)
        )
        drawn_N1 = torch.multinomial(p_NV, 1, generator=generator)
        found: list[int] = drawn_N1[:, 0].tolist()
        return found

    return pick


@torch.inference_mode()
def generate(
    model: ResidentModel,
    prompts: Sequence[Sequence[int]],
    max_tokens: int,
    done: Done,
    tick: Tick = no_tick,
) -> list[str]:
    """The text after each prompt, until ``done``, an end token or ``max_tokens``.

    The likeliest token is taken each time. ``tick`` is called once per prompt.
    """
    found = continuations(model, prompts, max_tokens, done, likeliest, tick)
    return [model.tokenizer.decode(ids) for ids in found]


@torch.inference_mode()
def continuations(
    model: ResidentModel,
    prompts: Sequence[Sequence[int]],
    max_tokens: int,
    done: Done | None,
    pick: Pick,
    tick: Tick = no_tick,
) -> list[list[int]]:
    """The token ids after each prompt, an end token among them.

    A prompt that leaves the model no room loses its beginning.
    """
    room = max(1, model.max_length - max_tokens)
    rows = [list(prompt)[-room:] for prompt in prompts]
    found: dict[int, list[int]] = {}
    order = sorted(range(len(rows)), key=lambda which: (-len(rows[which]), which))
    while order:
        count = max(1, CHUNK_TOKENS // len(rows[order[0]]))
        batch, order = order[:count], order[count:]
        for which, new in _batch(
            model, {which: rows[which] for which in batch}, max_tokens, done, pick
        ):
            found[which] = new
            tick()
    return [found[which] for which in range(len(rows))]


def _batch(
    model: ResidentModel,
    prompts: dict[int, list[int]],
    max_tokens: int,
    done: Done | None,
    pick: Pick,
) -> Iterator[tuple[int, list[int]]]:
    """(Number, new tokens) of each row as it ends."""
    rows = _Rows(model, list(prompts.values()))
    new: dict[int, list[int]] = {which: [] for which in prompts}
    alive = list(prompts)
    for step in range(1, max_tokens + 1):
        best = pick(model.log_probabilities(rows.last_ND))
        for which, token in zip(alive, best, strict=True):
            new[which].append(token)
        over = [step == max_tokens or _ended(model, which, new[which], done) for which in alive]
        yield from ((which, new[which]) for which, end in zip(alive, over, strict=True) if end)
        left = [n for n, end in enumerate(over) if not end]
        if not left:
            return
        alive = [alive[n] for n in left]
        rows.follow(left, [best[n] for n in left])


def _ended(model: ResidentModel, which: int, ids: list[int], done: Done | None) -> bool:
    if ids[-1] in model.end_ids:
        return True
    return done is not None and done(which, model.tokenizer.decode(ids))


def _empty_cache() -> Any:
    from transformers import DynamicCache

    return DynamicCache()


@dataclass
class _Rows:
    """Rows that grow by a token each; what was padding in a prompt is never seen."""

    model: ResidentModel
    prompts: list[list[int]]
    cache: Any = field(default_factory=_empty_cache)

    def __post_init__(self) -> None:
        self.lengths_N = torch.tensor([len(prompt) for prompt in self.prompts])
        size = int(self.lengths_N.max())
        ids_NT = torch.tensor([[*row, *[0] * (size - len(row))] for row in self.prompts])
        self.seen_NS = torch.arange(size) < self.lengths_N[:, None]
        self.positions_NS = torch.arange(size).expand(len(ids_NT), -1)
        past_NTT = torch.ones(size, size, dtype=torch.bool).tril().expand(len(ids_NT), -1, -1)
        placing = Placing(self.positions_NS, self.positions_NS, past_NTT, self.cache)
        hidden_NTD = self.model.final_hidden(ids_NT, placing)
        self.last_ND = hidden_NTD[torch.arange(len(ids_NT)), self.lengths_N - 1]

    def follow(self, rows: list[int], tokens: list[int]) -> None:
        """Go on with some rows, one more token each."""
        self.cache.batch_select_indices(torch.tensor(rows))
        self.lengths_N = self.lengths_N[rows]
        new_N1 = self.lengths_N[:, None]
        true_N1 = torch.ones_like(new_N1, dtype=torch.bool)
        self.seen_NS = torch.cat([self.seen_NS[rows], true_N1], 1)
        self.positions_NS = torch.cat([self.positions_NS[rows], new_N1], 1)
        placing = Placing(new_N1, self.positions_NS, self.seen_NS[:, None], self.cache)
        ids_N1 = torch.tensor(tokens)[:, None]
        self.last_ND = self.model.final_hidden(ids_N1, placing)[:, 0]
        self.lengths_N = self.lengths_N + 1
