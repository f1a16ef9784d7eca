"""vLLM's Python sources as they lie in a wheel, a source distribution or a folder: read, not run.

Names are followed through ``from ... import``, lazily exported tables and base classes, so that a
symbol counts as found where a user would import it from.
"""

from __future__ import annotations

import ast
import re
import tarfile
import zipfile
from collections.abc import Iterator, Mapping
from email import message_from_string
from functools import cache
from pathlib import Path
from typing import NamedTuple

PACKAGE = "vllm"
Function = ast.FunctionDef | ast.AsyncFunctionDef
# What a module binds: definitions, or a module and a name in it (none: the module itself).
Names = dict[str, ast.AST | tuple[str, str]]
_parsed = cache(ast.parse)
# More steps than any chain of re-exports has: a circle ends here.
_STEPS = 12


class Found(NamedTuple):
    """A definition, and where it stands."""

    path: str
    node: ast.AST

    @property
    def place(self) -> str:
        return f"{self.path}:{getattr(self.node, 'lineno', 1)}"


def open_sources(path: Path) -> Sources:
    """The sources in ``path``; ``ValueError`` says why there are none."""
    try:
        if path.is_dir():
            texts = _from_folder(path)
        elif zipfile.is_zipfile(path):
            texts = _from_zip(path)
        elif tarfile.is_tarfile(path):
            texts = _from_tar(path)
        else:
            raise ValueError(f"{path} is neither a wheel, a source distribution nor a folder")
    except (OSError, EOFError, zipfile.BadZipFile, tarfile.TarError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from None
    if f"{PACKAGE}/__init__.py" not in texts:
        raise ValueError(
            f"{path} holds no {PACKAGE}/__init__.py; give a wheel or source distribution of vLLM, "
            f"or the folder that {PACKAGE}/ lies in"
        )
    return Sources(texts)


def _is_wanted(name: str) -> bool:
    """Sources of the package, and what tells its version."""
    parts = name.split("/")
    if parts[0] == PACKAGE:
        return name.endswith(".py")
    is_metadata = parts[0].startswith(f"{PACKAGE}-") or parts[0].startswith(f"{PACKAGE}_cpu-")
    return name == "PKG-INFO" or (is_metadata and parts[1:] == ["METADATA"])


def _from_folder(folder: Path) -> dict[str, str]:
    files = [*folder.glob(f"{PACKAGE}/**/*.py"), *folder.glob(f"{PACKAGE}*.dist-info/METADATA")]
    named = {file.relative_to(folder).as_posix(): file for file in files}
    return {
        name: file.read_text(encoding="utf-8", errors="replace")
        for name, file in named.items()
        if _is_wanted(name)
    }


def _from_zip(path: Path) -> dict[str, str]:
    with zipfile.ZipFile(path) as archive:
        names = [name for name in archive.namelist() if _is_wanted(name)]
        return {name: archive.read(name).decode("utf-8", "replace") for name in names}


def _from_tar(path: Path) -> dict[str, str]:
    texts = {}
    with tarfile.open(path) as archive:
        for member in archive:
            name = member.name.partition("/")[2]  # below NAME-VERSION/
            if member.isfile() and _is_wanted(name) and (file := archive.extractfile(member)):
                texts[name] = file.read().decode("utf-8", "replace")
    return texts


class Sources:
    """The files of one vLLM by their names, and what they define."""

    def __init__(self, texts: Mapping[str, str]) -> None:
        self.texts = texts
        self._names = cache(self._bindings)

    def version(self) -> str | None:
        """What its metadata says; a bare tree says nothing."""
        for name, text in self.texts.items():
            if name == "PKG-INFO" or name.endswith("/METADATA"):
                return message_from_string(text)["Version"]
        return None

    def module(self, name: str) -> str | None:
        """The file of a dotted module name."""
        base = name.replace(".", "/")
        for path in (f"{base}.py", f"{base}/__init__.py"):
            if path in self.texts:
                return path
        return None

    def find(self, module: str, name: str, steps: int = _STEPS) -> Found | None:
        """The definition of a dotted ``name`` as seen from ``module``."""
        path = self.module(module)
        if path is None or not steps:
            return None
        if not name:
            return Found(path, ast.Module([], []))
        first, _, rest = name.partition(".")
        names = self._names(path)
        bound = names.get(first) or self._through_stars(names, first, steps)
        if bound is None:
            return self.find(f"{module}.{first}", rest, steps - 1)
        if isinstance(bound, tuple):
            return self.find(bound[0], ".".join(filter(None, [bound[1], rest])), steps - 1)
        return self.member(Found(path, bound), rest) if rest else Found(path, bound)

    def _through_stars(self, names: Names, name: str, steps: int) -> tuple[str, str] | None:
        """The module that brings a name by ``from module import *``."""
        starred = (bound for key, bound in names.items() if key.startswith("*"))
        for bound in starred:
            if isinstance(bound, tuple) and self.find(bound[0], name, steps - 1):
                return bound[0], name
        return None

    def member(self, owner: Found, name: str) -> Found | None:
        """What a class or one of its bases defines under ``name``."""
        for one in self.bases(owner):
            if (node := _in_body(one.node.body, name)) is not None:  # type: ignore[attr-defined]
                return Found(one.path, node)
        return None

    def bases(self, owner: Found, steps: int = _STEPS) -> Iterator[Found]:
        """The class itself and its bases, as far as this package defines them."""
        if not isinstance(owner.node, ast.ClassDef) or not steps:
            return
        yield owner
        module = owner.path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        for base in owner.node.bases:
            found = self.find(module, ast.unparse(base))
            if found is not None:
                yield from self.bases(found, steps - 1)

    def sets(self, owner: Found, name: str) -> bool:
        """Whether a class defines ``name``, or a method of it puts it on its instances."""
        return self.member(owner, name) is not None or any(
            _is_put(node, name) for one in self.bases(owner) for node in ast.walk(one.node)
        )

    def elsewhere(self, name: str) -> list[str]:
        """Where a top-level class, function or name of these letters is defined."""
        first = re.escape(name.partition(".")[0])
        pattern = re.compile(rf"^(?:class|def|async def) {first}\b|^{first}\b[^=\n]*=", re.M)
        return [
            f"{path}:{text.count(chr(10), 0, match.start()) + 1}"
            for path, text in sorted(self.texts.items())
            if path.endswith(".py") and (match := pattern.search(text))
        ]

    def _bindings(self, path: str) -> Names:
        """What a module's names are; a star stands with its module's name behind it."""
        names: Names = {}
        package = path.removesuffix(".py").split("/")[:-1]
        for node in _statements(_parsed(self.texts[path]).body):
            if isinstance(node, ast.Import):
                names |= {one.asname: (one.name, "") for one in node.names if one.asname}
            elif isinstance(node, ast.ImportFrom):
                source = _source(node, package)
                for alias in node.names:
                    key = f"*{source}" if alias.name == "*" else alias.asname or alias.name
                    names[key] = (source, alias.name)
            else:
                names |= dict.fromkeys(_defined(node), node)
                names |= {name: at for name, at in _exported(node, package) if name not in names}
        return names


def _statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Those of a module, also under its conditions."""
    for node in body:
        yield node
        for part in ("body", "orelse", "finalbody"):
            if isinstance(node, ast.If | ast.Try | ast.With):
                yield from _statements(getattr(node, part, []))
        for handler in getattr(node, "handlers", []):
            yield from _statements(handler.body)


def _source(node: ast.ImportFrom, package: list[str]) -> str:
    above = package[: len(package) - node.level + 1] if node.level else []
    return ".".join([*above, *filter(None, [node.module])])


def _defined(node: ast.stmt) -> Iterator[str]:
    if isinstance(node, ast.ClassDef | Function):
        yield node.name
    elif isinstance(node, ast.Assign | ast.AnnAssign):
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        yield from (target.id for target in targets if isinstance(target, ast.Name))


def _exported(node: ast.stmt, package: list[str]) -> Iterator[tuple[str, tuple[str, str]]]:
    """Entries such as ``"LLM": ".entrypoints.llm:LLM"``, which a module's __getattr__ imports."""
    value = getattr(node, "value", None)
    if not isinstance(value, ast.Dict):
        return
    for key, at in zip(value.keys, value.values, strict=True):
        if isinstance(key, ast.Constant) and isinstance(at, ast.Constant):
            place, _, name = str(at.value).partition(":")
            if place.startswith(".") and name:
                yield str(key.value), (".".join([*package, place[1:]]), name)


def _in_body(body: list[ast.stmt], name: str) -> ast.stmt | None:
    """The last definition that is no overload, as an interpreter would keep it."""
    found = None
    for node in _statements(body):
        if name in _defined(node) and "overload" not in _decorators(node):
            found = node
    return found


def _decorators(node: ast.stmt) -> list[str]:
    return [ast.unparse(one).split(".")[-1] for one in getattr(node, "decorator_list", [])]


def _is_put(node: ast.AST, name: str) -> bool:
    if isinstance(node, ast.Attribute):
        is_own = isinstance(node.value, ast.Name) and node.value.id == "self"
        return is_own and node.attr == name and isinstance(node.ctx, ast.Store)
    return (
        isinstance(node, ast.Call)
        and ast.unparse(node.func) in ("self.register_buffer", "object.__setattr__")
        and any(isinstance(one, ast.Constant) and one.value == name for one in node.args)
    )


def parameters(node: ast.AST) -> tuple[str, ...] | None:
    """The parameters' names in the order of ``inspect.signature``; ``None`` for what takes none."""
    if not isinstance(node, Function):
        return None
    given = node.args
    several = [given.vararg] if given.vararg else []
    named = [given.kwarg] if given.kwarg else []
    every = [*given.posonlyargs, *given.args, *several, *given.kwonlyargs, *named]
    return tuple(one.arg for one in every)


def imported(file: Path) -> Iterator[tuple[int, str, str]]:
    """Line, module and name of everything a file of ours takes from vLLM, in functions too."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and f"{node.module}.".startswith(f"{PACKAGE}."):
            yield from ((node.lineno, str(node.module), alias.name) for alias in node.names)
