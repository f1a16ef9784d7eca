"""How likely a model finds continuations, many at a time.

Text becomes tokens as in EleutherAI's lm-evaluation-harness: blanks at the end of a prompt
belong to the continuation, the two are tokenised together and cut where the prompt's own
tokens end, and what is too long for the model loses its beginning. Requests of one prompt run
as one row in which every shared token stands once; rows are padded on the right. Both are
exact for a causal model. N rows, T tokens, D model, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch

from leanmoe.errors import CheckpointError, DataError
from leanmoe_pruning.data.tokenizer import ModelTokenizer
from leanmoe_pruning.evaluation.comparison import CHUNK
from leanmoe_pruning.evaluation.resident import ResidentModel
from leanmoe_pruning.forward.passes import CHUNK_TOKENS
from leanmoe_pruning.forward.placing import Tree, place_trees
from leanmoe_pruning.progress import Tick, no_tick

# Padded tokens run at once, and in one pass over the layers: their activations are held.
BATCH_TOKENS = CHUNK_TOKENS
PASS_TOKENS = 1 << 16


@dataclass(frozen=True)
class Request:
    """Tokens given, and tokens whose probability is asked for."""

    context: tuple[int, ...]
    continuation: tuple[int, ...]

    def row(self, max_length: int) -> tuple[int, ...]:
        """What the model is run on: all but the last token, the end of it where it is too long."""
        return (self.context + self.continuation)[:-1][-max_length:]


@dataclass(frozen=True)
class Likelihood:
    """Sum of log p in nats over a continuation, and whether each of its tokens is the best one."""

    log_p: float
    greedy: bool


def encode_pair(tokenizer: ModelTokenizer, prompt: str, continuation: str, start: int) -> Request:
    """The request for a continuation; one without a prompt follows the token ``start``."""
    bare = prompt.rstrip()
    if not bare:
        return Request((start,), _tokens(tokenizer.encode(prompt + continuation), continuation))
    context = tokenizer.encode(bare)
    whole = tokenizer.encode(prompt + continuation)
    return Request(tuple(context), _tokens(whole[len(context) :], continuation))


def _tokens(ids: Sequence[int], text: str) -> tuple[int, ...]:
    if not ids:
        raise DataError(
            f"the continuation {text!r:.60} has no token of its own after its prompt, so nothing "
            "can be asked about it; end the prompt where a word ends"
        )
    return tuple(ids)


@dataclass(frozen=True)
class _Row:
    """Requests of one prompt; ``asked`` gives each one's places of prediction and next tokens."""

    tree: Tree = field(default_factory=Tree)
    asked: dict[int, tuple[list[int], tuple[int, ...]]] = field(default_factory=dict)

    def add(self, which: int, request: Request, max_length: int) -> None:
        path = self.tree.add(request.row(max_length))
        wanted = request.continuation[-len(path) :]
        self.asked[which] = path[-len(wanted) :], wanted


@torch.inference_mode()
def log_likelihoods(
    model: ResidentModel, requests: Sequence[Request], tick: Tick = no_tick
) -> list[Likelihood]:
    """The likelihood of each request, in their order; ``tick`` is called once per request."""
    found: dict[int, Likelihood] = {}
    for batches in _passes(_batches(_rows(requests, model.max_length))):
        placed = [place_trees([row.tree for row in batch]) for batch in batches]
        rows = (row for batch in batches for row in batch)
        hidden = (one_TD for part_NTD in model.final_hiddens(placed) for one_TD in part_NTD)
        for row, hidden_TD in zip(rows, hidden, strict=True):
            found |= _answers(model, row, hidden_TD)
            for _ in row.asked:
                tick()
    return [found[which] for which in range(len(requests))]


def _rows(requests: Sequence[Request], max_length: int) -> list[_Row]:
    """One row per prompt, longest first."""
    rows: dict[tuple[int, ...], _Row] = {}
    for which, request in enumerate(requests):
        rows.setdefault(request.context, _Row()).add(which, request, max_length)
    return sorted(rows.values(), key=lambda row: -len(row.tree))


def _batches(rows: Sequence[_Row]) -> Iterator[list[_Row]]:
    batch: list[_Row] = []
    for row in rows:
        if batch and (len(batch) + 1) * len(batch[0].tree) > BATCH_TOKENS:
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


def _passes(batches: Iterator[list[_Row]]) -> Iterator[list[list[_Row]]]:
    held: list[list[_Row]] = []
    tokens = 0
    for batch in batches:
        held.append(batch)
        tokens += len(batch) * len(batch[0].tree)
        if tokens >= PASS_TOKENS:
            yield held
            held, tokens = [], 0
    if held:
        yield held


def _answers(model: ResidentModel, row: _Row, hidden_TD: torch.Tensor) -> dict[int, Likelihood]:
    """A place that several requests ask about is looked at once."""
    places = sorted({place for path, _ in row.asked.values() for place in path})
    wanted: dict[int, set[int]] = {place: set() for place in places}
    for path, tokens in row.asked.values():
        for place, token in zip(path, tokens, strict=True):
            wanted[place].add(token)
    log_p: dict[tuple[int, int], float] = {}
    best: dict[int, int] = {}
    for start in range(0, len(places), CHUNK):
        part = places[start : start + CHUNK]
        log_p_TV = model.log_probabilities(hidden_TD[part])
        best |= zip(part, log_p_TV.argmax(-1).tolist(), strict=True)
        pairs = [(n, token) for n, place in enumerate(part) for token in sorted(wanted[place])]
        values = log_p_TV[tuple(torch.tensor(pairs).t())].double().tolist()
        log_p |= {(part[n], token): one for (n, token), one in zip(pairs, values, strict=True)}
    return {which: _likelihood(model, *asked, log_p, best) for which, asked in row.asked.items()}


def _likelihood(
    model: ResidentModel,
    path: Sequence[int],
    tokens: Sequence[int],
    log_p: dict[tuple[int, int], float],
    best: dict[int, int],
) -> Likelihood:
    steps = list(zip(path, tokens, strict=True))
    total = sum(log_p[step] for step in steps)
    if not total > float("-inf"):
        raise CheckpointError(
            f"{model.stream.checkpoint.path} gives a continuation the log probability {total}: its "
            "weights are not sound; fetch or make the model again"
        )
    return Likelihood(total, all(best[place] == token for place, token in steps))
