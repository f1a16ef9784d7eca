"""What LeanMoE builds on in vLLM, as data, and whether what is installed still has it.

The parts keep tables of ``Seam`` and ``Passage``. Two readers hold them against vLLM: ``check``
here at start, and packaging/vllm_check.py on the sources of a wheel that nobody installed. A
module's name is a string in these tables, so that both read the same words.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Self, TypeVar

from leanmoe.errors import RuntimeSeamError
from leanmoe.extras import engine_hint

_OURS = "leanmoe"  # the attribute of what stands in the place of one of vLLM's
Replacement = TypeVar("Replacement")


@dataclass(frozen=True)
class Seam:
    """One symbol of vLLM, and what of it our code relies on.

    ``modules`` names where it is: the newest place first, then where older versions have it.
    """

    modules: tuple[str, ...]
    name: str  # dotted within the module: ``Class.method``
    leading: tuple[str, ...] = ()  # its first parameters, in this order
    takes: tuple[str, ...] = ()  # parameters anywhere
    members: tuple[str, ...] = ()  # methods, fields or enum members of a class
    attributes: tuple[str, ...] = ()  # members, or set on instances, which only sources tell
    base: str = ""  # the name of a class among its bases

    @classmethod
    def at(cls, module: str, name: str, **parts: Any) -> Self:
        """One that every supported version has in the same place."""
        return cls((module,), name, **parts)


@dataclass(frozen=True)
class Passage:
    """Words of a source file, or of one file of a folder, that our code relies on.

    ``texts`` are alternatives, one for each way supported versions put it; spaces do not count.
    """

    path: str  # below the folder of the package; a folder ends in a slash
    texts: tuple[str, ...]
    why: str
    present: bool = True  # False: none of the files may hold any of them


def find(seam: Seam) -> Any:
    """The symbol itself, from the first of its modules that this vLLM has."""
    for module in seam.modules:
        try:
            found: Any = import_module(module)
        except ModuleNotFoundError as error:
            if not error.name or not f"{module}.".startswith(f"{error.name}."):
                raise  # the module is there, something it needs is not
            continue
        for part in seam.name.split("."):
            found = getattr(found, part, None)
        if found is not None:
            return found
    raise RuntimeSeamError(
        f"vLLM has no {seam.name} in {' or '.join(seam.modules)}: the seam moved; "
        f"for the vLLM that this was made for run {engine_hint()}"
    )


def as_ours(replacement: Replacement) -> Replacement:
    """``replacement``, known from now on as ours in the place of one of vLLM's."""
    setattr(replacement, _OURS, True)
    return replacement


def is_ours(found: Any) -> bool:
    """Whether ``found`` stands in the place of one of vLLM's."""
    return bool(getattr(found, _OURS, False))


def difference(seam: Seam, found: Any) -> str | None:
    """How a symbol differs from what its seam says, or ``None``. Ours in its place passes."""
    if is_ours(found):
        return None
    taken = tuple(inspect.signature(found).parameters) if seam.leading or seam.takes else ()
    return (
        parameter_difference(seam, taken)
        or base_difference(seam, [one.__name__ for one in getattr(found, "__mro__", ())])
        or member_difference(seam, [name for name in seam.members if _has(found, name)])
    )


def parameter_difference(seam: Seam, taken: tuple[str, ...]) -> str | None:
    """What a signature of these parameters lacks."""
    first = taken[: len(seam.leading)]
    if first != seam.leading:
        return f"{seam.name} takes ({', '.join(first)}), expected ({', '.join(seam.leading)})"
    absent = [name for name in seam.takes if name not in taken]
    return f"{seam.name} takes no {absent[0]!r}" if absent else None


def member_difference(seam: Seam, held: Iterable[str]) -> str | None:
    """What a class with these members lacks."""
    absent = [name for name in seam.members if name not in held]
    return f"{seam.name} has no {absent[0]!r}" if absent else None


def base_difference(seam: Seam, bases: Iterable[str]) -> str | None:
    """What a class of these bases is not."""
    return None if not seam.base or seam.base in bases else f"{seam.name} is no {seam.base}"


def _has(found: Any, name: str) -> bool:
    """Fields without a default are annotations and nothing else."""
    mro = getattr(found, "__mro__", ())
    return hasattr(found, name) or any(
        name in vars(one).get("__annotations__", {})
        for one in (*mro, found)
        if hasattr(one, "__dict__")
    )


def check(seams: Iterable[Seam]) -> None:
    """Raise ``RuntimeSeamError`` naming the first symbol that is not as the tables say."""
    for seam in seams:
        if (problem := difference(seam, find(seam))) is not None:
            raise RuntimeSeamError(
                f"vLLM's {problem}: the seam moved; for the vLLM that this was made for run "
                f"{engine_hint()}"
            )
