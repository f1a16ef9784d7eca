"""The score bundle on disk: one directory per (model, data) pair, content hashed.

``scores.json`` names model, data and the digest of every file beside it;
``layer-NNN.safetensors`` holds what decisions follow from (``LayerScores`` says what:
``router_logits`` [T, E], ``output_gram`` [T, P], ``ratios`` w_j/w_max [T, K-1],
``output_norm`` [T, K], ``max_activation`` and ``peak_output`` [E], ``moments.*``, and
``token_counts``, ``gate_mass`` [E] and ``median_beta``), ``summary.safetensors`` the last three
of all layers. ``effects-NNN.safetensors`` holds ``effects`` [S, E] where they were asked for.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict
from safetensors import safe_open
from safetensors.torch import load_file

from leanmoe.checkpoint import Checkpoint
from leanmoe.errors import InputError
from leanmoe.files.digest import bytes_digest, file_digest, parse_json, tool_versions
from leanmoe.files.output import atomic_write_json
from leanmoe.files.records import read_record, what_is_wrong
from leanmoe_pruning.checkpoints.shards import write_tensors
from leanmoe_pruning.data import DataSet
from leanmoe_pruning.forward.routing import RouterRule
from leanmoe_pruning.scores.effects import EFFECTS, NextTokens, effects_file
from leanmoe_pruning.scores.gram import packed_size
from leanmoe_pruning.scores.halves_record import Halves
from leanmoe_pruning.scores.layer_scores import LayerScores, median_beta
from leanmoe_pruning.scores.moments import Moments
from leanmoe_pruning.scores.stored_tensors import expected_of_layer, read_checked

DESCRIPTION = "scores.json"
SUMMARY = "summary.safetensors"
_MOMENTS = "moments."
_SUMMED = ("token_counts", "gate_mass", "median_beta")


class BundleDescription(BaseModel):
    """Which model and which tokens a bundle speaks of."""

    model_config = ConfigDict(extra="forbid")

    # Bundles of version 2 lack ``peak_output``; all else is the same, so they are read as well.
    schema_version: Literal[2, 3] = 3
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
    # Where the bundle holds effects: the seed of the next tokens that they were taken by, or
    # that these are the text's.
    effects: NextTokens | None = None
    # Whether the windows are enough; bundles made before this was looked at say nothing.
    halves: Halves | None = None

    @property
    def tokens(self) -> int:
        """Tokens that were scored."""
        return sum(windows * length for windows, length in self.layout)

    def digest(self) -> str:
        content = self.model_dump(mode="json", exclude_none=True)
        text = json.dumps(content, sort_keys=True, separators=(",", ":"))
        return bytes_digest([text.encode()])


def layer_file(layer: int) -> str:
    """The name of one layer's file."""
    return f"layer-{layer:03d}.safetensors"


def describe(
    checkpoint: Checkpoint,
    source: dict[str, str],
    data: DataSet,
    compute: torch.dtype,
    gram_tokens: int,
    effects: NextTokens | None = None,
) -> BundleDescription:
    """Everything a bundle follows from; it has no files yet."""
    shape = checkpoint.shape
    return BundleDescription(
        family=checkpoint.family.name,
        source=source,
        data=data.spec,
        data_digest=data.digest(),
        layout=data.layout,
        compute=str(compute).removeprefix("torch."),
        gram_tokens=gram_tokens,
        moe_layers=list(shape.moe_layers),
        n_routed_experts=shape.n_routed_experts,
        top_k=shape.top_k,
        tools=tool_versions(),
        files={},
        effects=effects,
    )


def write_layer(directory: Path, scores: LayerScores) -> str:
    """Write one layer's file; return its digest."""
    routing = scores.routing()
    tensors = {
        "router_logits": scores.router_logits_TE.float(),
        "output_gram": scores.output_gram_TP,
        "ratios": routing.ratios[:, 1:].contiguous(),
        "output_norm": scores.output_norm_TK,
        "max_activation": scores.max_activation_E,
        **{f"{_MOMENTS}{name}": held for name, held in scores.moments.tensors().items()},
        "token_counts": scores.token_counts(),
        "gate_mass": scores.gate_mass(),
        "median_beta": torch.tensor(median_beta(routing), dtype=torch.float64),
    }
    if scores.peak_output_E is not None:
        tensors["peak_output"] = scores.peak_output_E
    if scores.rule.correction_E is not None:
        tensors["router_correction"] = scores.rule.correction_E
    return write_tensors(directory / layer_file(scores.layer), tensors)


