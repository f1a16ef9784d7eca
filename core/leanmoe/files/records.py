"""Records in JSON files, in which true is no number, though Python and pydantic take it for 1."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal, NamedTuple, TypeVar

from pydantic import BaseModel, BeforeValidator, ValidationError
from pydantic_core import PydanticCustomError

Record = TypeVar("Record", bound=BaseModel)


def read_record(kind: type[Record], content: Any) -> Record:
    """What ``parse_json`` gave as a record of that kind, no value taken for another's type.

    Read as JSON, since to pydantic only there a list may be a tuple and a key a number.
    """
    return kind.model_validate_json(json.dumps(content), strict=True)


class Fault(NamedTuple):
    """Why a record is refused: where in it, what is said of that, the value, pydantic's type."""

    place: str
    said: str
    value: Any
    type: str


def first_fault(error: ValidationError) -> Fault:
    """The first of a record's faults, whose place is empty where it is wrong as a whole."""
    first = error.errors()[0]
    # After a key that is wrong itself pydantic says so.
    place = ".".join(str(part) for part in first["loc"] if part != "[key]")
    return Fault(place, first["msg"].removeprefix("Value error, "), first["input"], first["type"])


def what_is_wrong(error: Exception, whole: str = "") -> str:
    """An error of reading a file in some words; of a record's, its first fault after its place.

    ``whole`` is what a record is called that is wrong as a whole.
    """
    if not isinstance(error, ValidationError):
        return str(error)
    fault = first_fault(error)
    return f"{fault.place or whole}: {fault.said}".removeprefix(": ")


def _whole(value: Any) -> Any:
    if isinstance(value, bool):
        raise PydanticCustomError("int_type", "Input should be a valid integer")
    return value


# The one number that a field may hold: to Literal, strict or not, true is 1.
One = Annotated[Literal[1], BeforeValidator(_whole)]
