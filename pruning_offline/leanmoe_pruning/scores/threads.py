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


def in_order(work: Callable[[A], B], items: Iterable[A], most: int) -> Iterator[B]:
    """``work`` of each item, in the order of items, on as many threads as torch may use.

    Up to ``most`` items are worked on at once, as far as memory goes. Where torch may use more
    threads than that, they share out the operations of each item; else an item has one, and what
    comes out has the same bits on any number of cores.
    """
    threads = torch.get_num_threads()
    workers = max(1, min(threads, most))
    inner = threads // workers
    torch.set_num_threads(inner)
    try:
        yield from map(work, items) if workers == 1 else _pooled(work, items, workers, inner)
    finally:
        torch.set_num_threads(threads)


def _pooled(work: Callable[[A], B], items: Iterable[A], workers: int, inner: int) -> Iterator[B]:
    inference = torch.is_inference_mode_enabled()  # of this thread alone

    def one(item: A) -> B:
        with torch.inference_mode(inference):
            return work(item)

    waiting: deque[Future[B]] = deque()
    with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(inner,)) as pool:
        try:
            for item in items:
                waiting.append(pool.submit(one, item))
                if len(waiting) > workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
