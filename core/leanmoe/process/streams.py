"""The standard streams of a process that was started without some of them."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def open_closed_streams() -> None:
    """Put nothing where a standard stream is closed (``>&-``).

    Else the next file that is opened takes its number: a shard, into which whatever prints would
    write. Processes that are started get these streams, too.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            stream = Path(os.devnull).open(mode, encoding="utf-8")  # noqa: SIM115
            os.set_inheritable(stream.fileno(), True)
            setattr(sys, name, stream)
