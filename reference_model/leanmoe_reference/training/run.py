"""Train a reference model: experts and routers, the adapter to compare with, figures, the card.

Everything is written into one folder and what is there is taken up: a run that was stopped
goes on from its last checkpoint when it is started again with the same options.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from leanmoe.errors import InputError
from leanmoe.files.digest import file_digest, tool_versions
from leanmoe.files.output import atomic_write_json, atomic_write_text
from leanmoe_pruning.progress import progress
from leanmoe_reference.artefact import pack
from leanmoe_reference.gguf_base import GGUFBase
from leanmoe_reference.rows import from_rows
from leanmoe_reference.training import figures, mix
from leanmoe_reference.training.blocks import TrainableBlock
from leanmoe_reference.training.card import card
from leanmoe_reference.training.loop import Recipe, train
from leanmoe_reference.training.network import Parent
from leanmoe_reference.training.plans import PLANS, Make, TrainingPlan
from leanmoe_reference.training.specialists import counts, specialists

Tensor = torch.Tensor
FIGURES = "figures.json"
CARD = "MODEL_CARD.md"
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Training:
    """What to train, on what, where."""

    model: str
    recipe: Recipe
    out: Path
    texts: Path = mix.HERE
    layers: int | None = None

    @staticmethod
    def of(
        model: str, out: Path, seed: int, steps: int | None, texts: Path | None, layers: int | None
    ) -> Training:
        """A training with what is not given taken from the recipe."""
        usual = PLANS[model].recipe
        recipe = replace(usual, seed=seed, steps=usual.steps if steps is None else steps)
        return Training(model, recipe, out, texts or mix.HERE, layers)

    @property
    def plan(self) -> TrainingPlan:
        return PLANS[self.model]


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Compute with ``count`` threads in the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def run(training: Training, base: GGUFBase) -> dict[str, Any]:
    """Train, write and measure; the figures."""
    if training.layers is not None and not 3 <= training.layers <= base.field("llama.block_count"):
        raise InputError(
            f"--layers {training.layers}: the parent can be cut down to 3 layers or more, "
            f"it has {base.field('llama.block_count')}"
        )
    windows = mix.load(training.texts)
    training.out.mkdir(parents=True, exist_ok=True)
    parent = Parent.load(base, training.layers)
    block = _train(training, parent, windows, "experts", training.plan.block)
    _write_artefact(block, training.out / training.plan.file)
    take_stored(block)
    adapter = _train(training, parent, windows, "adapter", training.plan.adapter)
    found = measure(training, parent, windows, block, adapter)
    atomic_write_json(training.out / FIGURES, found)
    atomic_write_text(training.out / CARD, card(found))
    return found


def _train(
    training: Training, parent: Parent, windows: dict[str, Tensor], name: str, make: Make
) -> TrainableBlock:
    block = make(parent, training.recipe.seed)
    checkpoint = training.out / f"{name}.checkpoint.safetensors"
    with progress(f"training {name}", training.recipe.steps) as tick:

        def report(step: int, loss: float, seconds: float) -> None:
            _log.info("%s: step %d, loss %.3f, %.1f s", name, step, loss, seconds)
            tick()

        train(parent, block, windows, training.recipe, checkpoint, report)
    return block


def packed(block: TrainableBlock) -> dict[str, Tensor]:
    """The tensors of the file that a rebuild reads."""
    gates, weights = {}, {}
    for name, value in block.parameters.items():
        if name.endswith(".gate"):
            gates[name] = value
        else:
            weights[name] = value.T.contiguous() if block.across(name) else value
    return pack(gates, weights, block.fixed)


def take_stored(block: TrainableBlock) -> None:
    """Give the block the rounded values that its file holds, so that figures are the file's."""
    held = packed(block)
    for name in block.parameters:
        if name.endswith(".gate"):
            value = held[f"{name}.weight"].float()
        else:
            value = from_rows(held[f"{name}.rows"], held[f"{name}.scale"]).float()
        block.parameters[name] = value.T.contiguous() if block.across(name) else value


def _write_artefact(block: TrainableBlock, path: Path) -> None:
    part = path.with_suffix(".part")
    save_file(packed(block), part)
    part.replace(path)


def measure(
    training: Training,
    parent: Parent,
    windows: dict[str, Tensor],
    block: TrainableBlock,
    adapter: TrainableBlock,
) -> dict[str, Any]:
    """Held-out perplexities of the model, of what it is compared with and of fewer experts."""
    held = figures.held_out(windows)
    some = torch.cat([ids[:1] for name, ids in sorted(windows.items()) if name.endswith(".train")])
    betas = figures.median_betas(parent, block, some)
    blocks = {
        "moe": figures.routed(block),
        "dense": figures.dense_block,
        "adapter": figures.routed(adapter),
        **{f"top-{k}": figures.routed(block, top_k=k) for k in (2, 1) if k < block.top_k},
        "skipping": figures.routed(block, betas=betas),
    }
    found = {}
    with progress("measuring", len(blocks) * len(held)) as tick:
        for name, one in blocks.items():
            found[name] = figures.losses(parent, one, held, tick)
            _log.info("%s: %s", name, figures.perplexities(found[name]))
    return {
        "model": training.model,
        "seed": training.recipe.seed,
        "steps": training.recipe.steps,
        "layers": len(parent.layers),
        "training_tokens": _tokens(training.recipe, windows),
        "recipe": asdict(training.recipe),
        "texts": file_digest(training.texts / mix.TOKENS),
        "artefact": file_digest(training.out / training.plan.file),
        "versions": tool_versions(),
        "compute": str(parent.compute).removeprefix("torch."),
        "perplexity": {name: figures.perplexities(one) for name, one in found.items()},
        "against_moe": {
            name: _against(one, found["moe"]) for name, one in found.items() if name != "moe"
        },
        "median_betas": {str(layer): round(beta, 4) for layer, beta in betas.items()},
        "loads": figures.loads(parent, block, held),
        "specialists": specialists(counts(parent, block, windows)),
    }


def _against(one: figures.Losses, moe: figures.Losses) -> dict[str, Any]:
    unseen = {domain.name for domain in mix.UNSEEN}
    groups = {"trained": set(moe) - unseen, "unseen": set(moe) & unseen}
    return {
        name: asdict(figures.Change.of(one, moe, names)) for name, names in groups.items() if names
    }


def _tokens(recipe: Recipe, windows: dict[str, Tensor]) -> int:
    width = next(iter(windows.values())).shape[1]
    return recipe.steps * recipe.rows * width
