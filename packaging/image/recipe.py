"""A Dockerfile as the stages and steps it names; as much of the format as ours uses."""

from __future__ import annotations

import json
import shlex
import string
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from dockerfile_parse import DockerfileParser


@dataclass(frozen=True)
class Step:
    """One instruction, its continuation lines joined."""

    keyword: str
    value: str


@dataclass
class Stage:
    """What one FROM begins: ``base`` is an image or the name of an earlier stage."""

    name: str
    base: str
    steps: list[Step] = field(default_factory=list)


@dataclass(frozen=True)
class Copy:
    """One COPY: from the context, or from another stage."""

    sources: list[str]
    target: str
    stage: str | None


def substitute(text: str, values: Mapping[str, str]) -> str:
    """``$NAME`` and ``${NAME}`` replaced where known."""
    return string.Template(text).safe_substitute(values)


def read_stages(dockerfile: Path, arguments: Mapping[str, str]) -> list[Stage]:
    """The stages in order; ``arguments`` win over the file's own ARG defaults."""
    with dockerfile.open("rb") as file:
        instructions = DockerfileParser(fileobj=file).structure
    stages: list[Stage] = []
    known: dict[str, str] = {}
    for one in instructions:
        step = Step(one["instruction"], one["value"])
        if step.keyword == "COMMENT":
            continue
        if step.keyword == "FROM":
            base, _, name = substitute(step.value, known).partition(" AS ")
            stages.append(Stage(name.strip(), base.strip()))
        elif stages:
            stages[-1].steps.append(step)
        else:
            known |= assignment(step.value, arguments)
    for stage in stages:
        # An ARG without a value takes the one from before the first FROM.
        stage.steps = [_with_default(step, known) for step in stage.steps]
    return stages


def _with_default(step: Step, known: Mapping[str, str]) -> Step:
    if step.keyword == "ARG" and step.value in known:
        return Step("ARG", f"{step.value}={known[step.value]}")
    return step


def assignment(value: str, arguments: Mapping[str, str]) -> dict[str, str]:
    """One ARG, overridden where ``arguments`` name it."""
    name, _, default = value.partition("=")
    return {name: arguments.get(name, default)}


def pairs(value: str) -> dict[str, str]:
    """The ``NAME=value`` pairs of ENV or LABEL."""
    return dict(part.split("=", 1) for part in shlex.split(value))


def copy_of(value: str) -> Copy:
    """Sources, target and stage of a COPY."""
    words = shlex.split(value)
    stage = None
    if words[0].startswith("--from="):
        stage = words.pop(0).partition("=")[2]
    *sources, target = words
    return Copy(sources, target, stage)


def caches_and_command(value: str) -> tuple[list[str], str]:
    """The cache folders a RUN mounts, and its shell command."""
    caches = []
    while value.startswith("--mount="):
        flag, _, value = value.partition(" ")
        settings = dict(part.split("=", 1) for part in flag.removeprefix("--mount=").split(","))
        if settings.get("type") != "cache":
            raise SystemExit(f"RUN {flag}: only mounts of type cache are known here")
        caches.append(settings["target"])
        value = value.lstrip()
    return caches, value


def words(value: str) -> list[str]:
    """The words of an exec-form ENTRYPOINT, CMD or HEALTHCHECK."""
    return [str(word) for word in json.loads(value[value.index("[") :])]
