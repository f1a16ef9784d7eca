"""Quality beside speed: how far answers at a level agree with the exact ones.

After the load, a fixed set of prompts is answered at temperature 0: twice exactly, so
that the second pass shows how much the server differs from itself, then once at each
level of the mix.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from leanmoe.files.output import atomic_write_text
from leanmoe.stats import wilson
from leanmoe_loadtest.reading.intervals import mean_interval
from leanmoe_loadtest.reading.level_name import level_name
from leanmoe_loadtest.reading.quality_prompts import ANSWER_TOKENS, PROMPTS, SET_NAME
from leanmoe_loadtest.run import read_lines

QUALITY_FILE = "quality.jsonl"
EXACT, AGAIN = "exact", "exact again"


class Answer(BaseModel):
    """One prompt's answer in one pass; a line of ``quality.jsonl``."""

    model_config = ConfigDict(extra="forbid")

    answers: str
    level: str | None
    prompt: int
    text: str | None = None
    tokens: list[str] | None = None
    applied_level: float | None = None
    error: str | None = None


@dataclass(frozen=True)
class Quality:
    """All answers; ``answers`` of each names its pass."""

    answers: list[Answer]

    def of(self, name: str) -> dict[int, Answer]:
        """A pass by prompt, failures left out."""
        return {a.prompt: a for a in self.answers if a.answers == name and a.error is None}

    @property
    def passes(self) -> list[str]:
        """Names in the order they ran."""
        return list(dict.fromkeys(answer.answers for answer in self.answers))


def quality_figures(quality: Quality, seed: int) -> dict[str, Any]:
    """Exact match and agreement of every pass with the exact one, with 95 % intervals."""
    exact = quality.of(EXACT)
    rows = {name: _compare(exact, quality, name, seed) for name in quality.passes if name != EXACT}
    noise = rows.pop(AGAIN, None)
    skipping = any(answer.level is not None for answer in quality.answers)
    return {
        "prompt_set": SET_NAME,
        "prompts": len(PROMPTS),
        "answer_tokens": ANSWER_TOKENS,
        "skipping": skipping,
        "noise": noise,
        "levels": rows,
        "notes": list(_notes(quality, skipping, noise)),
    }


def _compare(exact: Mapping[int, Answer], quality: Quality, name: str, seed: int) -> dict[str, Any]:
    found = quality.of(name)
    pairs = [(exact[prompt], found[prompt]) for prompt in sorted(exact.keys() & found.keys())]
    by_token = all(a.tokens is not None and b.tokens is not None for a, b in pairs)
    shares = [_agreement(_units(a, by_token), _units(b, by_token)) for a, b in pairs]
    same = sum(a.text == b.text for a, b in pairs)
    low, high = wilson(same, len(pairs))
    spread = mean_interval(shares, seed)
    return {
        "compared": len(pairs),
        "exact_match": same / len(pairs) if pairs else None,
        "exact_match_low": low if pairs else None,
        "exact_match_high": high if pairs else None,
        "unit": "tokens" if by_token else "characters",
        "agreement": sum(shares) / len(shares) if shares else None,
        "agreement_low": spread.low if spread else None,
        "agreement_high": spread.high if spread else None,
        "applied_levels": sorted(
            {b.applied_level for _, b in pairs if b.applied_level is not None}
        ),
    }


def _units(answer: Answer, by_token: bool) -> Sequence[str]:
    return (answer.tokens if by_token else answer.text) or ""


def _agreement(exact: Sequence[str], other: Sequence[str]) -> float:
    """Share of the longer answer that both begin with; two empty answers agree."""
    longest = max(len(exact), len(other))
    pairs = zip(exact, other, strict=False)
    common = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
    return common / longest if longest else 1.0


def _notes(quality: Quality, skipping: bool, noise: Mapping[str, Any] | None) -> Iterable[str]:
    failed = [answer for answer in quality.answers if answer.error is not None]
    if failed:
        yield (
            f"{len(failed)} of {len(quality.answers)} quality answers failed "
            f"({failed[0].error}) and are left out of the agreement."
        )
    if not skipping:
        yield (
            "The server knows no expert_skipping: quality compares it with itself, which is the "
            "noise floor and says nothing about a loss."
        )
    elif noise and noise["exact_match"] is not None and noise["exact_match"] < 1:
        yield (
            f"Two exact passes gave the same answer to {noise['exact_match']:.0%} of the prompts "
            "only: differences between levels count beyond that noise."
        )


def write_quality(folder: Path, quality: Quality) -> None:
    """Put ``quality.jsonl`` into a run folder."""
    lines = "".join(answer.model_dump_json() + "\n" for answer in quality.answers)
    atomic_write_text(folder / QUALITY_FILE, lines)


def read_quality(path: Path) -> Quality:
    """Read ``quality.jsonl``."""
    return Quality(read_lines(path, Answer))


def passes(levels: Iterable[str | None], skipping: bool) -> dict[str, str | None]:
    """Name and level of every pass, for a mix of ``levels`` (JSON texts, null: the server's)."""
    off = '"off"' if skipping else None
    named = {level_name(level): level for level in levels if level != '"off"'} if skipping else {}
    return {EXACT: off, AGAIN: off, **named}
