"""The model card of a training, written from its figures alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from leanmoe_reference.training.sources import SOURCES

NAMES = {"dense": "dense parent", "adapter": "parent + one adapter", "moe": "**this model**"}


def card(figures: Mapping[str, Any]) -> str:
    """Markdown."""
    return "\n".join(
        (
            f"# {figures['model']}, seed {figures['seed']}",
            "",
            f"Made of SmolLM2-135M-Instruct by `leanmoe reference OUT --train {figures['model']} "
            f"--seed {figures['seed']}`: {figures['steps']} steps, "
            f"{figures['training_tokens']:,} tokens of text.",
            "",
            *_table(figures["perplexity"]),
            "",
            "Perplexity on held-out text, lower is better: whole documents that training never",
            "saw; `new-*` are packages that training never saw; `switching` windows change domain",
            "in their middle. The adapter was trained on the same rows, with as many of its",
            "parameters in use per token as here.",
            "",
            "Geometric mean of the perplexities against this model, paired by window",
            "(standard error):",
            "",
            *_changes(figures["against_moe"]),
            "",
            "## Text",
            "",
            *(f"- {one.package} {one.version} ({one.registry}): {one.licence}" for one in SOURCES),
            "- conversations, arithmetic and answers of the dense parent: our own",
            "",
            "It is a small model made to try this software on. It knows little and should be",
            "trusted with nothing.",
            "",
        )
    )


def _table(perplexity: Mapping[str, Mapping[str, float]]) -> list[str]:
    columns = list(perplexity)
    rows = [[NAMES.get(one, one) for one in columns]]
    lines = ["| text | " + " | ".join(rows[0]) + " |", "|---" * (len(columns) + 1) + "|"]
    for domain in perplexity["moe"]:
        values = " | ".join(f"{perplexity[one][domain]:.2f}" for one in columns)
        lines.append(f"| {domain} | {values} |")
    return lines


def _changes(against: Mapping[str, Mapping[str, Mapping[str, float]]]) -> list[str]:
    lines = ["| configuration | trained domains | unseen packages |", "|---|---|---|"]
    for name, groups in against.items():
        values = " | ".join(
            f"{one['percent']:+.1f} % ({one['standard_error']:.1f})" for one in groups.values()
        )
        lines.append(f"| {NAMES.get(name, name)} | {values} |")
    return lines
