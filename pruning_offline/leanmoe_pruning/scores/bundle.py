"""The score bundle on disk: one directory per (model, data) pair, content hashed.

``scores.json`` names model, data and the digest of every file beside it;
``layer-NNN.safetensors`` holds what decisions follow from (``LayerScores`` says what:
``router_logits`` [T, E], ``output_gram`` [T, P], ``ratios`` w_j/w_max [T, K-1],
``output_norm`` [T, K], ``max_activation`` [E], ``moments.*``), ``summary.safetensors``
what people look at (``token_counts`` and ``gate_mass`` [L, E], ``median_beta`` [L]).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict
from safetensors.torch import load_file

from leanmoe.checkpoint import Checkpoint
from leanmoe.errors import InputError
from leanmoe.provenance import (
    atomic_write_json,
    bytes_digest,
    file_digest,
    parse_json,
    tool_versions,
)
from leanmoe_pruning.checkpoints.shards import write_tensors
from leanmoe_pruning.data import DataSet
from leanmoe_pruning.forward.routing import RouterRule
from leanmoe_pruning.scores.gram import packed_size
from leanmoe_pruning.scores.moments import Moments
from leanmoe_pruning.scores.scoring import LayerScores, median_beta

DESCRIPTION = "scores.json"
SUMMARY = "summary.safetensors"
_MOMENTS = "moments."


class BundleDescription(BaseModel):
    """Which model and which tokens a bundle speaks of."""

    model_config = ConfigDict(extra="forbid")

    schema_version: Literal[2] = 2
    family: str
    source: dict[str, str]
    data: str
    data_digest: str
    layout: list[tuple[int, int]]
    compute: str
    # Tokens per layer with a Gram matrix: token floor(i * tokens / gram_tokens), i from 0.
    gram_tokens: int
    moe_layers: list[int]
    n_routed_experts: int
    top_k: int
    tools: dict[str, str]
    files: dict[str, str]

    def digest(self) -> str:
        text = json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
        return bytes_digest([text.encode()])


def layer_file(layer: int) -> str:
    """The name of one layer's file."""
    return f"layer-{layer:03d}.safetensors"


def write_bundle(
    directory: Path,
    checkpoint: Checkpoint,
    source: dict[str, str],
    data: DataSet,
    layers: Iterable[LayerScores],
    compute: torch.dtype,
) -> BundleDescription:
    """Write a whole bundle, layer by layer as the scores come, the description last."""
    shape = checkpoint.shape
    files: dict[str, str] = {}
    summary = _Summary()
    sampled = 0
    for scores in layers:
        files[layer_file(scores.layer)] = _write_layer(directory, scores)
        summary.add(scores)
        sampled = len(scores.output_gram_TP)
    files[SUMMARY] = write_tensors(directory / SUMMARY, summary.tensors())
    description = BundleDescription(
        family=checkpoint.family.name,
        source=source,
        data=data.spec,
        data_digest=data.digest(),
        layout=data.layout,
        compute=str(compute).removeprefix("torch."),
        gram_tokens=sampled,
        moe_layers=list(shape.moe_layers),
        n_routed_experts=shape.n_routed_experts,
        top_k=shape.top_k,
        tools=tool_versions(),
        files=files,
    )
    content = {"digest": description.digest(), **description.model_dump(mode="json")}
    atomic_write_json(directory / DESCRIPTION, content)
    return description


def _write_layer(directory: Path, scores: LayerScores) -> str:
    tensors = {
        "router_logits": scores.router_logits_TE.float(),
        "output_gram": scores.output_gram_TP,
        "ratios": scores.routing().ratios[:, 1:].contiguous(),
        "output_norm": scores.output_norm_TK,
        "max_activation": scores.max_activation_E,
        **{f"{_MOMENTS}{name}": held for name, held in scores.moments.tensors().items()},
    }
    if scores.rule.correction_E is not None:
        tensors["router_correction"] = scores.rule.correction_E
    return write_tensors(directory / layer_file(scores.layer), tensors)


class _Summary:
    """Small per-layer figures gathered while the layers pass."""

    def __init__(self) -> None:
        self._counts: list[torch.Tensor] = []
        self._mass: list[torch.Tensor] = []
        self._betas: list[float] = []

    def add(self, scores: LayerScores) -> None:
        self._counts.append(scores.token_counts())
        self._mass.append(scores.gate_mass())
        self._betas.append(median_beta(scores.routing()))

    def tensors(self) -> dict[str, torch.Tensor]:
        return {
            "token_counts": torch.stack(self._counts),
            "gate_mass": torch.stack(self._mass),
            "median_beta": torch.tensor(self._betas, dtype=torch.float64),
        }


class ScoreBundle:
    """A bundle opened for reading, its own digests checked."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.description = _read_description(directory)
        for name, stated in self.description.files.items():
            self._check_file(name, stated)

    def _check_file(self, name: str, stated: str) -> None:
        path = self.directory / name
        if Path(name).name != name or not path.is_file():
            raise InputError(f"score bundle {self.directory} lacks {name}; score again")
        found = file_digest(path)
        if found != stated:
            raise InputError(
                f"{path} does not match its bundle (found {found}, expected {stated}); score again"
            )

    def check_model(self, checkpoint: Checkpoint, source: dict[str, str]) -> None:
        """Raise unless the bundle was made from exactly this model."""
        held = self.description.source
        wrong = sorted(name for name in held | source if held.get(name) != source.get(name))
        if wrong:
            raise InputError(
                f"score bundle {self.directory} was made from another model than "
                f"{checkpoint.path} ({wrong[0]} differs); score this model"
            )

    def layers(self, rule: RouterRule) -> Iterator[LayerScores]:
        """Scores layer by layer; ``rule`` is the model's."""
        for layer in self.description.moe_layers:
            yield self._layer(layer, rule)

    def _layer(self, layer: int, rule: RouterRule) -> LayerScores:
        held = load_file(self.directory / layer_file(layer))
        gram_TP = held["output_gram"]
        if gram_TP.shape[1] != packed_size(self.description.n_routed_experts):
            raise InputError(f"{self.directory / layer_file(layer)} has a Gram of wrong size")
        moments = {
            name.removeprefix(_MOMENTS): tensor
            for name, tensor in held.items()
            if name.startswith(_MOMENTS)
        }
        return LayerScores(
            layer,
            replace(rule, correction_E=held.get("router_correction")),
            held["router_logits"],
            gram_TP,
            held["output_norm"],
            held["max_activation"],
            Moments(**moments),
        )


def _read_description(directory: Path) -> BundleDescription:
    path = directory / DESCRIPTION
    if not path.is_file():
        raise InputError(f"{directory} is not a score bundle: it has no {DESCRIPTION}; score again")
    try:
        content: dict[str, Any] = parse_json(path.read_text(encoding="utf-8"))
        stated = content.pop("digest", None)
        description = BundleDescription.model_validate(content)
    except (ValueError, AttributeError, TypeError, OSError) as error:
        line = str(error).splitlines()[0]
        raise InputError(f"{path} is not a score description ({line}); score again") from None
    if stated != description.digest():
        raise InputError(f"{path} does not match its own digest: it was edited; score again")
    return description
