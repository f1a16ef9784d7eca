"""The processes of one server: the API's own, and those of the engine behind them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence

import psutil


class ProcessTree:
    """``root`` started everything; ``api`` says which of its processes answer requests.

    Where there is one API process, it is both.
    """

    def __init__(
        self, root: int | None = None, api: Callable[[], Sequence[int]] = lambda: (os.getpid(),)
    ) -> None:
        self._root = os.getpid() if root is None else root
        self._api = api

    def api(self) -> Iterator[psutil.Process]:
        """The API processes that are there."""
        for pid in self._api():
            try:
                yield psutil.Process(pid)
            except psutil.Error:
                continue

    def others(self) -> Iterator[psutil.Process]:
        """All others below the root: the engine's, and helpers."""
        api = set(self._api())
        try:
            below = psutil.Process(self._root).children(recursive=True)
        except psutil.Error:
            return
        yield from (one for one in below if one.pid not in api)
