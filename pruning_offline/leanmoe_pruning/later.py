"""torch, imported when it is first asked for something.

What ``leanmoe plan`` stands on takes it from here: sizes come from headers, so that command works
where torch is not installed, and starts without the seconds that its import takes.
"""

from __future__ import annotations

from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any


class _Later(ModuleType):
    def __getattr__(self, name: str) -> Any:
        return getattr(import_module(self.__name__), name)


if TYPE_CHECKING:
    import torch as torch
else:
    torch = _Later("torch")
