"""vLLM's ``--config FILE``, read before vLLM does: what it may not hold, and what is no such file.

vLLM takes its keys for arguments of its own, and an argument on its command line before them, where
``leanmoe serve`` puts port and seed: those of a file would be passed over in silence.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from leanmoe.errors import InputError

_OPTION = "--config"
# vLLM's own option too, and given on only where a user gives it.
_SHARED = "--host"


def check_config_files(argv: Sequence[str], own: Collection[str]) -> None:
    """``InputError`` where a configuration in ``argv`` cannot be read or names ``own`` options."""
    for file in _named(argv):
        content = _read(file)
        given = {f"--{str(key).replace('_', '-')}": str(key) for key in content}
        if ours := sorted(set(given) & set(own) - {_SHARED}):
            names = ", ".join(given[option] for option in ours)
            raise InputError(
                f"{_OPTION} {file} has {names}, and holds vLLM's arguments only; give "
                f"{', '.join(ours)} on the command line of leanmoe serve"
            )


def _named(argv: Sequence[str]) -> Iterator[Path]:
    for place, argument in enumerate(argv):
        name, equals, value = argument.partition("=")
        if name != _OPTION:
            continue
        if equals:
            yield Path(value)
        elif place + 1 < len(argv):
            yield Path(argv[place + 1])


def _read(file: Path) -> dict[Any, Any]:
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        said = " ".join(str(error).split())
        raise InputError(f"{_OPTION} {file} cannot be read: {said}") from None
    if not isinstance(content, dict):
        raise InputError(
            f"{_OPTION} {file} holds {type(content).__name__}, expected YAML lines such as "
            "`max-model-len: 4096`"
        )
    return content
