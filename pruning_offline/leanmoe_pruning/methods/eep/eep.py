"""``--method eep``: its options, its search, its dump."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from leanmoe.errors import InputError
from leanmoe.files.digest import bytes_digest
from leanmoe.files.resuming import kept_folder, kept_in
from leanmoe_pruning.cutting.packing import check_sums
from leanmoe_pruning.data.tasks.loading import HELP as TASK_HELP
from leanmoe_pruning.data.tasks.loading import load_task
from leanmoe_pruning.data.tasks.task import Task
from leanmoe_pruning.methods.eep.eep_options import check_merging, check_model, refuse, top_k_of
from leanmoe_pruning.methods.eep.evolution import INITIAL, Limits, Operators, Scored, Search, Space
from leanmoe_pruning.methods.eep.fitness import Evaluator, Load, OwnProcess
from leanmoe_pruning.methods.eep.individual import Individual, group_of_layers
from leanmoe_pruning.methods.eep.merged_model import Applied, stored_dtype
from leanmoe_pruning.methods.eep.published_formula import Negatives
from leanmoe_pruning.methods.eep.store import Store
from leanmoe_pruning.methods.eep.workers import RayWorkers
from leanmoe_pruning.methods.method import Decision, Inputs, Method
from leanmoe_pruning.methods.request import Request
from leanmoe_pruning.methods.selection import check_keep
from leanmoe_pruning.options import option
from leanmoe_pruning.progress import progress

# Evaluations until merging begins and in all: search.yml's, and the paper's 40 + 160.
BUDGETS: dict[Operators, tuple[int, int]] = {"released": (100, 400), "paper": (40, 200)}
PER_LAYER = "per-layer"
DEFAULT_GROUPS = 4
DEV_NUM = 20
MAX_WORKERS = 64


@dataclass(frozen=True)
class Eep:
    """A checked run."""

    inputs: Inputs
    space: Space
    top_k: int
    parts: Mapping[str, Task]
    operators: Operators
    limits: Limits
    workers: int
    out: Path

    def settings(self) -> dict[str, Any]:
        return {
            "keep": self.space.n_slots,
            "top_k": self.top_k,
            "groups": self.space.n_groups,
            "operators": self.operators,
            "evaluations": {"pruning": self.limits.pruning, "total": self.limits.total},
            "workers": self.workers,
            "seed": self.inputs.seed,
            "task": {
                part: {"name": task.name, "items": len(task), "digest": task.digest()}
                for part, task in self.parts.items()
            },
        }

    def decide(self, dump: bool) -> Decision:
        applied = self._applied()
        with kept_folder(self.out, self._key()) as folder:
            store = Store(folder)
            try:
                found, best, counts, redrawn = self._search(applied, store)
            except KeyboardInterrupt:
                kept = kept_in(folder) if any(folder.iterdir()) else ""
                raise KeyboardInterrupt(kept) from None
        tensors, facts = _evidence(applied, found, best) if dump else ({}, {})
        return Decision(
            applied.plans(best.individual, self.inputs.shape.renormalize),
            tensors,
            facts,
            notes=(*self._notes(best), *counts.note()),
            record=_record(found, best, counts, redrawn),
            kept=folder,
        )

    def _search(
        self, applied: Applied, store: Store
    ) -> tuple[list[Scored], Scored, Negatives, int]:
        evaluator = self._evaluator(applied)
        search = Search(
            space=self.space,
            limits=self.limits,
            operators=self.operators,
            seed=self.inputs.seed,
            workers=self.workers,
            evaluator=evaluator,
            store=store,
        )
        try:
            with progress("eep: evaluations", self.limits.total + self.limits.held_out) as tick:
                found = search.run(tick)
                best = search.pick(found, tick)
            counts = evaluator.negatives(best.individual, "train")
        finally:
            evaluator.close()
        return found, best, counts, search.redrawn

    def _applied(self) -> Applied:
        layers = self.inputs.shape.moe_layers
        groups = group_of_layers(len(layers), self.space.n_groups)
        stored = stored_dtype(self.inputs.checkpoint)
        return Applied(dict(zip(layers, groups, strict=True)), self.top_k, stored)

    def _evaluator(self, applied: Applied) -> Evaluator:
        load = Load(self.inputs.checkpoint.path, self.inputs.compute, applied, dict(self.parts))
        return OwnProcess(load) if self.workers == 1 else RayWorkers(self.workers, load)

    def _key(self) -> str:
        """Stands for all that the scores follow from."""
        told = f"{sorted(self.inputs.source.items())} {self.settings()} {self.inputs.compute}"
        return bytes_digest([told.encode()]).removeprefix("sha256:")[:16]

    def _notes(self, best: Scored) -> tuple[str, ...]:
        if best.held_out is None:
            return (
                f"eep: the score {best.score:.1f} is of the items that were searched on; judge the "
                "result on others",
            )
        return ()


def _record(found: list[Scored], best: Scored, counts: Negatives, redrawn: int) -> dict[str, Any]:
    return {
        "found": {
            "index": best.index,
            "score": best.score,
            "held_out_score": best.held_out,
            "first_score": found[0].score,
            "evaluated": len(found),
            "drawn_again": redrawn,
            "chosen": counts.chosen,
            "chosen_below_zero": counts.negative,
        }
    }


def _evidence(
    applied: Applied, found: list[Scored], best: Scored
) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    groups = list(applied.group_of.values())
    members: list[Individual] = [one.individual for one in found]
    scores = torch.tensor([one.score for one in found], dtype=torch.float64)
    tensors = {
        "W_EM": best.individual.experts[groups],
        "W_RM": best.individual.router[groups],
        "population.EM": torch.stack([member.experts for member in members]),
        "population.RM": torch.stack([member.router for member in members]),
        "population.score": scores,
    }
    return tensors, {"best": best.index, "num_slots": best.individual.n_slots}


@dataclass(frozen=True)
class EepOptions:
    """The options of ``--method eep``."""

    task: str | None = option(f"what to be good at: {TASK_HELP}", metavar="SPEC")
    train_items: int | None = option("items to search on (default: all but dev)", metavar="N")
    dev_items: int | None = option(
        f"items that pick among the {DEV_NUM} best (default: a quarter; 0: best in training)",
        metavar="N",
    )
    groups: str | None = option(
        f"depth groups that share their matrices: a number or {PER_LAYER} (default "
        f"{DEFAULT_GROUPS})",
        metavar="N",
    )
    operators: Operators = option(
        "as in the released code (default), or in the paper's Algorithm 1",
        default="released",
        choices=tuple(BUDGETS),
    )
    prune_evaluations: int | None = option(
        f"until merging begins (default 100, paper 40); the first {INITIAL} are random",
        metavar="N",
    )
    evaluations: int | None = option("in all (default 400, paper 200)", metavar="N")
    top_k: int | None = option(
        "lower the active experts per token (--method matrices takes it too)", metavar="K"
    )
    workers: int = option(
        "processes through Ray (default 1)", default=1, metavar="N", within=(1, MAX_WORKERS)
    )


def _open(request: Request, options: EepOptions, inputs: Inputs) -> Eep:
    check_model(inputs, "eep")
    refuse(request, "eep", "--task and --keep", "data", "scores", "ratio")
    if request.keep is None:
        raise InputError("--method eep takes --keep N, the experts left per layer; give it")
    shape = inputs.shape
    top_k = top_k_of(options.top_k, inputs, shape.n_routed_experts)
    check_keep(request.keep, replace(shape, top_k=top_k), str(inputs.checkpoint.path))
    parts = _parts(options)
    limits = _limits(options, request.keep == shape.n_routed_experts, held_out="dev" in parts)
    if limits.total > limits.pruning or not shape.renormalize:
        check_merging(inputs)
    if limits.total > limits.pruning:
        check_sums(inputs.checkpoint, request.compress)
    return Eep(
        inputs=inputs,
        space=Space(_groups(options.groups, inputs), request.keep, shape.n_routed_experts),
        top_k=top_k,
        parts=parts,
        operators=options.operators,
        limits=limits,
        workers=options.workers,
        out=request.out,
    )


def _groups(text: str | None, inputs: Inputs) -> int:
    n_layers = len(inputs.shape.moe_layers)
    if text is None:
        return min(DEFAULT_GROUPS, n_layers)
    if text == PER_LAYER:
        return n_layers
    if not (text.isascii() and text.isdigit() and 1 <= int(text) <= n_layers):
        raise InputError(
            f"--groups is {text!r}, expected a number from 1 to {n_layers} (the MoE layers of "
            f"{inputs.checkpoint.path}) or {PER_LAYER}"
        )
    return int(text)


def _parts(options: EepOptions) -> dict[str, Task]:
    if options.task is None:
        raise InputError("--method eep searches for a task; give --task SPEC")
    task = load_task(options.task, "calibration")
    dev = len(set(task.items)) // 4 if options.dev_items is None else options.dev_items
    train = len(set(task.items)) - dev if options.train_items is None else options.train_items
    if train < 1:
        raise InputError(
            f"--task {options.task!r} leaves {train} items to search on beside {dev} held-out "
            "ones; give more items or fewer --dev-items"
        )
    first, second, _ = task.split(train, dev)
    return {"train": first, "dev": second} if dev else {"train": first}


def _limits(options: EepOptions, whole: bool, held_out: bool) -> Limits:
    pruning, total = BUDGETS[options.operators]
    pruning = pruning if options.prune_evaluations is None else options.prune_evaluations
    total = total if options.evaluations is None else options.evaluations
    if whole:
        # All experts stay, so there is nothing to prune: merging starts from the model as it is.
        pruning = 0
    if not 0 <= pruning <= total or total < 1:
        raise InputError(
            f"--prune-evaluations {pruning} and --evaluations {total} do not fit: the first are "
            "among the second, and there is at least one"
        )
    return Limits(pruning, total, DEV_NUM if held_out else 0)


METHOD = Method(
    name="eep",
    summary="searches selections and mixtures of experts by evolution on a task",
    open=_open,
    options=EepOptions,
    reads_data=False,
)
