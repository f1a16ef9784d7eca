"""Every error LeanMoE raises on purpose.

    LeanMoEError            exit 1: the work failed
    ├── InputError          exit 2: what the user gave cannot be used
    │   ├── CheckpointError    a model directory, its files or its manifest
    │   ├── LevelError         a skip level outside its range or without betas
    │   ├── DataError          a --data specification
    │   └── ConflictError      what was asked for rests on a state that is no longer there
    ├── OutputError         exit 1: the disk is full, the target exists
    ├── CheckError          exit 1: the work is done, its result is not good enough
    └── RuntimeSeamError    exit 1: vLLM is not what the plugin was written for

A message is one sentence: what, where, found, expected, what to do.
"""

from __future__ import annotations

from typing import Any


class LeanMoEError(Exception):
    """The work failed for a reason the user can read."""

    exit_code = 1


class InputError(LeanMoEError):
    """What the user gave cannot be used; nothing was written."""

    exit_code = 2


class CheckpointError(InputError):
    """A model directory, one of its files or its manifest is not usable."""


class LevelError(InputError):
    """A skip level is out of range, or the model has no betas for it."""


class DataError(InputError):
    """A ``--data`` specification names nothing usable."""


class ConflictError(InputError):
    """What was asked for rests on a state that is no longer there."""


class OutputError(LeanMoEError):
    """The output could not be written; the old one, if any, is untouched."""


class CheckError(LeanMoEError):
    """The work is done and its ``result`` is printed, but a check asked for does not accept it."""

    def __init__(self, message: str, result: dict[str, Any]) -> None:
        super().__init__(message)
        self.result = result


class RuntimeSeamError(LeanMoEError):
    """A vLLM symbol, version or layer is not what the plugin was written for."""