def complete_bundle(
    directory: Path,
    description: BundleDescription,
    files: dict[str, str],
    halves: Halves | None,
) -> BundleDescription:
    """Add summary and description to the layers' ``files`` (name to digest)."""
    layers = map(layer_file, description.moe_layers)
    held = [_summary_of(directory / name) for name in layers]
    summary = {name: torch.stack([one[name] for one in held]) for name in _SUMMED}
    files = {**files, SUMMARY: write_tensors(directory / SUMMARY, summary)}
    whole = description.model_copy(update={"files": files, "halves": halves})
    content = {"digest": whole.digest(), **whole.model_dump(mode="json", exclude_none=True)}
    atomic_write_json(directory / DESCRIPTION, content)
    return whole


def _summary_of(path: Path) -> dict[str, torch.Tensor]:
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in _SUMMED}


def unreached_experts(directory: Path, layers: Iterable[int]) -> dict[int, list[int]]:
    """Experts that no token was routed to, by layer, of the layers' files in ``directory``."""
    found = {}
    for layer in layers:
        with safe_open(directory / layer_file(layer), framework="pt") as file:
            counts_E = file.get_tensor("token_counts")
        if idle := (counts_E == 0).nonzero().flatten().tolist():
            found[layer] = idle
    return found


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

    def check_shape(self, checkpoint: Checkpoint) -> None:
        """Raise unless it speaks of the layers, experts and top-k of the model it was made from."""
        told, shape = self.description, checkpoint.shape
        found = (tuple(told.moe_layers), told.n_routed_experts, told.top_k)
        expected = (tuple(shape.moe_layers), shape.n_routed_experts, shape.top_k)
        if found != expected:
            raise InputError(
                f"{self.directory / DESCRIPTION} tells of MoE layers, experts and top-k {found}, "
                f"{checkpoint.path} has {expected}; score again"
            )

    def layers(self, rule: RouterRule) -> Iterator[LayerScores]:
        """Scores layer by layer; ``rule`` is the model's."""
        for layer in self.description.moe_layers:
            yield self._layer(layer, rule)

    def _layer(self, layer: int, rule: RouterRule) -> LayerScores:
        told = self.description
        sampled, experts = told.gram_tokens, told.n_routed_experts
        expected = expected_of_layer(told.tokens, sampled, experts, packed_size(experts))
        held = read_checked(self.directory / layer_file(layer), expected)
        scores = _scores_of(layer, rule, held)
        if told.effects is None:
            return scores
        effects = {EFFECTS: ((sampled, experts), torch.float32)}
        path = self.directory / effects_file(layer)
        return replace(scores, effects_SE=read_checked(path, effects)[EFFECTS])


def read_layer(directory: Path, layer: int, rule: RouterRule) -> LayerScores:
    """One layer's scores; ``rule`` is the model's."""
    return _scores_of(layer, rule, load_file(directory / layer_file(layer)))


def _scores_of(layer: int, rule: RouterRule, held: dict[str, torch.Tensor]) -> LayerScores:
    moments = {
        name.removeprefix(_MOMENTS): tensor
        for name, tensor in held.items()
        if name.startswith(_MOMENTS)
    }
    return LayerScores(
        layer,
        replace(rule, correction_E=held.get("router_correction")),
        held["router_logits"],
        held["output_gram"],
        held["output_norm"],
        held["max_activation"],
        Moments(**moments),
        held.get("peak_output"),
    )


def _read_description(directory: Path) -> BundleDescription:
    path = directory / DESCRIPTION
    if not path.is_file():
        raise InputError(f"{directory} is not a score bundle: it has no {DESCRIPTION}; score again")
    try:
        content: dict[str, Any] = parse_json(path.read_text(encoding="utf-8"))
        stated = content.pop("digest", None)
        description = read_record(BundleDescription, content)
    except (ValueError, AttributeError, TypeError, OSError) as error:
        raise InputError(
            f"{path} is not a score description ({what_is_wrong(error)}); score again"
        ) from None
    if stated != description.digest():
        raise InputError(f"{path} does not match its own digest: it was edited; score again")
    _check_whole(path, description)
    return description


def _check_whole(path: Path, told: BundleDescription) -> None:
    """Raise where a description cannot be of any scores, or leaves out a file of theirs."""
    sound = all(windows > 0 and length > 0 for windows, length in told.layout)
    if not sound or not 1 <= told.gram_tokens <= told.tokens:
        raise InputError(
            f"{path} tells of {told.gram_tokens} tokens with a Gram matrix in windows of "
            f"{told.layout}, which are no scores; score again"
        )
    kinds = (layer_file,) if told.effects is None else (layer_file, effects_file)
    for name in (SUMMARY, *(kind(layer) for kind in kinds for layer in told.moe_layers)):
        if name not in told.files:
            raise InputError(f"{path} does not name {name}; score again")
