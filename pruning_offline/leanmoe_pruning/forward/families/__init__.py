"""How each family's layers are computed, one file each, imported when a model is first run."""

from __future__ import annotations

from importlib import import_module

from leanmoe_pruning.forward.families.base import ForwardFamily


def forward_family(name: str) -> ForwardFamily:
    """What the module of that name says; commands that only read bundles start without it."""
    found: ForwardFamily = import_module(f"{__name__}.{name}").FORWARD
    return found
