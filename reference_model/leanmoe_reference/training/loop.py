"""Train a block on the mix: seeded, resumable to the bit, one checkpoint every few steps.

Every random choice of a step depends on the seed and the step's number alone, so a run that
was killed and one that was not end with the same bytes (on one machine, one thread count).
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from leanmoe.errors import InputError
from leanmoe_reference.training.blocks import Routes, TrainableBlock
from leanmoe_reference.training.mix import DOMAINS, GROUPS
from leanmoe_reference.training.network import Parent

Tensor = torch.Tensor
BETAS = (0.9, 0.98)
LANGUAGES = 4


@dataclass(frozen=True)
class Recipe:
    """How long and how fast. ``free`` is the share of steps at the end that the routers route.

    ``balance`` weighs the loss that keeps the experts equally loaded while the routers route.
    """

    steps: int = 120
    rows: int = 4
    rate: float = 1.5e-3
    warmup: int = 5
    free: float = 0.3
    switching: float = 0.4
    router_loss: float = 1.0
    router_loss_free: float = 0.1
    balance: float = 0.0
    seed: int = 0
    save_every: int = 10


@dataclass(frozen=True)
class Batch:
    """Token ids ``[N, T]`` and, per token, the two groups its text belongs to ``[N * T, 2]``."""

    ids_NT: Tensor
    groups_M2: Tensor
    blend_M1: Tensor


class Feed:
    """Training windows in a seeded order; some rows change domain in their middle."""

    def __init__(self, windows: dict[str, Tensor], recipe: Recipe) -> None:
        self._recipe = recipe
        held = [(d, windows[f"{d.name}.train"]) for d in DOMAINS if f"{d.name}.train" in windows]
        if not held:
            raise InputError("the texts hold no training window; give a folder that --texts wrote")
        self._rows = torch.cat([rows for _, rows in held])
        self._groups = torch.tensor([d.groups for d, rows in held for _ in range(len(rows))])

    def batch(self, step: int) -> Batch:
        """The rows of one step."""
        recipe, total = self._recipe, len(self._rows)
        draw = torch.Generator().manual_seed(recipe.seed * 1_000_003 + step)
        places = torch.arange(step * recipe.rows, (step + 1) * recipe.rows)
        first = torch.stack([self._order(int(p) // total)[int(p) % total] for p in places])
        second = torch.randint(total, (recipe.rows,), generator=draw)
        switch = torch.rand(recipe.rows, generator=draw) < recipe.switching
        second = torch.where(switch, second, first)
        width = self._rows.shape[1]
        late = torch.arange(width) >= width // 2
        source_NT = torch.where(late, second[:, None], first[:, None])
        ids_NT = torch.where(late, self._rows[second], self._rows[first])
        blend = 0.3 + 0.4 * torch.rand(recipe.rows, 1, generator=draw)
        return Batch(
            ids_NT,
            self._groups[source_NT.flatten()],
            blend.expand(-1, width).reshape(-1, 1),
        )

    def _order(self, epoch: int) -> Tensor:
        draw = torch.Generator().manual_seed(self._recipe.seed * 7919 + epoch)
        return torch.randperm(len(self._rows), generator=draw)


def enforced(batch: Batch, n_experts: int) -> Tensor:
    """Weights ``[M, E]``: a blend of the language's experts and the kind's, the rest zero."""
    each = n_experts // len(GROUPS)
    blend_M2 = torch.cat((batch.blend_M1, 1 - batch.blend_M1), dim=1)
    groups_MG = torch.zeros(len(blend_M2), len(GROUPS)).scatter(1, batch.groups_M2, blend_M2)
    return (groups_MG / each).repeat_interleave(each, dim=1)


def wanted(batch: Batch, n_experts: int) -> Tensor:
    """What the routers should say: both groups alike."""
    even = Batch(batch.ids_NT, batch.groups_M2, torch.full_like(batch.blend_M1, 0.5))
    return enforced(even, n_experts)


@dataclass
class State:
    """What a checkpoint holds: the block's parameters, their moments and the steps done."""

    block: TrainableBlock
    first: dict[str, Tensor]
    second: dict[str, Tensor]
    step: int = 0
    log: tuple[float, ...] = ()

    @staticmethod
    def start(block: TrainableBlock) -> State:
        zeros = {name: torch.zeros_like(one) for name, one in block.parameters.items()}
        return State(block, zeros, {name: one.clone() for name, one in zeros.items()})

    def save(self, path: Path, recipe: Recipe) -> None:
        """Replace the checkpoint in one step."""
        held = {f"value.{name}": one.detach() for name, one in self.block.parameters.items()}
        held |= {f"first.{name}": one for name, one in self.first.items()}
        held |= {f"second.{name}": one for name, one in self.second.items()}
        facts = {
            "step": str(self.step),
            "recipe": json.dumps(asdict(recipe)),
            "log": json.dumps(self.log),
        }
        part = path.with_suffix(".part")
        save_file(held, part, metadata=facts)
        part.replace(path)

    def resume(self, path: Path, recipe: Recipe) -> None:
        """Take up the checkpoint at ``path``; raise unless it is of the same recipe."""
        with safe_open(path, framework="pt") as file:
            facts = file.metadata()
            if json.loads(facts["recipe"]) != asdict(recipe):
                raise InputError(f"{path} is of another recipe; remove it or give another folder")
            for name in self.block.parameters:
                self.block.parameters[name] = file.get_tensor(f"value.{name}")
                self.first[name] = file.get_tensor(f"first.{name}")
                self.second[name] = file.get_tensor(f"second.{name}")
        self.step, self.log = int(facts["step"]), tuple(json.loads(facts["log"]))


