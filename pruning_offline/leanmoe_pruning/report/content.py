"""Everything the card and the page say of a checkpoint, taken from its files."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from leanmoe.errors import CheckpointError
from leanmoe.layout import LayerLayout
from leanmoe.manifest import NO_CUT, Manifest, weights_digest
from leanmoe_pruning.checkpoints.opening import OpenedModel
from leanmoe_pruning.report.evaluations import Evaluation
from leanmoe_pruning.report.tables import Comparison, comparison, joined

# Settings that are told elsewhere, or too long for a line: the manifest has them.
_ELSEWHERE = ("notes", "before", "redundancy", "zeros")
_LONG = 160


@dataclass(frozen=True)
class LayerRow:
    """What is left of one MoE layer."""

    layer: int
    experts: int
    top_k: int
    kind: str
    kept: str
    cut: str


@dataclass(frozen=True)
class Content:
    """The facts of one report."""

    title: str
    manifest: Manifest
    weights_digest: str
    family: str
    source: str | None
    source_experts: int | None
    counts: str
    top_k: int
    weight_bytes: int
    loads_in_stock: bool
    # A sentence.
    loads_in: str
    recipe: list[tuple[str, str]]
    # A sentence, where the manifest tells of no cut.
    unknown: str | None
    layers: list[LayerRow]
    redundancy: list[tuple[str, str, str, str]]
    redundancy_note: str | None
    notes: list[str]
    limits: list[str]
    comparisons: list[Comparison]

    @property
    def weights(self) -> str:
        """Size of the weights, for people."""
        size = float(self.weight_bytes)
        for unit in ("bytes", "kB", "MB"):
            if size < 1000:
                return f"{size:.0f} {unit}"
            size /= 1000
        return f"{size:.1f} GB"


def content_of(checkpoint: OpenedModel, evaluations: Sequence[Evaluation]) -> Content:
    """The facts of a checkpoint with a manifest; raises ``CheckpointError`` where it has none."""
    manifest = checkpoint.manifest
    if manifest is None:
        raise CheckpointError(
            f"{checkpoint.path} has no leanmoe.json, so nothing is known of how it was made: "
            "method and settings of its cut are lost, if there was one; take back the leanmoe.json "
            "that was written with it, or give a checkpoint that `leanmoe prune` or `leanmoe "
            "curve` wrote to"
        )
    source = manifest.source
    digest = weights_digest(source.files) if source else None
    name = source.name if source else None
    title = checkpoint.path.resolve().name
    redundancy = manifest.settings.get("redundancy")
    return Content(
        title=title,
        manifest=manifest,
        weights_digest=weights_digest(manifest.files),
        family=checkpoint.family.name,
        source=name,
        source_experts=source.experts if source else None,
        counts=_counts([own.n_computed for own in checkpoint.layers.values()]),
        top_k=checkpoint.shape.top_k,
        weight_bytes=checkpoint.reader.weight_bytes,
        loads_in_stock=_loads_in_stock(checkpoint),
        loads_in=_loads_in(checkpoint),
        recipe=list(_recipe(manifest)),
        unknown=_unknown(checkpoint, manifest),
        layers=[_layer(layer, own, manifest) for layer, own in checkpoint.layers.items()],
        redundancy=_redundancy_rows(redundancy),
        redundancy_note=_redundancy_note(redundancy),
        notes=[str(note) for note in manifest.settings.get("notes", [])],
        limits=list(_limits(checkpoint, manifest)),
        comparisons=joined(comparison(one, digest, name) for one in evaluations),
    )


def _loads_in_stock(checkpoint: OpenedModel) -> bool:
    differs = checkpoint.layout.layers or checkpoint.has_stand_ins
    return not differs and checkpoint.packing is None


def _loads_in(checkpoint: OpenedModel) -> str:
    family = checkpoint.family.name
    if _loads_in_stock(checkpoint):
        return f"It loads in stock vLLM and any other engine that loads {family} models."
    if checkpoint.has_stand_ins and not checkpoint.layout.layers:
        return (
            "Constants stand in for removed experts: it loads in `leanmoe serve`, and as stated by "
            "vLLM 0.33 there, not in transformers."
        )
    what = "Stand-ins replace removed experts" if checkpoint.has_stand_ins else "Its layers differ"
    if checkpoint.packing is not None:
        what = f"Its experts are stored packed ({checkpoint.packing.text})"
    return f"{what}: it loads in `leanmoe serve`, not in stock vLLM or transformers."


def _unknown(checkpoint: OpenedModel, manifest: Manifest) -> str | None:
    """What cannot be told of a checkpoint whose manifest a curve began, not a cut."""
    if manifest.method != NO_CUT:
        return None
    if _loads_in_stock(checkpoint):
        return (
            "Its leanmoe.json was begun by `leanmoe curve` and tells of no cut: whether there was "
            "one before, by which method and with which settings, is not known."
        )
    return (
        "Its experts are no longer as any model is released, and its leanmoe.json tells of no "
        "cut: the one that the cut wrote is lost, and with it method and settings."
    )


def _counts(counts: Sequence[int]) -> str:
    least, most = min(counts), max(counts)
    return str(least) if least == most else f"{least} to {most}"


def _recipe(manifest: Manifest) -> Iterator[tuple[str, str]]:
    if manifest.source is not None:
        yield "source", manifest.source.name
    yield "method", "not known" if manifest.method == NO_CUT else manifest.method
    for name, value in manifest.settings.items():
        if name not in _ELSEWHERE:
            yield name.replace("_", " "), _short(value)
    yield from _earlier(manifest.settings.get("before"))
    if manifest.calibration is not None:
        yield "calibration data", manifest.calibration
    if manifest.calibration_digest is not None:
        yield "calibration digest", manifest.calibration_digest
    yield "tools", ", ".join(f"{name} {version}" for name, version in manifest.tools.items())


def _earlier(before: Any) -> Iterator[tuple[str, str]]:
    """The cuts before this one, the last first."""
    while isinstance(before, dict):
        source = (before.get("source") or {}).get("name", "")
        yield "before this", f"{before.get('method')} on {source}".strip()
        before = (before.get("settings") or {}).get("before")


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _LONG else f"{text[:_LONG]}… (all of it in leanmoe.json)"


def _layer(layer: int, own: LayerLayout, manifest: Manifest) -> LayerRow:
    kept = manifest.kept.get(layer)
    count = manifest.source.experts if manifest.source else None
    gone = [] if kept is None or count is None else sorted(set(range(count)) - set(kept))
    return LayerRow(
        layer,
        own.n_computed,
        own.top_k,
        _kind(own, kept),
        "" if kept is None else _ranges(kept),
        _ranges(gone),
    )


def _kind(own: LayerLayout, kept: list[int] | None) -> str:
    if own.condensed:
        return "condensed"
    if own.stand_ins:
        return "constants" if not own.rank else f"rank {own.rank}"
    return "merged" if own.gate_rows is not None or kept is None else "routed"


def _ranges(ids: Sequence[int]) -> str:
    """``0-3, 7`` for 0, 1, 2, 3, 7, in the given order."""
    runs: list[list[int]] = []
    for number in ids:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(
        ", ".join(map(str, run)) if len(run) < 3 else f"{run[0]}-{run[-1]}" for run in runs
    )


def _redundancy_rows(found: Any) -> list[tuple[str, str, str, str]]:
    if not isinstance(found, dict):
        return []
    loss, similarity, used = (found.get(name, {}) for name in ("loss", "similarity", "used"))
    return [
        (layer, _percent(loss[layer]), f"{similarity[layer]:.2f}", f"{used[layer]:.1f}")
        for layer in loss
    ]


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"


def _redundancy_note(found: Any) -> str | None:
    if not isinstance(found, dict):
        return None
    outputs = (
        f"On {found['tokens']} tokens per layer the blocks' outputs change by "
        f"{_percent(found['mean_loss'])} of their squared size on average"
    )
    if (nats := found.get("expected_divergence")) is None:
        return f"{outputs}; `leanmoe prune` warns from {found['collapse_above']:.0%}."
    return (
        f"{outputs}; by the effects of experts the predictions are expected to diverge by "
        f"{nats:.2g} nats per token, and `leanmoe prune` warns from "
        f"{found['collapse_above_divergence']} nats."
    )


def _cut_experts(checkpoint: OpenedModel, manifest: Manifest) -> bool:
    count = manifest.source.experts if manifest.source else None
    return count is not None and any(own.n_computed < count for own in checkpoint.layers.values())


def _limits(checkpoint: OpenedModel, manifest: Manifest) -> Iterator[str]:
    """What this checkpoint does not save, and where it does not load."""
    yield from _not_saved(checkpoint, manifest)
    yield from _not_loaded(checkpoint)
    if manifest.curve is not None:
        yield (
            "Skipping works in `leanmoe serve` only; it saves arithmetic and, at small batches, "
            "reads of weights, and no memory."
        )


def _not_saved(checkpoint: OpenedModel, manifest: Manifest) -> Iterator[str]:
    routed = [own for own in checkpoint.layers.values() if not own.condensed]
    top_k = checkpoint.shape.top_k
    if checkpoint.packing is not None:
        yield (
            "Its experts are stored without their zeros, which stock engines do not read; "
            "`leanmoe unpack` writes the same weights dense, zeros included."
        )
    elif manifest.settings.get("zeros"):
        yield (
            "Zeroed weights are stored and multiplied like any others: stock engines have no "
            "kernels for them, so they save neither memory nor time."
        )
    runs_all = not checkpoint.has_stand_ins and all(own.top_k == top_k for own in routed)
    if _cut_experts(checkpoint, manifest) and runs_all:
        yield (
            f"A routed token still runs {top_k} experts per layer, as in the source: arithmetic "
            "per token, and what one request alone reads, are not less. Fewer experts save "
            "memory, and reads of weights where a batch is large enough to touch most of them."
        )
    if manifest.method != NO_CUT:
        yield "Attention, embeddings and the KV cache are as large as the source's."


def _not_loaded(checkpoint: OpenedModel) -> Iterator[str]:
    """And, of stand-ins, what is not done with it."""
    if checkpoint.has_stand_ins:
        yield (
            "Removed experts have stand-ins, to which tokens are routed as to experts: a token may "
            "run fewer experts than in the source. Distilling, packing and further cuts take the "
            "source."
        )
    if checkpoint.has_stand_ins and not checkpoint.layout.layers:
        yield (
            "The stand-ins are constants, which `leanmoe serve` computes and vLLM 0.33 says it "
            "does (approximate_experts); other engines do not load this checkpoint."
        )
    if checkpoint.layout.layers:
        yield (
            f"{len(checkpoint.layout.layers)} of its layers differ from the others, so stock vLLM "
            "and transformers do not load this checkpoint; `leanmoe serve` does."
        )
