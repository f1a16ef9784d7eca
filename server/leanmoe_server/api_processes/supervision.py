"""The process that starts engine and API processes, passes a stop on, and ends all when one dies.

vLLM starts them (``run_multi_api_server``) and watches them. What stands in for its manager of
API processes gives them our start, hands signals on, and knows how long a drain takes.
"""

from __future__ import annotations

import signal
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from leanmoe.errors import LeanMoEError
from leanmoe.seams import find
from leanmoe_server import seams
from leanmoe_server.api_processes.process_set import ProcessSet
from leanmoe_server.drain import ABORT_SECONDS
from leanmoe_server.stopping import LOADING_SECONDS, end_within
from leanmoe_server.watchdog import END_SECONDS

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
# After the drain: what ends answers that still run, then connections, then the process.
_PAST_DRAIN_SECONDS = 2 * ABORT_SECONDS + 10.0
# Where one died there is nothing to wait for.
_BEREFT_SECONDS = 2.0


def supervise(args: Namespace, processes: ProcessSet, start: Callable[..., None]) -> None:
    """Run engine and API processes, each by ``start``, until told to stop.

    ``KeyboardInterrupt`` where that was before all took requests; whatever vLLM raises where a
    process died.
    """
    manager = _manager(processes, start, args.leanmoe.drain_seconds)
    try:
        with _standing_in(manager):
            find(seams.RUN_API_PROCESSES)(args)
    except SystemExit:
        if not processes.told_to_stop:
            raise
    if not processes.told_to_stop:
        raise LeanMoEError("the API processes ended by themselves; their messages above say why")
    if not processes.all_listen:
        raise KeyboardInterrupt("no request was answered yet")


def _manager(processes: ProcessSet, start: Callable[..., None], drain_seconds: float) -> Any:
    class Manager(find(seams.API_PROCESS_MANAGER)):  # type: ignore[misc]
        """vLLM's, with our processes."""

        def __init__(self, **given: Any) -> None:
            super().__init__(**given, target_server_fn=start)
            processes.let_go()
            for number in _SIGNALS:
                signal.signal(number, self._stop)

        def _stop(self, number: int, frame: FrameType | None) -> None:
            if processes.told_to_stop:
                for process in self.processes:  # a second signal: do not wait for answers
                    process.terminate()
                return
            processes.tell_to_stop()
            if not processes.all_listen:
                end_within(LOADING_SECONDS, 130)
            raise SystemExit

        def shutdown(self, timeout: float | None = None) -> None:
            if processes.told_to_stop:
                super().shutdown(timeout=drain_seconds + _PAST_DRAIN_SECONDS)
                return
            end_within(END_SECONDS, 1)
            super().shutdown(timeout=_BEREFT_SECONDS)

    return Manager


@contextmanager
def _standing_in(manager: Any) -> Iterator[None]:
    """``manager`` where vLLM's function looks for its own."""
    module = sys.modules[find(seams.RUN_API_PROCESSES).__module__]
    name = seams.API_PROCESS_MANAGER.name
    before = getattr(module, name)
    setattr(module, name, manager)
    try:
        yield
    finally:
        setattr(module, name, before)
