"""The cutter: a smaller checkpoint out of a checkpoint, shard by shard.

What becomes of a MoE layer's tensors its plan says (layer_cut.py); layers for speculative
decoding are left out, everything else is copied byte for byte. All shards are read and
checked before the first byte is written; the index is written last.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from leanmoe.errors import InputError
from leanmoe.files.digest import file_digest
from leanmoe.input_orders import INPUT_ORDERS_NAME, write_input_orders
from leanmoe.layout import LAYOUT_KEY, LayerLayout, Layout, marker_name
from leanmoe.sparse.sparse_format import CONFIG_KEY
from leanmoe.stand_ins import APPROXIMATE_KEY, constants_marker_name, stand_in_name
from leanmoe.tuned_tables import carry_tables
from leanmoe_pruning.checkpoints.fp8 import scaled_weight
from leanmoe_pruning.checkpoints.opening import (
    OpenedModel,
    block_sizes,
    left_behind,
    model_files,
    tokenizer_files,
    unknown_part,
)
from leanmoe_pruning.checkpoints.shards import (
    INDEX_NAME,
    SINGLE_NAME,
    WEIGHT_SUFFIXES,
    TensorInfo,
    is_finite,
    write_index,
    write_shard,
)
from leanmoe_pruning.checkpoints.stored_type import StoredType
from leanmoe_pruning.cutting.carried_orders import carried_orders, check_summable
from leanmoe_pruning.cutting.layer_cut import LayerCut, StandInCut
from leanmoe_pruning.cutting.layer_plan import LayerPlan, layouts
from leanmoe_pruning.cutting.module_names import ModuleNames
from leanmoe_pruning.cutting.packing import Order, PackedPart, Packer
from leanmoe_pruning.cutting.pieces import Copied, Given, HeldTensors, Piece
from leanmoe_pruning.cutting.spool import SpooledReader, WeightSpool
from leanmoe_pruning.later import torch
from leanmoe_pruning.progress import Tick

_LOG = logging.getLogger(__name__)

# Which are written anew.
_OWN_FILES = ("config.json", INDEX_NAME, INPUT_ORDERS_NAME)
Plans = Mapping[int, LayerPlan]


class Cutter:
    """A cut decided and checked, not yet written."""

    def __init__(
        self,
        checkpoint: OpenedModel,
        plans: Plans,
        replaced: WeightSpool | None = None,
        input_orders: Mapping[str, torch.Tensor] | Mapping[str, Order] | None = None,
        packer: Packer | None = None,
        rank: int | None = None,
    ) -> None:
        """``input_orders`` are those of ``replaced``; where none are given the source's stay.

        With a ``rank``, experts that are not kept get stand-ins of it, which ``replaced`` holds.
        """
        self.checkpoint = checkpoint
        if replaced is None and any(plan.merge is not None for plan in plans.values()):
            check_summable(checkpoint)
        if input_orders is None:
            self._orders = carried_orders(checkpoint, plans, renamed=rank is None)
        else:
            self._orders = {name: np.asarray(order) for name, order in input_orders.items()}
        self.layouts = layouts(plans, checkpoint, rank)
        self._held = HeldTensors()
        self._packer = None if packer is None else packer.ordered_by(self._orders)
        self._cuts = {layer: self._cut(layer, plan, rank) for layer, plan in plans.items()}
        self._check_layout()
        self._names = ModuleNames(plans if rank is None else {}, checkpoint.path)
        self._names.config(checkpoint.config)  # which raises what it raises now
        self._markers = self._markers_beside_gates()
        self.reader = checkpoint.reader
        # Where the output's tensors are read: some may have been replaced.
        self._source = SpooledReader(checkpoint, replaced) if replaced else self.reader
        self._blocks = tuple(
            f"{checkpoint.family.block_prefix(layer)}." for layer in checkpoint.shape.moe_layers
        )
        self._known = frozenset(
            (*checkpoint.family.other_names(checkpoint.config), *block_sizes(checkpoint))
        )
        self.shards = self._planned_shards()

    def _planned_shards(self) -> dict[str, list[Piece]]:
        """What each file will hold; one of which nothing is left is not written."""
        planned = {
            name: [piece for info in held.values() for piece in self._pieces(info)]
            for name, held in self.reader.shards.items()
        }
        return {name: pieces for name, pieces in planned.items() if pieces}

    def _cut(self, layer: int, plan: LayerPlan, rank: int | None) -> LayerCut:
        if rank is None:
            return LayerCut(self.checkpoint, layer, plan, self._held)
        dtype = self.checkpoint.reader.info(self.checkpoint.family.gate_name(layer)).dtype
        return StandInCut(self.checkpoint, layer, plan, self._held, rank, dtype)

    def _check_layout(self) -> None:
        family = self.checkpoint.family
        if self.has_layout and not family.stops_at_layouts:
            raise InputError(
                f"layers of {family.name} cannot differ: stock vLLM passes over what it does not "
                "know of such a model and would run another one; keep equally many experts in "
                "every layer"
            )

    def _tell_of_spare_layers(self) -> None:
        if dropped := sum(map(self._is_spare, self.reader.names)):
            _LOG.warning(
                "%s: the %d tensors of its layers for speculative decoding are dropped: they have "
                "experts of their own, which this cut does not choose among",
                self.checkpoint.path,
                dropped,
            )

    def _pieces(self, info: TensorInfo) -> list[Piece]:
        if self._is_spare(info.name) or info.name in self._old_markers:
            return []
        pieces = self._packed(self._cut_pieces(info))
        marker = self._markers.get(info.name)
        return pieces if marker is None else [*pieces, marker]

    def _packed(self, pieces: list[Piece]) -> list[Piece]:
        if self._packer is None:
            return pieces
        return [part for piece in pieces for part in self._packer.pieces(piece, self._source)]

    def _cut_pieces(self, info: TensorInfo) -> list[Piece]:
        family = self.checkpoint.family
        # A scale goes where its weight goes.
        weight = scaled_weight(info.name, self.reader) or info.name
        layer = family.expert_rows(info.name)
        if layer is not None and layer in self._cuts:
            return self._cuts[layer].of_rows(info)
        part = family.parse_expert(weight)
        if part is not None and part.layer in self._cuts:
            return self._cuts[part.layer].of_expert(info, part)
        layer = family.layer_of(info.name)
        if layer in self._cuts and (shared := self._cuts[layer].of_shared(info)) is not None:
            return shared
        self._check_no_part_of_a_block(weight)
        return [Copied(info, info.name)]

    def _markers_beside_gates(self) -> dict[str, Piece]:
        """By the gate that it is written behind: what says that a layer is not as usual."""
        gate = self.checkpoint.family.gate_name
        layouts, constants = self._layout().layers, self._constants()
        return {
            **{gate(layer): self._marker(layer, own) for layer, own in layouts.items()},
            **{gate(layer): self._constants_marker(layer, ids) for layer, ids in constants.items()},
        }

    def _marker(self, layer: int, own: LayerLayout) -> Piece:
        name = marker_name(self.checkpoint.family.block_prefix(layer))
        return Given(TensorInfo(name, StoredType.F32, (2,)), (own.n_experts, own.top_k))

    def _constants_marker(self, layer: int, ids: tuple[int, ...]) -> Piece:
        family = self.checkpoint.family
        one = stand_in_name(family, layer, ids[0], "approx_value")
        dtype = self.checkpoint.reader.info(family.gate_name(layer)).dtype
        size = (self.checkpoint.shape.hidden_size,)
        name = constants_marker_name(family.block_prefix(layer), ids)
        return Copied(TensorInfo(name, dtype, size), one)

    @property
    def _old_markers(self) -> set[str]:
        prefix = self.checkpoint.family.block_prefix
        return {marker_name(prefix(layer)) for layer in self.checkpoint.layout.layers} | {
            constants_marker_name(prefix(layer), own.stand_ins)
            for layer, own in self.checkpoint.layers.items()
            if own.stand_ins
        }

    def _is_spare(self, name: str) -> bool:
        layer = self.checkpoint.family.layer_of(name)
        return layer is not None and layer >= self.checkpoint.shape.n_layers

    def _check_no_part_of_a_block(self, name: str) -> None:
        if name.startswith(self._blocks) and name not in self._known:
            raise unknown_part(self.checkpoint.path, name)

    @property
    def has_layout(self) -> bool:
        """Whether the output needs a runtime that knows layers that differ."""
        return bool(self._layout().layers)

    @property
    def is_packed(self) -> bool:
        """Whether the output needs a runtime that knows packed experts."""
        return self._packer is not None

    @property
    def loads_in_stock(self) -> bool:
        """Whether engines load the output that know nothing of LeanMoE."""
        return not (self.has_layout or self.is_packed or self.has_stand_ins)

    @property
    def n_read(self) -> int:
        """Tensors that ``validate`` reads."""
        return len(self.reader.names)

    @property
    def n_written(self) -> int:
        """Tensors that ``write`` writes: fewer where experts go, more where matrices are packed."""
        return sum(map(len, self.shards.values()))

    def validate(self, tick: Tick) -> None:
        """Read every source tensor; raise ``CheckpointError`` at the first NaN or infinity."""
        self._tell_of_spare_layers()
        self.reader.validate(tick)

    @property
    def weight_bytes(self) -> int:
        """Bytes of weights the output will hold."""
        return sum(piece.info.nbytes for pieces in self.shards.values() for piece in pieces)

    @property
    def dense_bytes(self) -> int:
        """Bytes of weights it would hold with no matrix packed."""
        infos = {
            one.info.name: one.info
            for pieces in self.shards.values()
            for piece in pieces
            for one in (piece.dense if isinstance(piece, PackedPart) else piece,)
        }
        return sum(info.nbytes for info in infos.values())

    @property
    def size_notes(self) -> tuple[str, ...]:
        """What to say where packing makes the files larger: few zeros, and a mask for all."""
        packed, dense = self.weight_bytes, self.dense_bytes
        if packed <= dense:
            return ()
        return (
            f"packed it takes {packed / 1e6:.1f} MB of weights and dense {dense / 1e6:.1f} MB: too "
            "few weights are zero for what it takes to say which; keep it dense",
        )

    def write(self, directory: Path, tick: Tick) -> dict[str, str]:
        """Write the lean checkpoint without its manifest; return the digest of each file."""
        self._tell_of_what_stays_behind()
        digests = dict(self._copy_side_files(directory))
        digests["config.json"] = self._write_config(directory)
        if self._orders and self._packer is None:
            write_input_orders(directory, self._orders, self.checkpoint.shape.hidden_size)
            digests[INPUT_ORDERS_NAME] = file_digest(directory / INPUT_ORDERS_NAME)
        counts = {own.n_computed for own in self.layouts.values()}
        carry_tables(self.checkpoint.path, directory, counts)
        for name, pieces in self.shards.items():
            digests[name] = self._write_shard(directory / name, pieces, tick)
        if list(self.shards) != [SINGLE_NAME]:
            plan = {name: [piece.info for piece in held] for name, held in self.shards.items()}
            write_index(directory, plan)
            digests[INDEX_NAME] = file_digest(directory / INDEX_NAME)
        return digests

    def _write_shard(self, path: Path, pieces: list[Piece], tick: Callable[[], None]) -> str:
        def tensors() -> Iterator[torch.Tensor]:
            for piece in pieces:
                tensor = piece.read(self._source)
                if not is_finite(tensor):
                    raise self._too_large(piece.info)
                yield tensor
                tick()

        return write_shard(path, [piece.info for piece in pieces], tensors())

    def _too_large(self, info: TensorInfo) -> InputError:
        what, advice = "a constant of the plan", "correct the plan"
        if self._source is not self.reader:
            what, advice = "a new value", "convert the model to a wider type first"
        return InputError(
            f"{info.name} would hold infinity: {what} is too large for {info.dtype}; {advice}"
        )

    def _write_config(self, directory: Path) -> str:
        config = self._config()
        text = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
        (directory / "config.json").write_text(text, encoding="utf-8")
        return file_digest(directory / "config.json")

    def _config(self) -> dict[str, Any]:
        """One number of experts for all layers where there is one, else the layout beside it."""
        source, layout = self.checkpoint, self._layout()
        config = source.family.cut_config({**source.config}, self._most)
        config.pop(LAYOUT_KEY, None)
        if constants := self._constants():
            config[APPROXIMATE_KEY] = {str(i): list(ids) for i, ids in constants.items()}
        _say_packing_(config, source, self._packer)
        config = self._names.config(config)
        return {**config, LAYOUT_KEY: layout.to_config()} if layout.layers else config

    @property
    def _most(self) -> int:
        """The count in the config: what its classes check, groups equally large among it."""
        shape = self.checkpoint.shape
        most = max(shape.least_keep, *(own.n_experts for own in self.layouts.values()))
        return -(-most // shape.n_groups) * shape.n_groups

    def _layout(self) -> Layout:
        usual, constants = self._usual, self._constants()
        layers = self.layouts.items()
        return Layout(layers={i: own for i, own in layers if own != usual and i not in constants})

    @property
    def _usual(self) -> LayerLayout:
        return LayerLayout(n_experts=self._most, top_k=self.checkpoint.shape.top_k)

    def _constants(self) -> dict[int, tuple[int, ...]]:
        """Layers that differ from usual ones by constants alone, which vLLM 0.33 has words for."""
        return {
            layer: own.stand_ins
            for layer, own in self.layouts.items()
            if own.stand_ins is not None
            and own == self._usual.model_copy(update={"stand_ins": own.stand_ins, "rank": 0})
        }

    @property
    def has_stand_ins(self) -> bool:
        return any(own.stand_ins for own in self.layouts.values())

    def _copy_side_files(self, directory: Path) -> Iterator[tuple[str, str]]:
        """Tokenizer, chat template, generation settings, licence: all that is not weights."""
        for file in model_files(self.checkpoint.path):
            if file.suffix in WEIGHT_SUFFIXES or file.name in _OWN_FILES:
                continue
            yield _copied(file, directory, file.name, self._names.text(file))
        for file in tokenizer_files(self.checkpoint.path):
            yield _copied(file, directory, f"{file.parent.name}/{file.name}")

    def _tell_of_what_stays_behind(self) -> None:
        left = left_behind(self.checkpoint.path, (*self.reader.shards, *_OWN_FILES))
        if left:
            _LOG.warning("%s: not copied: %s", self.checkpoint.path, ", ".join(left))


def _copied(file: Path, directory: Path, name: str, text: str | None = None) -> tuple[str, str]:
    """Copy a file, or ``text`` in its place, under a name of one or two parts; with the digest."""
    target = directory / name
    target.parent.mkdir(exist_ok=True)
    if text is None:
        shutil.copyfile(file, target)
    else:
        target.write_text(text, encoding="utf-8")
    return name, file_digest(target)


def _say_packing_(config: dict[str, Any], source: OpenedModel, packer: Packer | None) -> None:
    """Let a config say how experts are packed, or what it said before they were."""
    if source.packing is not None:
        config.pop(CONFIG_KEY)
        if source.packing.inner is not None:
            config[CONFIG_KEY] = source.packing.inner
    if packer is not None:
        config[CONFIG_KEY] = packer.how.to_config()
