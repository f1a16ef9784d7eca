"""Whole portions of work on each core, given back in order.

torch shares every single operation out among its threads and waits for the slowest of them
after each one. On a machine that does other work too, that is most of the time. Here a thread
has a portion of tokens of its own and waits for nobody.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch

A = TypeVar("A")
B = TypeVar("B")


def in_order(work: Callable[[A], B], items: Iterable[A]) -> Iterator[B]:
    """``work`` of each item, in the order of items, on as many threads as torch may use.

    Inside ``work`` torch uses one thread, so that what it gives has the same bits on any number
    of cores. As many items as there are threads are taken ahead of what was asked for.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield from map(work, items) if threads == 1 else _pooled(work, items, threads)
    finally:
        torch.set_num_threads(threads)


def _pooled(work: Callable[[A], B], items: Iterable[A], threads: int) -> Iterator[B]:
    inference = torch.is_inference_mode_enabled()  # of this thread alone

    def one(item: A) -> B:
        with torch.inference_mode(inference):
            return work(item)

    waiting: deque[Future[B]] = deque()
    with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        try:
            for item in items:
                waiting.append(pool.submit(one, item))
                if len(waiting) > threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
