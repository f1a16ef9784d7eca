"""Lists of module names in a checkpoint's settings, which a cut that renumbers experts must follow.

What quantises a model says which modules it left alone: ``modules_to_not_convert``, ``ignore``,
``exclude_modules``, in config.json or in a file of the tool's own. All such lists, and tables with
names for keys, are gone through; what names no expert by its number stays as it is.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from leanmoe.checkpoint import read_object
from leanmoe.errors import CheckpointError
from leanmoe_pruning.cutting.layer_plan import LayerPlan

# Where config.json keeps such settings, and which files beside it do.
KEYS = ("quantization_config", "compression_config")
FILES = ("hf_quant_config.json", "quantize_config.json", "quant_config.json")

_NAME = re.compile(r"((?:[\w-]+\.)*layers\.(\d+)\.(?:[\w-]+\.)*experts\.)(\d+)((?:\.[\w-]+)+\*?|)")
# An expert's number anywhere else: in a pattern, or without a layer's.
_NUMBER = re.compile(r"experts(?:\.|\\\.)\(?\d")


class ModuleNames:
    """Names of the source's modules as those of the cut."""

    def __init__(self, plans: Mapping[int, LayerPlan], where: Path) -> None:
        self._where = where
        self._plans = plans
        self._moves = not all(map(_moves_none, plans.values()))

    def renumbered(self, content: Any) -> Any:
        """The same settings, with names of experts that are left under their new numbers."""
        if isinstance(content, list):
            kept = [self._renamed(one) if isinstance(one, str) else one for one in content]
            return [self.renumbered(one) for one in kept if one is not None]
        if isinstance(content, Mapping):
            named = {self._renamed(key): value for key, value in content.items()}
            return {key: self.renumbered(one) for key, one in named.items() if key is not None}
        return content

    def config(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """A ``config.json`` whose settings of quantisation follow the cut."""
        held = {key: self.renumbered(config[key]) for key in KEYS if key in config}
        return {**config, **held}

    def text(self, file: Path) -> str | None:
        """What a tool's own file says after the cut; ``None`` for files that are not one."""
        if file.name not in FILES or not self._plans:
            return None
        return json.dumps(self.renumbered(read_object(file)), indent=2, ensure_ascii=False) + "\n"

    def _renamed(self, name: str) -> str | None:
        """A module's name in the cut; ``None`` where it is gone."""
        match = _NAME.fullmatch(name)
        if match is None:
            if self._moves and _NUMBER.search(name):
                raise self._unclear(name)
            return name
        before, layer, expert, after = match.groups()
        plan = self._plans.get(int(layer))
        if plan is None:
            return name
        if plan.merge is not None:
            raise self._unclear(name)
        return _in_place_of(int(expert), plan, before, after)

    def _unclear(self, name: str) -> CheckpointError:
        return CheckpointError(
            f"{self._where} names experts by number in its settings of quantisation ({name!r}), in "
            "a way that this cut, which numbers experts anew, cannot follow; write each such "
            "module out, layers.L.….experts.E, or restore the checkpoint to plain bf16 weights"
        )


def _moves_none(plan: LayerPlan) -> bool:
    """Whether every expert that is left has its number still."""
    return plan.merge is None and plan.kept == tuple(range(len(plan.kept)))


def _in_place_of(expert: int, plan: LayerPlan, before: str, after: str) -> str | None:
    if expert not in plan.kept:
        return None
    return f"{before}{plan.kept.index(expert)}{after}"
