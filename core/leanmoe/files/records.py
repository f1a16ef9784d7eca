"""Records in JSON files, in which true is no number, though Python and pydantic take it for 1."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ValidationError
from pydantic_core import PydanticCustomError

Record = TypeVar("Record", bound=BaseModel)


def read_record(kind: type[Record], content: Any) -> Record:
    """What ``parse_json`` gave as a record of that kind, no value taken for another's type.

    Read as JSON, since to pydantic only there a list may be a tuple and a key a number.
    """
    return kind.model_validate_json(json.dumps(content), strict=True)


def what_is_wrong(error: Exception) -> str:
    """An error of reading a file in some words; of a record's, its first with the place."""
    if not isinstance(error, ValidationError):
        return str(error)
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"])
    said = first["msg"].removeprefix("Value error, ")
    return f"{place}: {said}" if place else said


def _whole(value: Any) -> Any:
    if isinstance(value, bool):
        raise PydanticCustomError("int_type", "Input should be a valid integer")
    return value


# The one number that a field may hold: to Literal, strict or not, true is 1.
One = Annotated[Literal[1], BeforeValidator(_whole)]
