"""How likely a model finds continuations, many at a time.

Text becomes tokens as in EleutherAI's lm-evaluation-harness: blanks at the end of a prompt
belong to the continuation, the two are tokenised together and cut where the prompt's own
tokens end, and what is too long for the model loses its beginning. Rows are padded on the
right, which is exact for a causal model, and a row whose tokens are the beginning of another
row is not run a second time. N rows, T tokens, D model, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from leanmoe.errors import CheckpointError, DataError
from leanmoe_pruning.data.tokenizer import ModelTokenizer
from leanmoe_pruning.progress import Tick, no_tick
from leanmoe_pruning.quality.comparison import CHUNK
from leanmoe_pruning.quality.resident import ResidentModel

# Padded tokens run at once: enough for every expert to get some, few enough for the caches.
BATCH_TOKENS = 4096
_PADDING = 0


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


@torch.inference_mode()
def log_likelihoods(
    model: ResidentModel, requests: Sequence[Request], tick: Tick = no_tick
) -> list[Likelihood]:
    """The likelihood of each request, in their order; ``tick`` is called once per request."""
    found: dict[int, Likelihood] = {}
    for batch in _batches(requests, model.max_length):
        hidden_NTD = model.final_hidden(padded([row for row, _ in batch]))
        wanted = [(n, which) for n, (_, held) in enumerate(batch) for which in held]
        for n, which in wanted:
            found[which] = _likelihood(model, requests[which], hidden_NTD[n])
            tick()
    return [found[which] for which in range(len(requests))]


Row = tuple[tuple[int, ...], list[int]]


def _batches(requests: Sequence[Request], max_length: int) -> Iterator[list[Row]]:
    """Rows to run, longest first, with the requests each one answers."""
    batch: list[Row] = []
    for row in sorted(_rows(requests, max_length), key=lambda one: (-len(one[0]), one[0])):
        if batch and (len(batch) + 1) * len(batch[0][0]) > BATCH_TOKENS:
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


def _rows(requests: Sequence[Request], max_length: int) -> list[Row]:
    """Distinct rows; one that begins another row is answered by that one."""
    rows: list[Row] = []
    every = [(request.row(max_length), which) for which, request in enumerate(requests)]
    # In this order, the rows a row begins come right before it.
    for row, which in sorted(every, reverse=True):
        if rows and rows[-1][0][: len(row)] == row:
            rows[-1][1].append(which)
        else:
            rows.append((row, [which]))
    return rows


def padded(rows: Sequence[Sequence[int]]) -> torch.Tensor:
    """One row each, padded on the right, int64 ``[N, T]``."""
    length = max(map(len, rows))
    return torch.tensor([[*row, *[_PADDING] * (length - len(row))] for row in rows])


def _likelihood(model: ResidentModel, request: Request, hidden_TD: torch.Tensor) -> Likelihood:
    """From the hidden states of a row that begins with the request's own."""
    length = len(request.row(model.max_length))
    ids_T = torch.tensor(request.continuation[-length:])
    asked_TD = hidden_TD[length - len(ids_T) : length]
    total, greedy = 0.0, True
    for part_TD, part_T in zip(
        *(torch.split(one, CHUNK) for one in (asked_TD, ids_T)), strict=True
    ):
        log_p_TV = model.log_probabilities(part_TD)
        total += float(log_p_TV.gather(1, part_T[:, None]).double().sum())
        greedy = greedy and bool((log_p_TV.argmax(-1) == part_T).all())
    if not total > float("-inf"):
        raise CheckpointError(
            f"{model.stream.checkpoint.path} gives a continuation the log probability {total}: its "
            "weights are not sound; fetch or make the model again"
        )
    return Likelihood(total, greedy)
