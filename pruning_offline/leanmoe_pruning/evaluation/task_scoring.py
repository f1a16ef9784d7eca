"""A task answered by a model: which items it has right.

Choices are judged twice: by the sum of log p of each, and by that sum per byte of its text,
which does not favour short ones; the lowest number wins among equals. Generated answers must
equal the right one, blanks at both ends aside, on the line they begin on.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import chain

from leanmoe_pruning.data.tasks.task import Task
from leanmoe_pruning.data.tokenizer import ModelTokenizer
from leanmoe_pruning.evaluation.generation import generate
from leanmoe_pruning.evaluation.likelihood import Request, encode_pair, log_likelihoods
from leanmoe_pruning.evaluation.resident import ResidentModel
from leanmoe_pruning.evaluation.task_result import TaskResult
from leanmoe_pruning.progress import Tick, no_tick

MAX_TOKENS = 32


def score_task(
    model: ResidentModel, task: Task, tick: Tick = no_tick, max_tokens: int = MAX_TOKENS
) -> TaskResult:
    """Answer every item; ``tick`` is called ``steps(task)`` times."""
    return score_tasks(model, [task], tick, max_tokens)[0]


def score_tasks(
    model: ResidentModel,
    tasks: Sequence[Task],
    tick: Tick = no_tick,
    max_tokens: int = MAX_TOKENS,
) -> list[TaskResult]:
    """Several tasks; all choices go through the layers together."""
    start, tokenizer = model.start_id, model.tokenizer
    requests = [_requests(tokenizer, start, task) for task in tasks if task.has_choices]
    sums = (one.log_p for one in log_likelihoods(model, list(chain(*requests)), tick))
    return [
        _judged_choices(task, sums)
        if task.has_choices
        else _score_open(model, task, tick, max_tokens)
        for task in tasks
    ]


def steps(task: Task) -> int:
    """Choices or items to run."""
    return sum(len(item.choices) for item in task.choice_items) or len(task)


@lru_cache(maxsize=16)
def _requests(tokenizer: ModelTokenizer, start: int, task: Task) -> tuple[Request, ...]:
    """Every choice of every item in order; kept, since searches ask the same task many times."""
    return tuple(
        encode_pair(tokenizer, item.prompt, choice, start)
        for item in task.choice_items
        for choice in item.choices
    )


def _judged_choices(task: Task, sums: Iterator[float]) -> TaskResult:
    log_p = [tuple(next(sums) for _ in item.choices) for item in task.choice_items]
    correct, per_byte = [], []
    for item, found in zip(task.choice_items, log_p, strict=True):
        sizes = [len(choice.encode()) for choice in item.choices]
        relative = [one / size for one, size in zip(found, sizes, strict=True)]
        correct.append(found.index(max(found)) == item.answer)
        per_byte.append(relative.index(max(relative)) == item.answer)
    return TaskResult(
        task.name,
        tuple(correct),
        tuple(per_byte),
        tuple(log_p),
        digest=task.digest(),
        chance=task.chance,
    )


def _score_open(model: ResidentModel, task: Task, tick: Tick, max_tokens: int) -> TaskResult:
    items = task.open_items
    start = [model.start_id]
    prompts = [model.tokenizer.encode(item.prompt) or start for item in items]

    def done(which: int, text: str) -> bool:
        """At the end of the line, or as soon as the answer can only be wrong."""
        # The last token may end inside a character.
        wanted, found = items[which].answer.strip(), text.lstrip().rstrip("\ufffd")
        return "\n" in found or not (wanted.startswith(found) or found.rstrip() == wanted)

    texts = generate(model, prompts, max_tokens, done, tick)
    answers = [text.lstrip().partition("\n")[0].strip() for text in texts]
    right = [found == item.answer.strip() for found, item in zip(answers, items, strict=True)]
    return TaskResult(task.name, tuple(right), digest=task.digest())
