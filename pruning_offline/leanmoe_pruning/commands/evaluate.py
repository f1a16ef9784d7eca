"""``leanmoe eval``: perplexity per domain, and the distance from another model."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from leanmoe.command import Result
from leanmoe.errors import CheckpointError, InputError
from leanmoe.policy import check_level
from leanmoe.process.interrupts import stop_on_signals
from leanmoe_pruning.checkpoints.opening import OpenedModel, open_runnable_model
from leanmoe_pruning.data import DataSet, load_data
from leanmoe_pruning.data.tasks.loading import HELP
from leanmoe_pruning.data.tasks.open_prompts import HELP as PROMPTS_HELP
from leanmoe_pruning.data.tasks.open_prompts import load_prompts
from leanmoe_pruning.evaluation.domain_groups import group_reports
from leanmoe_pruning.evaluation.eval_tables import show
from leanmoe_pruning.evaluation.judging import BACKENDS, Judge, judge_model, make_judge
from leanmoe_pruning.evaluation.levels import LevelPass
from leanmoe_pruning.evaluation.long_answers import LongQuestions
from leanmoe_pruning.evaluation.own_answers import own_answers
from leanmoe_pruning.evaluation.perplexity import Against, domain_report, domain_sums, forward
from leanmoe_pruning.evaluation.remembered import Remembered
from leanmoe_pruning.evaluation.task_result import TaskResult, task_report
from leanmoe_pruning.forward.skipping import EXACT, Skipping
from leanmoe_pruning.forward.stream import DecoderStream
from leanmoe_pruning.options import (
    argument,
    command_of,
    compute_option,
    data_option,
    flag,
    option,
    window_option,
)
from leanmoe_pruning.progress import progress
from leanmoe_pruning.served.chat_server import is_url
from leanmoe_pruning.served.judgement import Asked, judge_served


@dataclass(frozen=True, kw_only=True)
class EvalOptions:
    """What ``leanmoe eval`` takes."""

    model: str | Path = argument("checkpoint directory, or URL of a server", metavar="MODEL")
    data: str | None = data_option(required=False)
    window: int = window_option()
    tasks: str | None = option(HELP, metavar="TASKS")
    backend: str = option(
        "who judges tasks: our own scorer (default), or lm-evaluation-harness around our "
        "forward pass, which also knows tasks by name",
        default="own",
        choices=BACKENDS,
    )
    include_path: Path | None = option("folder of lm-eval task files (YAML)", metavar="DIR")
    against: str | Path | None = option(
        "also give KL(MODEL2 || MODEL), top-1 agreement and paired differences on tasks; beside "
        "a server another one, or what eval wrote of one with --json",
        metavar="MODEL2",
    )
    remember: Path | None = option(
        "keep what MODEL2 said in DIR, so that the next eval against it on the same texts and "
        "tasks does not run it again",
        metavar="DIR",
    )
    long: int | None = option(
        "also have prompts answered with up to N tokens: how long answers are, whether they end by "
        "themselves, how much they repeat",
        metavar="N",
        within=(2, 1_000_000),
    )
    prompts: str = option(PROMPTS_HELP, default="builtin", metavar="SPEC")
    temperature: float = option(
        "of the long answers (default 0: the likeliest token)", default=0.0, metavar="T"
    )
    skip_level: float | None = option(
        "skip level of MODEL (default: 0, or the server's own)", metavar="L"
    )
    max_kld: float | None = option(
        "instead, the highest level whose measured KLD bound stays under this", metavar="NATS"
    )
    compute: str | None = compute_option()
    seed: int = 0


def _check_levels(options: EvalOptions) -> None:
    if options.skip_level is not None and options.max_kld is not None:
        raise InputError("--skip-level and --max-kld both name the level; give one of them")
    if options.skip_level is not None:
        check_level(options.skip_level, "--skip-level")


def _served(options: EvalOptions) -> Result:
    """A server's answers to tasks; what its weights say of texts is not seen from here."""
    for name in ("data", "compute", "remember"):
        if getattr(options, name) is not None:
            raise InputError(
                f"{flag(name)} is for a checkpoint, and {options.model} is a server, which is "
                "judged by --tasks and --long; drop it, or download the model and give its folder"
            )
    if options.tasks is None and options.long is None:
        raise InputError("nothing to judge a server by: give --tasks TASKS, --long N or both")
    return judge_served(
        Asked(
            url=str(options.model),
            against=options.against,
            tasks=options.tasks,
            include_path=options.include_path,
            skip_level=options.skip_level,
            max_kld=options.max_kld,
            long=_questions(options),
        )
    )


def _questions(options: EvalOptions) -> LongQuestions | None:
    """What is to be answered at length."""
    if not (math.isfinite(options.temperature) and options.temperature >= 0.0):
        raise InputError(f"--temperature is {options.temperature}, expected a number from 0")
    if options.long is None:
        return None
    prompts = load_prompts(options.prompts)
    return LongQuestions(prompts, options.long, options.temperature, options.seed)


def _level(options: EvalOptions, checkpoint: OpenedModel) -> float:
    """The level of a checkpoint."""
    if options.max_kld is None:
        return options.skip_level or 0.0
    if checkpoint.manifest is None or checkpoint.manifest.curve is None:
        raise InputError(
            f"--max-kld needs a quality curve and {checkpoint.path} has none: run `leanmoe curve "
            "MODEL --data SPEC` first, or give --skip-level"
        )
    return checkpoint.manifest.curve.level_for_max_kld(options.max_kld)


