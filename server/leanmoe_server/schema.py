"""What clients say about skipping, as strict models, and one sentence for what does not fit them.

The body of ``PUT /v1/expert_skipping`` and a single request's ``expert_skipping``. What is not
named is absent, not null: a change leaves the rest as it is.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Annotated, Any, Generic, Literal, TypeVar

from pydantic import (
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    WithJsonSchema,
    with_config,
)
from typing_extensions import TypedDict

from leanmoe.errors import InputError
from leanmoe.files.digest import repeated_keys
from leanmoe.messages import Phases, UnionMode
from leanmoe.policy import EXACT, TOP1_ONLY
from leanmoe.wire import REQUEST_KEY
from leanmoe_server.policy import NO_BUDGET, PolicyChange, Target
from leanmoe_server.request_body import few

# JSON has one kind of number; a strict one is neither a bool nor a text.
_Level = Annotated[float, Field(ge=EXACT, le=TOP1_ONLY, allow_inf_nan=False)]
_Loss = Annotated[float, Field(ge=0, allow_inf_nan=False)]
_Experts = Annotated[float, Field(ge=1, le=100_000, multiple_of=1, allow_inf_nan=False)]
# A strict one would be an instance of the class, which JSON has none of. The document of the API
# holds the names themselves: pydantic's references point into a document of their own.
_Phases = Annotated[Phases, Field(strict=False), WithJsonSchema({"enum": list(Phases)})]
_Mode = Annotated[UnionMode, Field(strict=False), WithJsonSchema({"enum": list(UnionMode)})]

_Reason = Annotated[str, Field(min_length=1, max_length=500)]

_EXPECTED_VALUES = {
    "level": "outside [0, 1]; give a number from 0 (exact) to 1 (top-1 only)",
    "max_kld": "expected a finite number >= 0 (nats per token)",
    "deterministic": "expected true or false",
    "phases": "expected 'all' or 'decode'",
    "union_budget": "expected a whole number of experts from 1 up, or null for no budget",
    "union_mode": "expected 'vanish' or 'redirect'",
    "governor": "expected 'act', 'observe' or 'hold'",
    "reason": "expected a text of 1 to 500 characters",
    "version": "expected the version that `GET /v1/expert_skipping` shows",
}
# A key that is not of the model, and one of half a surrogate pair, which pydantic cannot name.
_EXTRA, _NO_TEXT = "extra_forbidden", "string_unicode"
_EXPECTED = 'expected {"level": 0.5} or {"max_kld": 0.05}'


@with_config(ConfigDict(extra="forbid", strict=True))
class TargetBody(TypedDict, total=False):
    """A level or a loss bound."""

    level: _Level
    max_kld: _Loss


@with_config(ConfigDict(extra="forbid", strict=True))
class RequestBody(TargetBody, total=False):
    """What a single request asks for."""

    deterministic: bool


@with_config(ConfigDict(extra="forbid", strict=True))
class ChangeBody(TargetBody, total=False):
    """What an administrator changes."""

    phases: _Phases
    union_budget: _Experts | None
    union_mode: _Mode
    reason: _Reason
    governor: Literal["act", "observe", "hold"]


@with_config(ConfigDict(extra="forbid", strict=True))
class RollbackBody(TypedDict, total=False):
    """Why a change is undone, and the version that is to be in force until then."""

    reason: _Reason
    version: Annotated[float, Field(ge=0, le=2**53, multiple_of=1, allow_inf_nan=False)]


Body = TypeVar("Body")


@dataclass(frozen=True)
class _Schema(Generic[Body]):
    """One kind of body: its model, what it is called, what a client is told to send instead."""

    model: TypeAdapter[Body]
    what: str
    expected: str

    def read(self, content: Any) -> Body:
        """``content`` as the model has it, or ``InputError`` in one sentence."""
        try:
            return self.model.validate_python(content)
        except ValidationError as error:
            raise InputError(self._sentence(error)) from None

    def _sentence(self, error: ValidationError) -> str:
        errors = error.errors(include_url=False, include_context=False)
        unknown = sorted(
            str(one["loc"][0] if one["loc"] else one["input"])
            for one in errors
            if one["type"] == _EXTRA or (one["type"] == _NO_TEXT and not one["loc"])
        )
        if unknown:
            return f"{self.what} has unknown keys {few(unknown)}; {self.expected}"
        if not errors[0]["loc"]:
            return f"{self.what} is not a JSON object; {self.expected}"
        key = str(errors[0]["loc"][0])
        return f"{key} is {errors[0]['input']!r:.40}, {_EXPECTED_VALUES[key]}"

    def target(self, body: TargetBody) -> Target:
        """The one target that ``body`` names."""
        given = {"level", "max_kld"} & set(body)
        if len(given) != 1:
            found = "both level and max_kld" if given else "neither level nor max_kld"
            raise InputError(f"{self.what} has {found}; {self.expected}")
        return Target(body.get("level"), body.get("max_kld"))


_CHANGE = _Schema(
    TypeAdapter(ChangeBody),
    "the body",
    f'{_EXPECTED}, "phases", "union_budget" or "union_mode"',
)
_REQUEST = _Schema(
    TypeAdapter(RequestBody),
    f"{REQUEST_KEY!r}",
    f'{_EXPECTED}, "deterministic" beside it, or "off"',
)
_ROLLBACK = _Schema(
    TypeAdapter(RollbackBody), "the body", 'expected no body, or "reason" or "version"'
)
# What their models cannot say: which targets go together.
_BOTH = {"required": ["level", "max_kld"]}
_ONE = [{"required": ["level"]}, {"required": ["max_kld"]}]
CHANGE_SCHEMA: dict[str, Any] = {
    **_CHANGE.model.json_schema(),
    "minProperties": 1,
    "not": _BOTH,
}
REQUEST_SCHEMA: dict[str, Any] = {**_REQUEST.model.json_schema(), "oneOf": _ONE}
ROLLBACK_SCHEMA: dict[str, Any] = _ROLLBACK.model.json_schema()


def parse_change(body: bytes) -> PolicyChange:
    """The change in a ``PUT`` body; ``InputError`` says what is wrong with it."""
    content = _json(body, _CHANGE.expected)
    if isinstance(content, dict) and not set(content) - {"reason"}:
        raise InputError(f"the body has no key of a policy; {_CHANGE.expected}")
    return change_of(content)


def parse_rollback(body: bytes) -> tuple[str | None, int | None]:
    """Reason and version of a rollback's body, which may be empty."""
    if not body.strip():
        return None, None
    read = _ROLLBACK.read(_json(body, _ROLLBACK.expected))
    version = read.get("version")
    return read.get("reason"), None if version is None else int(version)


