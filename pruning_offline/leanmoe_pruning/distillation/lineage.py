"""Which expert of the teacher each expert of the student was."""

from __future__ import annotations

from typing import Any

from leanmoe.checkpoint import Checkpoint
from leanmoe.errors import CheckpointError

# By decoder layer, the teacher's expert in the place of the student's; None where a layer's
# experts are not single experts of the teacher.
Ancestors = dict[int, tuple[int, ...] | None]


def find_ancestors(
    student: Checkpoint, teacher: Checkpoint, teacher_files: dict[str, str]
) -> Ancestors:
    """Follow the student's manifest back to the teacher; raise where it does not lead there.

    A student without a manifest is taken to hold the teacher's experts, in order.
    """
    check_pair(student, teacher)
    chain = _chain(student, teacher_files)
    if chain is None:
        _check_same_experts(student, teacher)
        chain = []
    found: Ancestors = {}
    for layer, own in student.layers.items():
        places: tuple[int, ...] | None = tuple(range(own.n_experts))
        for kept in chain:
            places = _before(places, kept.get(layer))
        alike = own.condensed == teacher.layers[layer].condensed
        found[layer] = places if alike else None
    return found


def check_pair(student: Checkpoint, teacher: Checkpoint) -> None:
    """Raise unless both are models of one family, depth, width and vocabulary."""
    for what, mine, theirs in (
        ("family", student.family.name, teacher.family.name),
        ("number of layers", student.shape.n_layers, teacher.shape.n_layers),
        ("hidden size", student.shape.hidden_size, teacher.shape.hidden_size),
        ("expert width", student.shape.expert_ffn_size, teacher.shape.expert_ffn_size),
        ("experts in layers", [*student.layers], [*teacher.layers]),
        ("vocabulary", student.config["vocab_size"], teacher.config["vocab_size"]),
    ):
        if mine != theirs:
            raise CheckpointError(
                f"{teacher.path} has {what} {theirs} and {student.path} has {mine}: it cannot be "
                "its teacher; give the model that it was cut from"
            )


def _chain(student: Checkpoint, teacher_files: dict[str, str]) -> list[dict[int, Any]] | None:
    """What each cut kept, from the student's back to the first one of the teacher itself."""
    if student.manifest is None:
        return None
    link: dict[str, Any] | None = student.manifest.model_dump(mode="json")
    chain = []
    while link is not None:
        chain.append({int(layer): kept for layer, kept in link["kept"].items()})
        if (link["source"] or {}).get("files") == teacher_files:
            return chain
        link = link["settings"].get("before")
    return None


def _before(places: tuple[int, ...] | None, kept: list[int] | None) -> tuple[int, ...] | None:
    if places is None or kept is None:
        return None
    return tuple(kept[place] for place in places)


def _check_same_experts(student: Checkpoint, teacher: Checkpoint) -> None:
    for layer, own in student.layers.items():
        theirs = teacher.layers[layer]
        if own.n_experts != theirs.n_experts:
            raise CheckpointError(
                f"the manifest of {student.path} does not lead to {teacher.path}, and layer "
                f"{layer} has {own.n_experts} experts there and {theirs.n_experts} here: give the "
                "model that it was cut from"
            )
