"""Task files and what a model makes of them."""

from __future__ import annotations

from leanmoe_pruning.quality.tasks.loading import load_task, load_tasks
from leanmoe_pruning.quality.tasks.result import TaskResult
from leanmoe_pruning.quality.tasks.scoring import score_task, score_tasks
from leanmoe_pruning.quality.tasks.task import ChoiceItem, OpenItem, Task

__all__ = [
    "ChoiceItem",
    "OpenItem",
    "Task",
    "TaskResult",
    "load_task",
    "load_tasks",
    "score_task",
    "score_tasks",
]
