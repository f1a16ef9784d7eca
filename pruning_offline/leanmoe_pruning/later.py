"""torch and parts of SciPy, imported when they are first asked for something.

What ``leanmoe plan`` stands on takes torch from here: sizes come from headers, so that command
works where it is not installed, and starts without the seconds that its import takes. The
solvers of SciPy add a fifth to what importing torch takes, and most runs solve nothing.
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
    from scipy import optimize as optimize
    from scipy import sparse as sparse
else:
    torch = _Later("torch")
    optimize, sparse = _Later("scipy.optimize"), _Later("scipy.sparse")
