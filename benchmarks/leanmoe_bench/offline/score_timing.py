"""Seconds that one layer's pass takes in ``leanmoe score``, and computed plainly, in turns.

Plainly: every statistic for itself, each operation shared out among torch's threads. A sample: an
eighth of the tokens with a Gram matrix (``--gram-tokens``). CPU seconds count what all threads
worked, or waited in a loop; they move less with the machine's other load than wall seconds.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import torch

from leanmoe_bench.offline.plain_scores import plain_scores
from leanmoe_bench.ratio import paired_ratio
from leanmoe_bench.shapes import Shape, write_checkpoint
from leanmoe_pruning.checkpoints.opening import open_runnable_model
from leanmoe_pruning.forward.passes import chunks, embed_all
from leanmoe_pruning.forward.stream import DecoderStream
from leanmoe_pruning.progress import no_tick, progress
from leanmoe_pruning.scores.passing import score_layers

THREADS = (1, 2)
_WINDOW, _SAMPLE = 256, 8
Ids = Sequence[torch.Tensor]


def measure(shape: Shape, work: Path, tokens: int, rounds: int, seed: int) -> dict[str, Any]:
    """One row: a table per number of threads."""
    one = replace(shape, layers=1)
    stream = DecoderStream(open_runnable_model(write_checkpoint(one, work / "one-layer", seed)))
    generator = torch.Generator().manual_seed(seed)
    size = (tokens // _WINDOW, _WINDOW)
    ids = [torch.randint(0, shape.vocabulary, size, generator=generator)]
    found = {}
    with progress("scoring both ways", rounds * len(THREADS)) as tick:
        for threads in THREADS:
            with _threads(threads):
                found[str(threads)] = _compare(stream, ids, rounds, tick)
    return {"shape": shape.name, "tokens": tokens, "rounds": rounds, "threads": found}


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    yield
    torch.set_num_threads(before)


@torch.inference_mode()
def _compare(
    stream: DecoderStream, ids: Ids, rounds: int, tick: Callable[[], None]
) -> dict[str, Any]:
    seconds: dict[str, list[tuple[float, float]]] = {"plain": [], "fast": [], "sample": []}
    ways = {"plain": _plain, "fast": _fast, "sample": _sampled}
    for way in ways.values():
        way(stream, [ids[0][:1]])
    for turn in range(rounds):
        for name in list(ways) if turn % 2 == 0 else reversed(list(ways)):
            cpu, wall = time.process_time(), time.perf_counter()
            ways[name](stream, ids)
            seconds[name].append((time.process_time() - cpu, time.perf_counter() - wall))
        tick()
    return {
        kind: {
            **{
                name: round(median(one[place] for one in taken), 3)
                for name, taken in seconds.items()
            },
            **{f"plain_over_{name}": _ratio(seconds, name, place) for name in ("fast", "sample")},
        }
        for place, kind in enumerate(("cpu_seconds", "wall_seconds"))
    }


def _ratio(seconds: dict[str, list[tuple[float, float]]], name: str, place: int) -> list[float]:
    plain, other = ([one[place] for one in seconds[which]] for which in ("plain", name))
    return [round(figure, 2) for figure in paired_ratio(plain, other)]


def _plain(stream: DecoderStream, ids: Ids) -> None:
    hidden, layer = embed_all(stream, ids), stream.layer(0)
    for chunk_NTD, _ in chunks(hidden):
        layer.attend_(chunk_NTD)
        layer.add_(chunk_NTD, plain_scores(layer, chunk_NTD)[1])


def _fast(stream: DecoderStream, ids: Ids) -> None:
    list(score_layers(stream, ids, no_tick))


def _sampled(stream: DecoderStream, ids: Ids) -> None:
    list(score_layers(stream, ids, no_tick, max(1, ids[0].numel() // _SAMPLE)))


def show(row: dict[str, Any]) -> str:
    """For people."""
    lines = []
    for threads, found in row["threads"].items():
        for kind, taken in found.items():
            fast, sample = (taken[f"plain_over_{name}"] for name in ("fast", "sample"))
            lines.append(
                f"score, one layer of {row['shape']}, {row['tokens']} tokens, {threads} thread(s), "
                f"{kind.replace('_', ' ')}: {taken['plain']:.1f} plainly, {taken['fast']:.1f} "
                f"({fast[0]:.2f}x, {fast[1]:.2f} to {fast[2]:.2f}), an eighth sampled "
                f"{taken['sample']:.1f} ({sample[0]:.2f}x, {sample[1]:.2f} to {sample[2]:.2f})"
            )
    return "\n".join(lines)