def train(
    parent: Parent,
    block: TrainableBlock,
    windows: dict[str, Tensor],
    recipe: Recipe,
    checkpoint: Path,
    report: Callable[[int, float, float], None] = lambda step, loss, seconds: None,
) -> State:
    """Run ``recipe`` from its start or from ``checkpoint``; the block ends trained."""
    state, feed = State.start(block), Feed(windows, recipe)
    if checkpoint.is_file():
        state.resume(checkpoint, recipe)
    for one in block.parameters.values():
        one.requires_grad_(True)
    while state.step < recipe.steps:
        started = time.monotonic()
        loss = _step(parent, state, feed.batch(state.step), recipe)
        state.step += 1
        state.log = (*state.log, round(loss, 5))
        if state.step % recipe.save_every == 0 or state.step == recipe.steps:
            state.save(checkpoint, recipe)
        report(state.step, loss, time.monotonic() - started)
    for one in block.parameters.values():
        one.requires_grad_(False)
    return state


def _step(parent: Parent, state: State, batch: Batch, recipe: Recipe) -> float:
    block = state.block
    free = state.step >= recipe.steps * (1 - recipe.free)
    routes = Routes(None if free else enforced(batch, block.n_experts))
    losses = parent.losses(batch.ids_NT, lambda i, x, frozen: block.run(routes, i, x, frozen))
    loss = losses.mean()
    total = loss
    if routes.logits_ME:
        share = recipe.router_loss_free if free else recipe.router_loss
        if share:
            total = total + share * router_loss(routes, wanted(batch, block.n_experts))
        if free and recipe.balance:
            total = total + recipe.balance * balance_loss(routes, block.top_k)
    names = list(block.parameters)
    gradients = torch.autograd.grad(total, [block.parameters[name] for name in names])
    _update(state, dict(zip(names, gradients, strict=True)), recipe)
    return float(loss.detach())


def router_loss(routes: Routes, target_ME: Tensor) -> Tensor:
    """Cross-entropy of the routers against ``target_ME``, mean over tokens and layers."""
    each = [-(target_ME * one.log_softmax(-1)).sum(-1).mean() for one in routes.logits_ME.values()]
    return torch.stack(each).mean()


def balance_loss(routes: Routes, top_k: int) -> Tensor:
    """Experts times their share of choices times of probability, summed; 1 when all are alike.

    Mean over layers; arXiv 2101.03961, equations 4 to 6, with ``top_k`` choices per token.
    """
    return torch.stack([_balance(one, top_k) for one in routes.logits_ME.values()]).mean()


def _balance(logits_ME: Tensor, top_k: int) -> Tensor:
    n_experts = logits_ME.shape[1]
    chosen = logits_ME.topk(top_k, dim=-1).indices.flatten()
    share_E = torch.bincount(chosen, minlength=n_experts) / len(chosen)
    return n_experts * (share_E * logits_ME.softmax(-1).mean(0)).sum()


@torch.no_grad()
def _update(state: State, gradients: dict[str, Tensor], recipe: Recipe) -> None:
    """One step of Adam, warmed up and then down a cosine, gradients clipped to norm 1."""
    step = state.step + 1
    done = max(0.0, (step - recipe.warmup) / max(1, recipe.steps - recipe.warmup))
    rate = (
        recipe.rate
        * min(1.0, step / recipe.warmup)
        * (0.05 + 0.475 * (1 + math.cos(math.pi * done)))
    )
    norm = torch.stack([one.float().norm() for one in gradients.values()]).norm()
    shrink = 1.0 / max(1.0, float(norm))
    for name, gradient in gradients.items():
        value, first, second = state.block.parameters[name], state.first[name], state.second[name]
        gradient = gradient * shrink
        first.lerp_(gradient, 1 - BETAS[0])
        second.mul_(BETAS[1]).addcmul_(gradient, gradient, value=1 - BETAS[1])
        spread = (second / (1 - BETAS[1] ** step)).sqrt_().add_(1e-8)
        value.addcdiv_(first / (1 - BETAS[0] ** step), spread, value=-rate * state.block.rate(name))
