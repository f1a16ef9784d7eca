"""Tasks judged by EleutherAI's lm-evaluation-harness, the model run by our own forward pass.

Imported only where that library is asked for, and told that there is no hub. Nothing is
fetched: tasks are ours, or YAML files in a folder of the user's.
"""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lm_eval.api.model import LM
from lm_eval.evaluator import evaluate
from lm_eval.tasks import TaskManager

from leanmoe.errors import DataError, LeanMoEError
from leanmoe_pruning.data.tasks.builtin_tasks import LM_EVAL_TASKS
from leanmoe_pruning.data.tasks.loading import examples_of, load_task, parts_of
from leanmoe_pruning.data.tasks.task import Task
from leanmoe_pruning.evaluation.generation import generate
from leanmoe_pruning.evaluation.likelihood import Request, encode_pair, log_likelihoods
from leanmoe_pruning.evaluation.resident import ResidentModel
from leanmoe_pruning.evaluation.task_result import TaskResult
from leanmoe_pruning.progress import Tick, no_tick

# lm-eval's own default where a task says nothing.
_MAX_TOKENS = 256
_RIGHT = ("acc", "exact_match")
_PER_BYTE = "acc_bytes"

for _logger in ("lm_eval", "datasets"):
    logging.getLogger(_logger).setLevel(logging.ERROR)


class ForwardLM(LM):  # type: ignore[misc]  # the library is not typed
    """lm-eval's three questions, answered by ``model``."""

    def __init__(self, model: ResidentModel, tick: Tick = no_tick) -> None:
        super().__init__()
        self.model = model
        self.tick = tick

    @property
    def tokenizer_name(self) -> str:
        return str(self.model.stream.checkpoint.path)

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """(Sum of log p, whether greedy decoding gives it) of each (context, continuation)."""
        tokenizer, start = self.model.tokenizer, self.model.start_id
        pairs = [
            encode_pair(tokenizer, context, continuation, start)
            for context, continuation in (request.args for request in requests)
        ]
        found = log_likelihoods(self.model, pairs, self.tick)
        return [(one.log_p, one.greedy) for one in found]

    def loglikelihood_rolling(self, requests: Sequence[Any]) -> list[float]:
        """Sum of log p of whole texts, in windows of the model's length that do not overlap."""
        length, start = self.model.max_length, self.model.start_id
        parts: list[Request] = []
        owners: list[int] = []
        for which, request in enumerate(requests):
            ids = [start, *self.model.tokenizer.encode(request.args[0])]
            for first in range(1, len(ids), length):
                # As lm-eval does: each window follows the last token before it.
                parts.append(Request((ids[first - 1],), tuple(ids[first : first + length])))
                owners.append(which)
        sums = [0.0] * len(requests)
        for which, one in zip(owners, log_likelihoods(self.model, parts), strict=True):
            sums[which] += one.log_p
        return sums

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """Greedy text up to a task's own stops."""
        return [self._generate(*request.args) for request in requests]

    def _generate(self, context: str, settings: dict[str, Any]) -> str:
        if settings.get("do_sample") or settings.get("temperature", 0.0):
            raise DataError("a task asks for sampling, and this back end decodes greedily only")
        until = settings.get("until") or []
        stops = [until] if isinstance(until, str) else list(until)
        prompt = self.model.tokenizer.encode(context) or [self.model.start_id]
        tokens = int(settings.get("max_gen_toks", _MAX_TOKENS))
        (text,) = generate(
            self.model, [prompt], tokens, lambda _, text: any(stop in text for stop in stops)
        )
        self.tick()
        for stop in stops:
            text = text.split(stop)[0]
        return text


