"""What ``leanmoe eval --json`` wrote, read back and held against the checkpoint it judged."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from leanmoe.errors import InputError
from leanmoe.files.digest import parse_json
from leanmoe.files.records import read_record, what_is_wrong
from leanmoe.files.text import user_text


class _Figures(BaseModel):
    model_config = ConfigDict(allow_inf_nan=False)


class Difference(_Figures):
    """The other model's accuracy, and ours less theirs on the same items."""

    accuracy: float
    difference: float
    low: float
    high: float


class Accuracy(_Figures):
    """A share of right answers with its 95 % interval."""

    accuracy: float
    low: float
    high: float
    against: Difference | None = None


class TaskFigures(_Figures):
    """One task; the accuracy is absent where another judge's own figures stand for it."""

    items: int = Field(gt=0)
    chance: float | None = None
    accuracy: float | None = None
    low: float | None = None
    high: float | None = None
    against: Difference | None = None
    per_byte: Accuracy | None = None
    metrics: dict[str, float] = Field(default_factory=dict)
    against_metrics: dict[str, float] = Field(default_factory=dict)


class Range(_Figures):
    """A 95 % interval; absent for a single window."""

    low: float | None = None
    high: float | None = None


class Ratio(Range):
    """Perplexity over the other model's, paired window by window."""

    mean: float


class OtherDomain(Range):
    """The other model on the same text."""

    perplexity: float
    ratio: Ratio


class DomainFigures(Range):
    """One domain of held-out text."""

    perplexity: float
    tokens: int
    against: OtherDomain | None = None
    kld: float | None = None
    kld_upper: float | None = None
    top1_agreement: float | None = None


class Evaluation(_Figures):
    """One run of ``leanmoe eval``."""

    model: str
    weights_digest: str
    skip_level: float
    against: str | None = None
    against_weights_digest: str | None = None
    domains: dict[str, DomainFigures] = Field(default_factory=dict)
    tasks: dict[str, TaskFigures] = Field(default_factory=dict)


def read_evaluation(path: Path, weights: str) -> Evaluation:
    """Read one file; raise ``InputError`` unless it judged the model of this ``weights`` digest."""
    try:
        found = read_record(Evaluation, parse_json(user_text(path)))
    except ValidationError as error:
        reason = what_is_wrong(error, "the file")
        raise InputError(
            f"{path} is not what `leanmoe eval --json` writes ({reason}); judge the model again"
        ) from None
    except (ValueError, OSError) as error:
        raise InputError(
            f"{path} cannot be read as JSON ({error}); give what `leanmoe eval --json` wrote"
        ) from None
    if found.weights_digest != weights:
        raise InputError(
            f"{path} judged {found.model}, whose weights (found {found.weights_digest}) are not "
            f"this checkpoint's (expected {weights}); judge this one"
        )
    return found
