"""The API processes of one server: the sockets between them and the few numbers they share.

Made by the process that starts them and handed to each as multiprocessing hands things over: no
name in a file system, nothing on a command line or in an environment.
"""

from __future__ import annotations

import multiprocessing
import socket
from collections.abc import MutableSequence
from typing import Any

from leanmoe_server.occupancy import Occupancy
from leanmoe_server.process_tree import ProcessTree

OWNER = 0


class ProcessSet:
    """``count`` API processes. Process 0 shares a socket with each of the others."""

    def __init__(self, count: int) -> None:
        context = multiprocessing.get_context("spawn")

        def numbers(kind: str) -> Any:
            return context.RawArray(kind, count)

        self.count = count
        self.links = [socket.socketpair() for _ in range(1, count)]
        self.requests, self.held, self.pids = numbers("q"), numbers("q"), numbers("q")
        self.listening: MutableSequence[int] = numbers("b")
        self._told: MutableSequence[int] = context.RawArray("b", 1)

    def take(self, index: int, root: int, own: int) -> ApiProcess:
        """The place of process ``index``, whose id is ``own``; ``root`` started all of them."""
        self.pids[index] = own
        return ApiProcess(self, index, root)

    def let_go(self, kept: tuple[socket.socket, ...] = ()) -> None:
        """Close the sockets that are not ``kept``: an end that is gone must be seen as gone."""
        for pair in self.links:
            for one in pair:
                if one not in kept:
                    one.close()

    @property
    def told_to_stop(self) -> bool:
        return bool(self._told[0])

    def tell_to_stop(self) -> None:
        """The server was told to stop: processes that end do as they should."""
        self._told[0] = 1

    @property
    def all_listen(self) -> bool:
        """True once every process took connections."""
        return all(self.listening)


class ApiProcess:
    """One of them: ``Place`` of its service."""

    def __init__(self, processes: ProcessSet, index: int, root: int) -> None:
        self.processes, self.index, self.root = processes, index, root
        links = processes.links
        mine = [pair[0] for pair in links] if index == OWNER else [links[index - 1][1]]
        processes.let_go(tuple(mine))
        self.links = mine

    def listens(self) -> None:
        self.processes.listening[self.index] = 1

    def pid_of(self, index: int) -> int:
        """The id of another process; 0 before it started."""
        return int(self.processes.pids[index])

    def occupancy(self) -> Occupancy:
        """What requests take in all processes."""
        return Occupancy(self.processes.requests, self.processes.held, self.index)

    def tree(self) -> ProcessTree:
        """The server's processes."""
        return ProcessTree(self.root, lambda: [pid for pid in self.processes.pids if pid])
