"""The two sides of a comparison: runs of one kind each, of a load that must be alike."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from leanmoe.errors import InputError
from leanmoe_loadtest.reading.level_name import level_name
from leanmoe_loadtest.record import RequestRecord
from leanmoe_loadtest.run import Run, read_run

_SHARED_ENOUGH = 0.95
_FEW_RUNS = 3
# What the two sides may differ in: it is what is compared, or it changes nothing for the server.
_FREE_SETTINGS = frozenset({"description", "model", "levels", "keep_text", "processes"})
_FREE = frozenset(
    {
        "format",
        "url",
        "model",
        "levels",
        "seed",
        "settings",
        "workers",
        "versions",
        "started",
        "ended",
        "skipping_before",
        "skipping_after",
        "concurrency",
        "partial",
    }
)


@dataclass(frozen=True)
class Side:
    """Runs of one kind."""

    folders: list[Path]
    runs: list[Run]

    @property
    def done(self) -> list[tuple[int, RequestRecord]]:
        """Completed requests with the number of their run."""
        return [
            (number, record)
            for number, run in enumerate(self.runs)
            for record in run.requests
            if record.completed
        ]


def read_side(folders: Sequence[Path]) -> Side:
    """Read the run folders of one side."""
    return Side(list(folders), [read_run(folder) for folder in folders])


def check_alike(sides: Sequence[Side]) -> None:
    """Refuse runs of unlike load: what is compared may differ, what was sent may not."""
    first = sides[0].folders[0]
    wanted = _load_of(sides[0].runs[0])
    for side in sides:
        for folder, run in zip(side.folders, side.runs, strict=True):
            found = _load_of(run)
            for name in {**wanted, **found}:
                if found.get(name) != wanted.get(name):
                    raise InputError(
                        f"the loads are unlike: {name} is {wanted.get(name, 'not set')!r} in "
                        f"{first} and {found.get(name, 'not set')!r} in {folder}; compare runs of "
                        "one load, or pass --force"
                    )


def _load_of(run: Run) -> dict[str, Any]:
    info = run.info.model_dump(mode="json")
    named = {name: value for name, value in info.items() if name not in _FREE}
    return {**{k: v for k, v in info["settings"].items() if k not in _FREE_SETTINGS}, **named}


def about(side: Side) -> dict[str, Any]:
    mixes = {
        ", ".join(sorted({level_name(record.level) for record in run.requests}))
        for run in side.runs
    }
    return {
        "folders": [str(folder) for folder in side.folders],
        "runs": len(side.runs),
        "models": sorted({run.info.model for run in side.runs}),
        "levels": sorted(mixes),
        "completed": len(side.done),
    }


def shares_prompts(a: Side, b: Side) -> bool:
    """Whether nearly all of both sides' requests sent prompts that the other side sent too."""
    if _prompts_of(a) != _prompts_of(b):
        return False
    sent = [[record.prompt for _, record in side.done] for side in (a, b)]
    if any(prompt is None for prompts in sent for prompt in prompts):
        return False
    common = set(sent[0]) & set(sent[1])
    return all(sum(p in common for p in ps) >= _SHARED_ENOUGH * len(ps) for ps in sent)


def _prompts_of(side: Side) -> set[tuple[str, int, int]]:
    infos = [run.info for run in side.runs]
    return {(info.prompts, info.prompt_count, info.seed) for info in infos}


def notes(a: Side, b: Side, paired: bool) -> Iterator[str]:
    fewest = min(len(a.runs), len(b.runs))
    if fewest == 1:
        yield (
            "One run on a side: the intervals take requests as independent and know nothing of "
            "what differs from run to run; give three folders or more per side."
        )
    elif fewest < _FEW_RUNS:
        yield f"{fewest} runs on a side are few: intervals of so small a sample are too narrow."
    if not paired:
        yield (
            "The sides did not send the same prompts with the same seed: the intervals hold the "
            "chance of the prompts too."
        )
    for side in (a, b):
        for folder, run in zip(side.folders, side.runs, strict=True):
            failed = sum(record.error is not None for record in run.requests)
            if failed:
                yield f"{failed} requests of {folder} failed; latencies are those of the others."
