"""SIGTERM in the middle of streams: answers finish or end cleanly, exit 0, nobody left."""

from __future__ import annotations

import signal
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest

from tests.forked import Forked
from tests.integration.live_server import LiveServer, live_server, wait_for
from tests.tiny import write_tiny_mixtral

TOKENS = 500
# Far more than the answers take: what is tested is that they may end, not how soon they do.
STREAM_SECONDS = 600


@dataclass
class Stream:
    """What one streaming client saw; ``begun`` is set once text comes, or none will."""

    chunks: int = 0
    reason: str | None = None
    error: str | None = None
    begun: threading.Event = field(default_factory=threading.Event)


def read_stream(
    server: LiveServer,
    seen: Stream,
    tokens: int = TOKENS,
    headers: Mapping[str, str] | None = None,
) -> None:
    try:
        stream = server.client().chat.completions.create(
            model=server.model,
            messages=[{"role": "user", "content": "tell me about the water"}],
            max_tokens=tokens,
            stream=True,
            extra_body={"ignore_eos": True},
            extra_headers=headers,
        )
        for chunk in stream:
            seen.chunks += 1
            seen.reason = (chunk.choices and chunk.choices[0].finish_reason) or seen.reason
            if seen.chunks == 5:
                seen.begun.set()
    except Exception as error:
        seen.error = repr(error)
    finally:
        seen.begun.set()


def stop_mid_stream(
    server: LiveServer, to_group: bool = False, tokens: int = TOKENS
) -> list[Stream]:
    """SIGTERM while three streams run; what they saw when the server had ended."""
    family = server.processes()
    assert len(family) >= 3
    # A client's first stream builds its classes for seconds, in which the server runs ahead.
    read_stream(server, Stream(), tokens=8)
    streams = [Stream() for _ in range(3)]
    threads = [
        threading.Thread(target=read_stream, args=(server, seen, tokens)) for seen in streams
    ]
    for thread in threads:
        thread.start()
    assert all(seen.begun.wait(60) for seen in streams)
    for process in family if to_group else family[:1]:
        process.send_signal(signal.SIGTERM)
    for thread in threads:
        thread.join(STREAM_SECONDS)
    text = server.log.read_text()
    assert server.process.wait(90) == 0, text[-4000:]
    assert "3 requests in flight" in text
    left = wait_for(lambda: [p for p in family if alive(p)], lambda left: not left, seconds=10)
    assert left == []
    return streams


def alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.fixture(scope="module")
def slow_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """So many layers that an answer takes seconds on any machine, each step leaving room for
    the API process: from few thin layers it gets its tokens in one burst at the end."""
    return write_tiny_mixtral(tmp_path_factory.mktemp("models") / "slow", layers=48)


def test_streams_finish_within_the_drain_time(
    slow_model: Path, forked: type[Forked], tmp_path: Path
) -> None:
    waiting = ("--drain-seconds", str(STREAM_SECONDS))
    with live_server(slow_model, tmp_path / "log", *waiting, popen=forked) as server:
        # These are waited for: enough that none ends before the signal.
        streams = stop_mid_stream(server, tokens=200)
    assert [(s.reason, s.error) for s in streams] == [("length", None)] * 3


def test_a_signal_to_every_process_leaves_nobody_and_no_stream_hanging(
    slow_model: Path, tmp_path: Path
) -> None:
    """A worker told to stop cannot finish: its streams end with an error event or are complete.

    Started as a user does, so that these are the processes a user has.
    """
    with live_server(slow_model, tmp_path / "log") as server:
        streams = stop_mid_stream(server, to_group=True)
    assert all((s.reason == "length") != (s.error is not None) for s in streams), streams


def test_streams_end_cleanly_after_the_drain_time(
    slow_model: Path, forked: type[Forked], tmp_path: Path
) -> None:
    log = tmp_path / "log"
    with live_server(slow_model, log, "--drain-seconds", "1", popen=forked) as server:
        streams = stop_mid_stream(server)
        text = server.log.read_text()
    assert [(s.reason, s.error) for s in streams] == [("abort", None)] * 3
    assert "ending 3 requests" in text and "Traceback" not in text
