"""A Hugging Face checkpoint directory as LeanMoE reads it: config, family, manifest. No tensors."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from leanmoe.errors import CheckpointError
from leanmoe.families import Family, MoEShape, family_of
from leanmoe.families.base import ConfigError
from leanmoe.files.digest import parse_json
from leanmoe.files.output import check_name
from leanmoe.layout import LayerLayout, Layout, read_layout
from leanmoe.manifest import Manifest, read_manifest
from leanmoe.sparse.sparse_format import SparseFormat, read_sparse_format
from leanmoe.stand_ins import APPROXIMATE_KEY, read_constants

_ADVICE = "take the config of the original model"


@dataclass(frozen=True)
class Checkpoint:
    """A model directory whose ``config.json`` is of a known MoE family."""

    path: Path
    config: dict[str, Any]
    family: Family

    @cached_property
    def shape(self) -> MoEShape:
        try:
            return self.family.shape(self.config)
        except ValueError as error:
            advice = error.advice if isinstance(error, ConfigError) else _ADVICE
            raise CheckpointError(
                f"{self.path / 'config.json'} does not describe a {self.family.name} model: "
                f"{error}; {advice}"
            ) from None

    @cached_property
    def layout(self) -> Layout:
        """What single layers have of their own; ``CheckpointError`` where that cannot be."""
        file = self.path / "config.json"
        layout = read_layout(self.config, str(file))
        for layer, own in layout.layers.items():
            if layer not in self.shape.moe_layers:
                raise CheckpointError(
                    f"{file}: the layout names layer {layer}, which is no MoE layer of this model; "
                    "cut the model again"
                )
            if own.n_experts > self.shape.n_routed_experts:
                raise CheckpointError(
                    f"{file}: the layout gives layer {layer} {own.n_experts} experts, the config "
                    f"at most {self.shape.n_routed_experts}; cut the model again"
                )
        return layout

    @cached_property
    def layers(self) -> dict[int, LayerLayout]:
        """Experts and top-k of every MoE layer, by decoder layer number."""
        shape = self.shape
        usual = LayerLayout(n_experts=shape.n_routed_experts, top_k=shape.top_k)
        constant = {layer: self._with_constants(layer, ids) for layer, ids in self._constants}
        own = {**constant, **self.layout.layers}
        return {layer: own.get(layer, usual) for layer in shape.moe_layers}

    @property
    def _constants(self) -> list[tuple[int, tuple[int, ...]]]:
        file = self.path / "config.json"
        found = read_constants(self.config, str(file))
        for layer in found:
            if layer not in self.shape.moe_layers or layer in self.layout.layers:
                raise CheckpointError(
                    f"{file}: {APPROXIMATE_KEY} names layer {layer}, which is no MoE layer of this "
                    "model or has a layout of its own; cut the model again"
                )
        return list(found.items())

    def _with_constants(self, layer: int, ids: tuple[int, ...]) -> LayerLayout:
        count, top_k = self.shape.n_routed_experts, self.shape.top_k
        if ids[-1] >= count or len(ids) >= count or self.family.stacked:
            raise CheckpointError(
                f"{self.path / 'config.json'}: {APPROXIMATE_KEY} names {list(ids)} in layer "
                f"{layer}, which has experts 0 to {count - 1}, must keep one and needs a tensor "
                "for each; cut the model again"
            )
        return LayerLayout(n_experts=count, top_k=top_k, stand_ins=ids, rank=0)

    @property
    def has_stand_ins(self) -> bool:
        """Whether constants or maps stand in for experts that were removed."""
        return any(own.stand_ins for own in self.layers.values())

    @cached_property
    def packing(self) -> SparseFormat | None:
        """How its experts are packed, or ``None``; ``CheckpointError`` where that cannot be."""
        return read_sparse_format(self.config, str(self.path / "config.json"))

    @property
    def skip_layers(self) -> tuple[int, ...]:
        """The MoE layers that route, and so can skip: all but condensed ones."""
        return tuple(layer for layer, own in self.layers.items() if not own.condensed)

    def shared_expert(self, layer: int) -> str | None:
        """What the names of that MoE layer's shared expert begin with, or ``None`` without one."""
        family = self.family
        name = f"{family.block_prefix(layer)}.{family.parts.shared_expert}"
        held = family.parts.shared_expert and f"{name}.down_proj.weight" in self._other_names
        return name if held else None

    def shared_gate(self, layer: int) -> str | None:
        """The weight of the sigmoid gate on that layer's shared expert, or ``None``."""
        gate, family = self.family.parts.shared_gate, self.family
        has = gate is not None and self.shared_expert(layer) is not None
        return f"{family.block_prefix(layer)}.{gate}" if has else None

    @cached_property
    def _other_names(self) -> frozenset[str]:
        return frozenset(self.family.other_names(self.config))

    @cached_property
    def manifest(self) -> Manifest | None:
        """The manifest, or ``None`` for a checkpoint LeanMoE did not make."""
        return read_manifest(self.path)


def _is_dir(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:  # a name too long to be one
        return False


def read_object(file: Path) -> dict[str, Any]:
    """What a JSON file of a model says; ``CheckpointError`` where it is no object."""
    try:
        found = parse_json(file.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise CheckpointError(f"{file} cannot be read as JSON ({error}); fetch it again") from None
    if not isinstance(found, dict):
        raise CheckpointError(f"{file} holds no JSON object; fetch it again")
    return found


def open_checkpoint(path: Path) -> Checkpoint:
    """Read ``path/config.json`` and find its family; raise ``CheckpointError`` otherwise."""
    check_name(path)
    file = path / "config.json"
    if not _is_dir(path):
        raise CheckpointError(f"{path} is not a directory; give a Hugging Face model directory")
    if not file.is_file():
        raise CheckpointError(f"{path} has no config.json; give a Hugging Face model directory")
    config = read_object(file)
    return Checkpoint(path, config, family_of(config, str(path)))
