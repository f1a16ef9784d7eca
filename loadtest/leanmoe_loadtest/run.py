"""The run folder: what was run, every request's timestamps, the server's metrics meanwhile.

``run.json`` is a ``RunInfo``, ``requests.jsonl`` a ``RequestRecord`` per line and
``metrics.jsonl`` a ``Scrape`` per line. Nothing derived is stored.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from leanmoe.errors import InputError
from leanmoe.files.output import atomic_write_text
from leanmoe.files.records import what_is_wrong
from leanmoe_loadtest.record import RequestRecord

RUN_FILE, REQUESTS_FILE, METRICS_FILE = "run.json", "requests.jsonl", "metrics.jsonl"
_Model = TypeVar("_Model", bound=BaseModel)


class Scrape(BaseModel):
    """One reading of the server's ``/metrics``: samples by ``name{label="x"}``."""

    model_config = ConfigDict(extra="forbid")

    time: float
    samples: dict[str, float]


class ConcurrencyLimit(BaseModel):
    """Open loop: how many requests may run at once, and how often that made one wait."""

    model_config = ConfigDict(extra="forbid")

    limit: int
    hits: int = 0
    first_hit: float | None = None


class RunInfo(BaseModel):
    """What was run. ``settings`` are those in effect: the profile's and the command line's."""

    model_config = ConfigDict(extra="forbid")

    format: int = 1
    url: str
    model: str
    endpoint: str = Field(description="chat or completions")
    loop: str = Field(description="open or closed")
    arrivals: str | None = Field(default=None, description="open loop, such as poisson:4")
    users: int | None = Field(default=None, description="closed loop: requests under way")
    duration_seconds: float
    prompts: str
    prompt_count: int
    levels: list[dict[str, Any]] | None = Field(
        default=None, description="the mix: value (null: the key left out) and weight of each"
    )
    seed: int
    settings: dict[str, Any] = Field(default_factory=dict)
    workers: list[str] = Field(default_factory=list)
    versions: dict[str, str] = Field(default_factory=dict)
    started: float
    ended: float
    skipping_before: dict[str, Any] | None = None
    skipping_after: dict[str, Any] | None = None
    concurrency: ConcurrencyLimit | None = None
    slo: str | None = Field(default=None, description="the goals that the run was made with")
    partial: bool = Field(default=False, description="stopped before its time")


@dataclass(frozen=True)
class Run:
    """A run folder in memory."""

    info: RunInfo
    requests: list[RequestRecord]
    metrics: list[Scrape] = field(default_factory=list)


def write_run(folder: Path, run: Run) -> None:
    """Put the three files into ``folder``, which exists; ``run.json`` comes last."""
    _write_lines(folder / REQUESTS_FILE, run.requests)
    _write_lines(folder / METRICS_FILE, run.metrics)
    atomic_write_text(folder / RUN_FILE, run.info.model_dump_json(indent=2) + "\n")


def read_run(folder: Path) -> Run:
    """Read a run folder; ``InputError`` names the file and line that is not as it should be."""
    if not (folder / RUN_FILE).is_file():
        raise InputError(f"{folder} is no run folder: it has no {RUN_FILE}; give one written by -o")
    return Run(
        info=_parse(RunInfo, _text(folder / RUN_FILE), str(folder / RUN_FILE)),
        requests=read_lines(folder / REQUESTS_FILE, RequestRecord),
        metrics=read_lines(folder / METRICS_FILE, Scrape),
    )


def _write_lines(path: Path, rows: Sequence[BaseModel]) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.writelines(row.model_dump_json() + "\n" for row in rows)


def read_lines(path: Path, model: type[_Model]) -> list[_Model]:
    """A file of one ``model`` per line; ``InputError`` names the line that is none."""
    # Not `splitlines`: an answer may hold a line separator that JSON leaves as it is.
    lines = enumerate(_text(path).split("\n"), 1)
    return [_parse(model, line, f"{path}:{number}") for number, line in lines if line]


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8"
        raise InputError(f"{path} cannot be read: {reason}") from None


def _parse(model: type[_Model], text: str, where: str) -> _Model:
    try:
        return model.model_validate_json(text, strict=True)
    except ValidationError as error:
        raise InputError(f"{where} is not a {model.__name__}: {what_is_wrong(error)}") from None
