"""What a model made of a task, and how two models compare on the same items."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from leanmoe.stats import wilson
from leanmoe_pruning.evaluation.intervals import Paired


@dataclass(frozen=True)
class TaskResult:
    """One entry per item; ``log_p`` are the sums of all choices, in nats."""

    task: str
    correct: tuple[bool, ...]
    correct_per_byte: tuple[bool, ...] | None = None
    log_p: tuple[tuple[float, ...], ...] | None = None
    digest: str | None = None
    # The accuracy of guessing, where there are choices.
    chance: float | None = None
    # What a server wrote.
    answers: tuple[str, ...] | None = None
    # Figures of another judge's own, by its names for them.
    metrics: Mapping[str, float] = field(default_factory=dict)

    @property
    def accuracy(self) -> float:
        return sum(self.correct) / len(self.correct)

    @property
    def accuracy_per_byte(self) -> float | None:
        per_byte = self.correct_per_byte
        return None if per_byte is None else sum(per_byte) / len(per_byte)

    def interval(self, confidence: float = 0.95) -> tuple[float, float]:
        """Wilson's interval of the accuracy."""
        return wilson(sum(self.correct), len(self.correct), confidence)


def task_report(mine: TaskResult, theirs: TaskResult | None) -> dict[str, Any]:
    """One task's figures; with ``theirs`` also the paired differences, mine less theirs."""
    report: dict[str, Any] = {"items": len(mine.correct), "digest": mine.digest}
    if mine.correct:
        report |= {"chance": mine.chance, **_share(mine.correct)}
    if mine.correct_per_byte is not None:
        report["per_byte"] = _share(mine.correct_per_byte)
    if mine.answers is not None:
        report["answers"] = _written(mine)
    if mine.metrics:
        report["metrics"] = dict(mine.metrics)
    if theirs is None:
        return report
    if mine.correct:
        report["against"] = _difference(mine.correct, theirs.correct)
    if mine.answers is not None and theirs.answers is not None:
        pairs = list(zip(mine.answers, theirs.answers, strict=True))
        report["against"]["same_answer"] = sum(a == b for a, b in pairs) / len(pairs)
    if mine.correct_per_byte is not None and theirs.correct_per_byte is not None:
        report["per_byte"]["against"] = _difference(mine.correct_per_byte, theirs.correct_per_byte)
    if theirs.metrics:
        report["against_metrics"] = dict(theirs.metrics)
    return report


def _written(result: TaskResult) -> list[dict[str, Any]]:
    """Every item's answer, by which a later run is compared with this one."""
    rights = result.correct or (None,) * len(result.answers or ())
    return [
        {"right": right, "text": text}
        for right, text in zip(rights, result.answers or (), strict=True)
    ]


def _share(correct: Sequence[bool]) -> dict[str, float]:
    low, high = wilson(sum(correct), len(correct))
    return {"accuracy": sum(correct) / len(correct), "low": low, "high": high}


def _difference(mine: Sequence[bool], theirs: Sequence[bool]) -> dict[str, float]:
    paired = Paired.of(mine, theirs)
    low, high = paired.interval()
    return {
        "accuracy": sum(theirs) / len(theirs),
        "difference": paired.difference,
        "low": low,
        "high": high,
        "mcnemar_p": paired.mcnemar(),
    }
