"""The kernels against their references on random steps, on a GPU or under Triton's interpreter.

``kernels.py`` runs it in a process of its own (trials.py). Its arguments are the device and the
first case; ``TRITON_INTERPRET=1`` in its environment runs it on the CPU.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch

from leanmoe.messages import SkipMode, UnionBudget, UnionMode
from leanmoe_bench.gpu.trials import run
from leanmoe_bench.soak.recount import decide as decide_budget
from leanmoe_runtime.device.blocks import empty_blocks, may_lay_out
from leanmoe_runtime.device.launch import Step, decide, route, spend
from leanmoe_runtime.device.routing import SIGMOID, SOFTMAX, TANH_SIGMOID, Routing
from leanmoe_runtime.device.rows import Union
from leanmoe_runtime.device.sum_kernel import sum_computed
from leanmoe_runtime.device.table import DeviceTable
from leanmoe_runtime.skip.rule import Decision
from leanmoe_runtime.skip.rule import decide as decide_rule
from leanmoe_runtime.state import MANDATORY, N_ROWS

MODES = (SkipMode.MASK, SkipMode.REDIRECT, SkipMode.ZERO)
_BLOCK_ROWS = 16


class Size(NamedTuple):
    tokens: int
    top_k: int
    experts: int


# On both sides of what the kernels choose by; 60 and 5 experts take stock's other kernels.
SIZES = (Size(1, 2, 8), Size(7, 3, 11), Size(17, 8, 128), Size(70, 1, 16))
ROUTED = (
    (Size(1, 2, 8), SOFTMAX, 1),
    (Size(3, 8, 128), SOFTMAX, 1),
    (Size(66, 4, 60), SOFTMAX, 1),
    (Size(5, 2, 5), SOFTMAX, 1),
    (Size(4, 6, 192), SIGMOID, 1),
    (Size(3, 8, 64), TANH_SIGMOID, 8),
)


class Trial:
    """Random rows, thresholds of every rule, a layer's table beside another's, on ``device``."""

    def __init__(self, size: Size, mode: SkipMode, device: str, seed: int = 0) -> None:
        self.size, self.mode, self.device = size, mode, device
        self.random = torch.Generator("cpu").manual_seed(seed + size.tokens)
        self.rows = self._rows(size.tokens)
        self.betas = self._thresholds(size.top_k)
        self.factors = 0.5 + torch.rand(size.experts, generator=self.random, device="cpu")
        self.table = DeviceTable.make(self.betas, size.experts, device)
        self.table.push_factors(self.factors)
        self.other = DeviceTable.make(self.betas, size.experts, device)
        self.skipped_T = torch.zeros(size.tokens, dtype=torch.int32, device=device)

    def _rows(self, tokens: int) -> torch.Tensor:
        """A tenth of a step is padding, at its end as in a real one."""
        rows = torch.randint(0, N_ROWS, (tokens,), generator=self.random, dtype=torch.int32)
        rows[tokens - tokens // 10 :] = -1
        return rows

    def _thresholds(self, top_k: int) -> torch.Tensor:
        """Every third row by each rule."""
        betas = torch.rand(N_ROWS, generator=self.random, device="cpu")
        betas[1::3] *= -1
        kept = 1 + torch.randint(top_k, (N_ROWS,), generator=self.random)
        betas[2::3] = 1.0 + kept[2::3]
        return betas

    def decided(self, weights: torch.Tensor, ids: torch.Tensor) -> Decision:
        """What the reference makes of it."""
        return decide_rule(
            *(weights, ids, self.betas, self.rows),
            renormalize=True,
            mode=self.mode,
            factors_E=self.factors,
        )

    def step(self, *, renormalize: bool) -> Step:
        rows_T = self.rows.to(self.device)
        return Step(rows_T, self.skipped_T, self.table, self.other, renormalize, self.mode)

    def agrees(self, made: Decision, substituted: int = 0) -> bool:
        """Whether the table counts what the reference does."""
        counts = self.table.read()
        return (
            counts[:3] == (made.tokens, made.skipped, made.nonfinite)
            and counts.steps == int(made.tokens > 0)
            and counts.distinct_experts == made.distinct_experts
            and counts.substituted == substituted
            and torch.equal(self.skipped_T.cpu(), (~made.keep_TK).sum(dim=1).int())
            and abs(counts.skipped_weight - made.skipped_weight)
            <= 1e-5 * max(1.0, made.skipped_weight)
        )


def _close(found: torch.Tensor, expected: torch.Tensor) -> bool:
    tolerance = 1e-2 if found.dtype == torch.bfloat16 else 1e-5
    found, expected = found.cpu().float(), expected.cpu().float()
    return torch.allclose(found, expected, rtol=tolerance, equal_nan=True)


def decided(size: Size, mode: SkipMode, dtype: torch.dtype, device: str) -> bool:
    """The launch behind a router: one token of the step is broken."""
    trial = Trial(size, mode, device)
    weights, ids = _routing_of(trial, dtype)
    weights[0, 0] = float("nan")
    expected = trial.decided(weights, ids)
    found = weights.clone().to(device), ids.clone().to(device)
    decide(*found, trial.step(renormalize=True))
    same = torch.equal(found[1].cpu(), expected.ids_TK) and _close(found[0], expected.weights_TK)
    return same and trial.agrees(expected)


def _routing_of(trial: Trial, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    size, random = trial.size, trial.random
    weights = torch.rand(size.tokens, size.top_k, generator=random, device="cpu").softmax(-1)
    order = torch.rand(size.tokens, size.experts, generator=random, device="cpu").argsort(dim=1)
    return weights.to(dtype), order[:, : size.top_k].int().contiguous()


def reference_scores(logits_TE: torch.Tensor, scoring: int) -> torch.Tensor:
    logits_TE = logits_TE.float()
    return logits_TE.softmax(-1) if scoring == SOFTMAX else logits_TE.sigmoid()


def reference_choice(routing: Routing, scores_TE: torch.Tensor) -> torch.Tensor:
    """Experts [T, K] in order, the smaller number first among equals."""
    choice_TE = scores_TE if routing.bias_E is None else scores_TE + routing.bias_E.cpu()
    if routing.groups > 1:
        by_group = choice_TE.view(len(choice_TE), routing.groups, -1)
        scores_TG = by_group.topk(2, dim=-1).values.sum(-1)
        order_TG = scores_TG.sort(dim=-1, descending=True, stable=True).indices
        chosen_TG = torch.zeros_like(scores_TG, dtype=torch.bool)
        chosen_TG.scatter_(1, order_TG[:, : routing.kept_groups], True)
        choice_TE = by_group.masked_fill(~chosen_TG[..., None], -torch.inf).flatten(1)
    order_TE = choice_TE.sort(dim=-1, descending=True, stable=True).indices
    return order_TE[:, : routing.top_k]


def routed(
    size: Size, scoring: int, groups: int, mode: SkipMode, dtype: torch.dtype, device: str
) -> bool:
    """The routing launch: its choice, then its decision on that choice, and its blocks."""
    trial = Trial(size, mode, device)
    bias = None if scoring == SOFTMAX else 0.1 * _normal(trial, size.experts)
    routing = Routing(
        size.experts,
        size.top_k,
        scoring,
        renormalize=True,
        scale=1.0 if scoring == SOFTMAX else 2.5,
        bias_E=None if bias is None else bias.to(device),
        groups=groups,
        kept_groups=max(1, groups // 2),
    )
    logits_TE = _normal(trial, size.tokens, size.experts).to(dtype)
    scores_TE = reference_scores(logits_TE, scoring)
    weights, ids = (tensor.cpu() for tensor in route(logits_TE.to(device), routing, None))
    wanted = reference_choice(routing, scores_TE)
    chosen = scores_TE.gather(1, wanted)
    chosen = routing.scale * chosen / chosen.sum(1, keepdim=True)
    if not (torch.equal(ids.long(), wanted) and _close(weights, chosen)):
        return False
    expected = trial.decided(weights, ids)
    may = mode is SkipMode.MASK and may_lay_out(*size, _BLOCK_ROWS)
    blocks = empty_blocks(*size[:2], _BLOCK_ROWS, torch.device(device)) if may else None
    step = trial.step(renormalize=True)
    found = route(logits_TE.to(device), routing, step, blocks=blocks)
    same = torch.equal(found[1].cpu(), expected.ids_TK) and _close(found[0], expected.weights_TK)
    laid_out = blocks is None or blocks_hold(blocks, expected.ids_TK)
    return same and laid_out and trial.agrees(expected)


def _normal(trial: Trial, *size: int) -> torch.Tensor:
    return torch.randn(*size, generator=trial.random, device="cpu")


def blocks_hold(blocks: Any, ids_TK: torch.Tensor) -> bool:
    """Whether every computed assignment stands once, in a block of its own expert."""
    used, nothing = int(blocks.n_sorted), ids_TK.numel()
    places = blocks.sorted_N[:used].cpu()
    experts = blocks.experts[: used // blocks.rows].cpu().repeat_interleave(blocks.rows)
    there = places < nothing
    flat = ids_TK.flatten()
    every = torch.equal(places[there].sort().values, torch.nonzero(flat >= 0).flatten().int())
    return every and torch.equal(flat[places[there].long()], experts[there])


def spent(size: Size, mode: UnionMode, device: str) -> bool:
    """The budget's launches against the rules of the CPU, in NumPy."""
    trial = Trial(size, SkipMode.MASK, device)
    trial.rows[size.tokens // 3] |= MANDATORY
    logits_TE = _normal(trial, size.tokens, size.experts)
    weights, ids = logits_TE.softmax(-1).sort(dim=-1, descending=True, stable=True)
    weights, ids = weights[:, : size.top_k].contiguous(), ids[:, : size.top_k].int().contiguous()
    budget = max(1, size.experts // 3)
    union = Union(1, device)
    union.set(UnionBudget(experts=budget, mode=mode))
    step = trial.step(renormalize=False)
    found = weights.clone().to(device), ids.clone().to(device)
    moves = mode is UnionMode.REDIRECT
    spend(*found, logits_TE.to(device) if moves else None, union, step)
    real = trial.rows >= 0
    expected = decide_budget(
        weights[real].numpy(),
        ids[real].numpy(),
        trial.betas[trial.rows[real].long() & 255].numpy(),
        ((trial.rows[real] & MANDATORY) != 0).numpy(),
        size.experts,
        budget,
        logits_TE[real].numpy() if moves else None,
        factors_E=trial.factors.numpy(),
    )
    computed = torch.zeros(size.tokens, size.experts + 1)
    places = torch.where(found[1].cpu() < 0, size.experts, found[1].cpu()).long()
    computed.scatter_(1, places, found[0].cpu())
    counts = trial.table.read()
    kept = expected.weights_TE != 0
    return (
        _close(computed[real][:, : size.experts], torch.from_numpy(expected.weights_TE))
        and torch.equal(found[1].cpu()[~real], ids[~real])
        and counts.substituted == expected.moved
        and counts.skipped == int(real.sum()) * size.top_k - int(kept.sum())
        and counts.distinct_experts == int(kept.any(0).sum())
    )


def summed(size: Size, dtype: torch.dtype, device: str) -> bool:
    """The sum over slots, on a workspace whose unwritten rows are no numbers."""
    trial = Trial(size, SkipMode.MASK, device)
    rows_TKD = _normal(trial, size.tokens, size.top_k, 96).to(dtype)
    skipped_TK = torch.rand(size[:2], generator=trial.random, device="cpu") < 0.4
    ids = torch.where(skipped_TK, -1, 1).int()
    rows_TKD[skipped_TK] = float("nan")
    expected = torch.zeros(size.tokens, 96)
    for slot in range(size.top_k):
        row_TD = rows_TKD[:, slot].float()
        expected += torch.where(skipped_TK[:, slot, None], 0.0, row_TD)
    out = torch.empty(size.tokens, 96, dtype=dtype, device=device)
    sum_computed(rows_TKD.to(device), out, ids.to(device))
    found, wanted = out.cpu(), expected.to(dtype)
    # Triton's interpreter cuts bits off where a device rounds.
    return torch.equal(found, wanted) if device != "cpu" else _close(found, wanted)


def cases(device: str) -> Iterator[tuple[str, Callable[[], bool]]]:
    """Every case by name."""
    types = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    for size in SIZES:
        named = f"{size.tokens}x{size.top_k} of {size.experts}"
        for name, dtype in types.items():
            for mode in MODES:
                yield (
                    f"decide {mode.value} {name} {named}",
                    _case(decided, size, mode, dtype, device),
                )
            yield f"sum {name} {named}", _case(summed, size, dtype, device)
        for union in UnionMode:
            yield f"budget {union.value} {named}", _case(spent, size, union, device)
    for size, scoring, groups in ROUTED:
        for mode in MODES:
            given = (size, scoring, groups, mode, torch.float32, device)
            yield f"route {mode.value} scores {scoring} {size}", _case(routed, *given)
        given = (size, scoring, groups, SkipMode.MASK, torch.bfloat16, device)
        yield f"route bfloat16 scores {scoring} {size}", _case(routed, *given)


def _case(check: Callable[..., bool], *arguments: Any) -> Callable[[], bool]:
    return lambda: check(*arguments)


def main() -> None:
    device, first = sys.argv[1:]
    run(cases(device), int(first))