class HarnessTasks:
    """What ``--tasks`` names, found before any work; ``DataError`` where something is not.

    ``chat``: asked as turns of a chat, which takes tasks with written answers.
    """

    def __init__(self, specs: str, include_path: Path | None, chat: bool = False) -> None:
        self._own: dict[str, Task] = {}
        self._chat = chat
        places = [LM_EVAL_TASKS] if include_path is None else [LM_EVAL_TASKS, include_path]
        self._manager = TaskManager(include_path=places, include_defaults=False)
        with tempfile.TemporaryDirectory() as folder:
            files = [self._file(spec, Path(folder)) for spec in parts_of(specs)]
            self._loaded = self._load(files)
        if chat:
            self._check_written()

    def _check_written(self) -> None:
        for name, task in self._loaded["tasks"].items():
            if task.get_config("output_type") != "generate_until":
                raise DataError(
                    f"--tasks names {name}, which has choices or texts to be scored, and a server "
                    "is judged by what it writes; give builtin:sums, builtin:asked-facts, "
                    "builtin:asked-arith or tasks of your own with written answers"
                )

    def _load(self, files: list[str]) -> Any:
        try:
            return self._manager.load(files)
        except LeanMoEError:
            raise
        except Exception as error:  # a task file may be wrong in any way, or ask for a hub
            raise DataError(
                f"lm-eval cannot load the tasks ({type(error).__name__}: {error}); correct their "
                "files, whose data must be local"
            ) from None

    def _file(self, spec: str, folder: Path) -> str:
        """A task's name, or the path of a task file written for it."""
        if not (spec.startswith("builtin:") or ".jsonl" in spec):
            return self._known(spec)
        task = load_task(spec)
        self._own[task.name] = task
        path = folder / f"{len(self._own)}.yaml"
        # JSON is YAML.
        path.write_text(json.dumps(self._content(spec, task)), encoding="utf-8")
        return str(path)

    def _content(self, spec: str, task: Task) -> dict[str, Any]:
        content = {"task": task.name, "dataset_kwargs": {"spec": spec}}
        if task.has_choices:
            return {**content, "include": str(LM_EVAL_TASKS / "_choices.yaml")}
        if not self._chat:
            return {**content, "include": str(LM_EVAL_TASKS / "_answers.yaml")}
        asked = {"include": str(LM_EVAL_TASKS / "_asked.yaml")}
        return {**content, **asked, "num_fewshot": len(examples_of(spec))}

    def _known(self, name: str) -> str:
        known = [*self._manager.all_tasks]
        if name not in known:
            raise DataError(
                f"--tasks names {name!r}, which is neither builtin:NAME nor FILE.jsonl nor a task "
                f"of --include-path; lm-eval finds there: {', '.join(sorted(known)) or 'none'}"
            )
        return name

    @property
    def generates(self) -> bool:
        """Whether a task asks for text."""
        kinds = (task.get_config("output_type") for task in self._loaded["tasks"].values())
        return any(kind == "generate_until" for kind in kinds)

    @property
    def steps(self) -> int:
        """What progress counts: items, each once."""
        return sum(len(list(task.eval_docs)) for task in self._loaded["tasks"].values())

    def digest(self) -> str | None:
        return None

    @property
    def digests(self) -> dict[str, str | None]:
        """Every task's items by digest, where the task is a file of items."""
        own = {name: task.digest() for name, task in self._own.items()}
        return {name: own.get(name) for name in self._loaded["tasks"]}

    def judge(self, model: ResidentModel, tick: Tick) -> list[TaskResult]:
        """Run every task on a model."""
        return self.run(ForwardLM(model, tick))

    def run(self, model: LM) -> list[TaskResult]:
        """Run every task on a model of lm-eval's kind."""
        for task in self._loaded["tasks"].values():
            task.set_fewshot_seed(seed=0)
        turns = {"apply_chat_template": self._chat, "fewshot_as_multiturn": self._chat}
        found = evaluate(model, self._loaded, bootstrap_iters=0, **turns)
        return [self._result(name, found) for name in self._loaded["tasks"]]

    def _result(self, name: str, found: dict[str, Any]) -> TaskResult:
        samples = sorted(found["samples"][name], key=lambda sample: sample["doc_id"])
        own = self._own.get(name)
        right = next((metric for metric in _RIGHT if metric in samples[0]), None)
        figures = found["results"][name]
        return TaskResult(
            name,
            tuple(bool(one[right]) for one in samples) if right else (),
            tuple(bool(one[_PER_BYTE]) for one in samples) if _PER_BYTE in samples[0] else None,
            digest=own.digest() if own else None,
            chance=own.chance if own else None,
            answers=tuple(one["filtered_resps"][0] for one in samples) if self._chat else None,
            metrics={
                key: value
                for key, value in sorted(figures.items())
                if isinstance(value, float) and "stderr" not in key
            },
        )
