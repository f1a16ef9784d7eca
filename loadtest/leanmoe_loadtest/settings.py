"""The settings of a load: a profile's, overridden by the command line's, in one closed schema."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from leanmoe.errors import InputError
from leanmoe.files.records import first_fault
from leanmoe_loadtest.jsonl import read_text

_DAY = 86_400.0
# Naming one of these on the command line overrides the others of a profile.
_ALTERNATIVES = (
    ("users", "arrivals", "rate"),
    ("max_tokens", "output_tokens"),
    ("prompts", "input_tokens"),
)
_PROFILE_FOLDERS = (
    Path(__file__).with_name("profiles"),
    Path(__file__).parents[1] / "profiles",
)


class Settings(BaseModel):
    """What a load is made of; the keys of a profile, and the options of the command."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    description: str | None = None
    endpoint: Literal["chat", "completions"] = "chat"
    model: str | None = None
    users: int | None = Field(None, ge=1, le=100_000)
    arrivals: str | None = None
    rate: float | None = Field(None, gt=0, le=1e6)
    trace_unit: Literal["s", "ms"] = "s"
    trace_speed: float = Field(1.0, ge=1e-3, le=1e6)
    duration: float | None = Field(None, ge=0.1, le=_DAY)
    max_requests: int | None = Field(None, ge=1, le=10_000_000)
    max_concurrency: int = Field(1000, ge=1, le=100_000)
    request_seconds: float = Field(120.0, ge=0.1, le=_DAY)
    prompts: str | None = None
    input_tokens: str | None = None
    output_tokens: str | None = None
    max_tokens: int = Field(64, ge=1, le=1_000_000)
    ignore_eos: bool = False
    levels: str | None = None
    keep_text: bool = False
    processes: int = Field(1, ge=1, le=256)


def resolve(profile: str | None, given: Mapping[str, Any]) -> Settings:
    """The settings of ``profile``, if any, with those ``given`` on the command line over them."""
    _one_each(given, "the command line")
    below = _read_profile(profile) if profile is not None else {}
    _one_each(below, f"profile {profile}")
    _check(below, f"profile {profile}: ", as_option=False)
    overridden = {key for group in _ALTERNATIVES if {*group} & given.keys() for key in group}
    kept = {key: value for key, value in below.items() if key not in overridden}
    return _check({**kept, **given}, "", as_option=True)


def profile_names() -> list[str]:
    """The profiles that ship with the load test."""
    return sorted(path.stem for folder in _PROFILE_FOLDERS for path in folder.glob("*.yaml"))


def _read_profile(profile: str) -> dict[str, Any]:
    path = _profile_path(profile)
    try:
        content = yaml.safe_load(read_text(path))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"profile {path} is not YAML: {reason}") from None
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise InputError(f"profile {path} is not a mapping of settings such as `users: 8`")
    known = Settings.model_fields
    for key in content:
        if key.replace("-", "_") not in known:
            raise InputError(f"profile {path} has no setting {key!r}; {_near(key)}")
    return _numbers({key.replace("-", "_"): value for key, value in content.items()}, path)


def _numbers(content: dict[str, Any], path: Path) -> dict[str, Any]:
    """Settings that are texts may be written as numbers; paths lie beside the profile."""
    for key in ("input_tokens", "output_tokens", "levels"):
        if type(content.get(key)) in (int, float):
            content[key] = str(content[key])
    prompts, arrivals = content.get("prompts"), content.get("arrivals")
    if isinstance(prompts, str) and Path(prompts).suffix:
        content["prompts"] = str(path.parent / prompts)
    if isinstance(arrivals, str) and arrivals.startswith("trace:"):
        content["arrivals"] = f"trace:{path.parent / arrivals.removeprefix('trace:')}"
    return content


def _profile_path(profile: str) -> Path:
    if "/" in profile or profile.endswith((".yaml", ".yml")):
        return Path(profile)
    for folder in _PROFILE_FOLDERS:
        if (folder / f"{profile}.yaml").is_file():
            return folder / f"{profile}.yaml"
    raise InputError(
        f"no profile {profile!r}; there are {', '.join(profile_names())}, or give a .yaml file"
    )


def _near(key: str) -> str:
    names = [name.replace("_", "-") for name in Settings.model_fields]
    close = difflib.get_close_matches(key.replace("_", "-"), names, n=1)
    return f"did you mean {close[0]!r}?" if close else f"settings are {', '.join(names)}"


def _one_each(content: Mapping[str, Any], where: str) -> None:
    for group in (*_ALTERNATIVES[:1], ("max_tokens", "output_tokens")):
        named = [_option(key) for key in group if key in content]
        if len(named) > 1:
            raise InputError(f"{where} gives {' and '.join(named)}; give one of them")


def _option(key: str) -> str:
    return f"--{key.replace('_', '-')}"


def _check(content: Mapping[str, Any], where: str, *, as_option: bool) -> Settings:
    try:
        return Settings(**content)
    except ValidationError as error:
        fault = first_fault(error)
        key = fault.place.partition(".")[0]
        name = _option(key) if as_option else key.replace("_", "-")
        raise InputError(f"{where}{name} is {fault.value!r}: {_lower(fault.said)}") from None


def _lower(message: str) -> str:
    return message.replace("Input should be", "expected", 1)
