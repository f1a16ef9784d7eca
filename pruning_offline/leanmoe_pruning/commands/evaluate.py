"""``leanmoe eval``: perplexity per domain, and the distance from another model."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from leanmoe.checkpoint import Checkpoint
from leanmoe.command import Command, Result
from leanmoe.errors import CheckpointError, InputError
from leanmoe.policy import check_level, resolve_betas
from leanmoe.process.interrupts import stop_on_signals
from leanmoe_pruning.checkpoints.opening import model_digest, open_runnable_model
from leanmoe_pruning.commands.options import add_compute, add_data, add_model
from leanmoe_pruning.data import DataSet, load_data
from leanmoe_pruning.data.tasks.loading import HELP
from leanmoe_pruning.evaluation.judging import BACKENDS, Judge, judge_model, make_judge
from leanmoe_pruning.evaluation.levels import LevelPass
from leanmoe_pruning.evaluation.perplexity import Against, domain_report, domain_sums, forward
from leanmoe_pruning.evaluation.remembered import Remembered
from leanmoe_pruning.evaluation.task_result import TaskResult, task_report
from leanmoe_pruning.forward.stream import DecoderStream
from leanmoe_pruning.progress import progress


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model(parser)
    add_data(parser, required=False)
    parser.add_argument("--tasks", metavar="TASKS", help=HELP)
    parser.add_argument(
        "--backend",
        choices=BACKENDS,
        default="own",
        help="who judges tasks: our own scorer (default), or lm-evaluation-harness around our "
        "forward pass, which also knows tasks by name",
    )
    parser.add_argument(
        "--include-path", type=Path, metavar="DIR", help="folder of lm-eval task files (YAML)"
    )
    parser.add_argument(
        "--against",
        type=Path,
        metavar="MODEL2",
        help="also give KL(MODEL2 || MODEL), top-1 agreement and paired differences on tasks",
    )
    parser.add_argument(
        "--remember",
        type=Path,
        metavar="DIR",
        help="keep what MODEL2 said in DIR, so that the next eval against it on the same texts and "
        "tasks does not run it again",
    )
    parser.add_argument(
        "--skip-level", type=float, default=0.0, metavar="L", help="skip level of MODEL (default 0)"
    )
    add_compute(parser)


def _betas(checkpoint: Checkpoint, level: float) -> dict[int, float]:
    curve = checkpoint.manifest.curve if checkpoint.manifest else None
    return resolve_betas(level, checkpoint.skip_layers, curve)


def _pass(checkpoint: Checkpoint, data: DataSet, level: float, compute: str | None) -> LevelPass:
    stream = DecoderStream(checkpoint, compute)
    betas = _betas(checkpoint, level)
    with progress(f"{checkpoint.path.name}: layers", stream.n_layers) as tick:
        return forward(stream, data, betas, tick)


def _open_other(path: Path, checkpoint: Checkpoint) -> Checkpoint:
    other = open_runnable_model(path)
    mine, theirs = checkpoint.config["vocab_size"], other.config["vocab_size"]
    if mine != theirs:
        raise CheckpointError(
            f"{path} has a vocabulary of {theirs} and {checkpoint.path} one of {mine}; "
            "only models of one vocabulary can be compared"
        )
    return other


@torch.inference_mode()
def _run(args: argparse.Namespace) -> Result:
    started = time.monotonic()
    check_level(args.skip_level, "--skip-level")
    checkpoint = open_runnable_model(args.model)
    other = _open_other(args.against, checkpoint) if args.against else None
    if args.remember is not None and other is None:
        raise InputError("--remember keeps what the model of --against said; give --against too")
    if args.data is None and args.tasks is None:
        raise InputError("nothing to judge by: give --data SPEC, --tasks TASKS or both")
    data = load_data(args.data, checkpoint, "heldout", window=args.window) if args.data else None
    judge = make_judge(args.tasks, args.backend, args.include_path) if args.tasks else None
    _betas(checkpoint, args.skip_level)
    digest = model_digest(other) if other else None
    memory = Remembered(args.remember, digest or "", args.compute)
    with stop_on_signals():
        texts = _judge_texts(args, checkpoint, other, memory, data) if data else {}
        tasks = _judge_tasks(args, checkpoint, other, memory, judge) if judge else {}
    return {
        "model": str(args.model),
        "manifest_digest": checkpoint.manifest.digest() if checkpoint.manifest else None,
        "weights_digest": model_digest(checkpoint),
        "against": str(args.against) if args.against else None,
        "against_weights_digest": digest,
        "skip_level": args.skip_level,
        **texts,
        **tasks,
        "seconds": round(time.monotonic() - started, 1),
    }


def _judge_texts(
    args: argparse.Namespace,
    checkpoint: Checkpoint,
    other: Checkpoint | None,
    memory: Remembered,
    data: DataSet,
) -> Result:
    run = _pass(checkpoint, data, args.skip_level, args.compute)
    against = _against(args, other, memory, data) if other else None
    with progress("windows", data.windows) as tick:
        sums = domain_sums(run, against, data, tick)
    return {
        "skip_rate": run.skip_rate(0),
        "domains": {
            name: domain_report(found, other_found) for name, (found, other_found) in sums.items()
        },
    }


def _against(
    args: argparse.Namespace, other: Checkpoint, memory: Remembered, data: DataSet
) -> Against:
    hidden = memory.hidden(data.digest(), lambda: _pass(other, data, 0.0, args.compute).hidden)
    return Against(DecoderStream(other, args.compute), hidden)


def _judge_tasks(
    args: argparse.Namespace,
    checkpoint: Checkpoint,
    other: Checkpoint | None,
    memory: Remembered,
    judge: Judge,
) -> Result:
    mine = judge_model(judge, checkpoint, _betas(checkpoint, args.skip_level), args.compute)
    theirs: Sequence[TaskResult | None] = [None] * len(mine)
    if other is not None:
        theirs = memory.tasks(judge.digest(), lambda: judge_model(judge, other, {}, args.compute))
    return {
        "backend": args.backend,
        "tasks": {one.task: task_report(one, two) for one, two in zip(mine, theirs, strict=True)},
    }


def _show(result: Result) -> str:
    shown = [_show_texts(result)] if "domains" in result else []
    return "\n\n".join(shown + ([_show_tasks(result)] if "tasks" in result else []))


def _show_texts(result: Result) -> str:
    lines = ["domain        perplexity        95 % interval   tokens"]
    for name, found in result["domains"].items():
        interval = f"{found['low']:.3f} .. {found['high']:.3f}" if found["low"] else "one window"
        line = f"{name:12}  {found['perplexity']:10.3f}  {interval:>19}  {found['tokens']:7}"
        if "kld" in found:
            line += f"   KLD {found['kld']:.5f}   top-1 same {found['top1_agreement']:.1%}"
        lines.append(line)
    return "\n".join(lines)


def _show_tasks(result: Result) -> str:
    lines = ["task              items  accuracy   95 % interval   per byte"]
    for name, found in result["tasks"].items():
        lines.append(_show_task(name, found))
    return "\n".join(lines)


def _show_task(name: str, found: Result) -> str:
    if "accuracy" not in found:
        figures = ", ".join(f"{key} {value:.4f}" for key, value in found.get("metrics", {}).items())
        return f"{name:16}  {found['items']:5}  {figures}"
    line = f"{name:16}  {found['items']:5}  {found['accuracy']:8.1%}  "
    line += f"{found['low']:6.1%} .. {found['high']:6.1%}"
    line += f"  {found['per_byte']['accuracy']:8.1%}" if "per_byte" in found else " " * 10
    if "against" in found:
        other = found["against"]
        line += (
            f"   other {other['accuracy']:.1%}, difference {other['difference']:+.1%} "
            f"({other['low']:+.1%} .. {other['high']:+.1%})"
        )
    return line


COMMAND = Command(
    name="eval",
    help="Perplexity on held-out text and accuracy on tasks, alone or against another model.",
    example="leanmoe eval ./lean --against ./reference --data builtin:gen:8,builtin:fr:8 "
    "--tasks builtin:arith,mine.jsonl",
    add_arguments=_add_arguments,
    run=_run,
    show=_show,
)