def _json(body: bytes, expected: str) -> Any:
    def without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if twice := repeated_keys(pairs):
            raise InputError(f"the body names a key twice: {few(twice)}; {expected}")
        return dict(pairs)

    if not body.strip():
        raise InputError(f"the body is empty; {expected}")
    try:
        # Integers of any length become floats, so that each is told in a few digits.
        return json.loads(body, object_pairs_hook=without_duplicates, parse_int=float)
    except RecursionError:
        raise InputError(f"the body is nested too deeply; {expected}") from None
    except ValueError as error:
        raise InputError(f"the body is not valid JSON ({error}); {expected}") from None


def change_of(content: Any) -> PolicyChange:
    """The change that ``content`` describes, from a body or from the command line."""
    body = _CHANGE.read(content)
    named = {"level", "max_kld"} & set(body)
    return PolicyChange(
        target=_CHANGE.target(body) if named else None,
        phases=body.get("phases"),
        union_budget=_budget(body),
        union_mode=body.get("union_mode"),
        reason=body.get("reason"),
        governor=body.get("governor"),
    )


def _budget(body: ChangeBody) -> int | None:
    if "union_budget" not in body:
        return None
    return NO_BUDGET if body["union_budget"] is None else int(body["union_budget"])


def request_target(content: Any) -> tuple[Target, bool]:
    """What a single request's ``expert_skipping`` asks for, and whether it is deterministic."""
    if content == "off":
        return Target(level=EXACT), False
    body = _REQUEST.read(content)
    return _REQUEST.target(body), body.get("deterministic", False)