def _skipping(checkpoint: OpenedModel, level: float) -> Skipping:
    curve = checkpoint.manifest.curve if checkpoint.manifest else None
    return Skipping.at(level, checkpoint.layers, curve)


def _pass(checkpoint: OpenedModel, data: DataSet, level: float, compute: str | None) -> LevelPass:
    stream = DecoderStream(checkpoint, compute)
    skipping = _skipping(checkpoint, level)
    with progress(f"{checkpoint.path.name}: layers", stream.n_layers) as tick:
        return forward(stream, data, skipping, tick)


def _open_other(place: str | Path, checkpoint: OpenedModel) -> OpenedModel:
    path = Path(place)
    if is_url(place) or path.is_file():
        raise InputError(
            f"--against {place} is no checkpoint and {checkpoint.path} is one; compare a server "
            "with a server, or with what eval wrote of one"
        )
    other = open_runnable_model(path)
    mine, theirs = checkpoint.config["vocab_size"], other.config["vocab_size"]
    if mine != theirs:
        raise CheckpointError(
            f"{path} has a vocabulary of {theirs} and {checkpoint.path} one of {mine}; "
            "only models of one vocabulary can be compared"
        )
    return other


@torch.inference_mode()
def _run(options: EvalOptions) -> Result:
    started = time.monotonic()
    _check_levels(options)
    if is_url(options.model):
        with stop_on_signals():
            return _served(options)
    checkpoint = open_runnable_model(Path(options.model))
    other = _open_other(options.against, checkpoint) if options.against else None
    if options.remember is not None and other is None:
        raise InputError("--remember keeps what the model of --against said; give --against too")
    questions = _questions(options)
    if options.data is None and options.tasks is None and questions is None:
        raise InputError("nothing to judge by: give --data SPEC, --tasks TASKS or --long N")
    data = (
        load_data(options.data, checkpoint, "heldout", window=options.window, seed=options.seed)
        if options.data
        else None
    )
    judge = (
        make_judge(options.tasks, options.backend, options.include_path) if options.tasks else None
    )
    level = _level(options, checkpoint)
    _skipping(checkpoint, level)
    digest = other.digest if other else None
    memory = Remembered(options.remember, digest or "", options.compute)
    with stop_on_signals():
        texts = _judge_texts(options, level, checkpoint, other, memory, data) if data else {}
        tasks = _judge_tasks(options, level, checkpoint, other, memory, judge) if judge else {}
        long = _judge_long(options, level, checkpoint, other, questions) if questions else {}
    return {
        "model": str(options.model),
        "manifest_digest": checkpoint.manifest.digest() if checkpoint.manifest else None,
        "weights_digest": checkpoint.digest,
        "against": str(options.against) if options.against else None,
        "against_weights_digest": digest,
        "skip_level": level,
        **texts,
        **tasks,
        **long,
        "seconds": round(time.monotonic() - started, 1),
    }


def _judge_texts(
    options: EvalOptions,
    level: float,
    checkpoint: OpenedModel,
    other: OpenedModel | None,
    memory: Remembered,
    data: DataSet,
) -> Result:
    run = _pass(checkpoint, data, level, options.compute)
    against = _against(options, other, memory, data) if other else None
    with progress("windows", data.windows) as tick:
        sums = domain_sums(run, against, data, tick)
    domains = {name: domain_report(found, theirs) for name, (found, theirs) in sums.items()}
    return {"skip_rate": run.skip_rate(0), "domains": domains, "groups": group_reports(domains)}


def _against(
    options: EvalOptions, other: OpenedModel, memory: Remembered, data: DataSet
) -> Against:
    hidden = memory.hidden(data.digest(), lambda: _pass(other, data, 0.0, options.compute).hidden)
    return Against(DecoderStream(other, options.compute), hidden)


def _judge_tasks(
    options: EvalOptions,
    level: float,
    checkpoint: OpenedModel,
    other: OpenedModel | None,
    memory: Remembered,
    judge: Judge,
) -> Result:
    mine = judge_model(judge, checkpoint, _skipping(checkpoint, level), options.compute)
    theirs: Sequence[TaskResult | None] = [None] * len(mine)
    if other is not None:
        theirs = memory.tasks(
            judge.digest(), lambda: judge_model(judge, other, EXACT, options.compute)
        )
    return {
        "backend": options.backend,
        "tasks": {one.task: task_report(one, two) for one, two in zip(mine, theirs, strict=True)},
    }


def _judge_long(
    options: EvalOptions,
    level: float,
    checkpoint: OpenedModel,
    other: OpenedModel | None,
    questions: LongQuestions,
) -> Result:
    skipping = _skipping(checkpoint, level)
    mine, theirs = own_answers(questions, checkpoint, skipping, options.compute), None
    if other is not None:
        theirs = own_answers(questions, other, EXACT, options.compute)
    return questions.report(mine, theirs)


COMMAND = command_of(
    EvalOptions,
    _run,
    name="eval",
    summary="Perplexity on held-out text and accuracy on tasks, alone or against another model.",
    example="leanmoe eval ./lean --against ./reference --data builtin:gen:8,builtin:py:8 "
    "--tasks builtin:arith,mine.jsonl",
    show=show,
)
