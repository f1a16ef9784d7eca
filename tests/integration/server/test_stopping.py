"""SIGTERM in the middle of streams: answers finish or end cleanly, exit 0, nobody left."""

from __future__ import annotations

import signal
import threading
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.integration.live_server import LiveServer, live_server, wait_for


@dataclass
class Stream:
    """What one streaming client saw."""

    chunks: int = 0
    reason: str | None = None
    error: str | None = None


def read_stream(server: LiveServer, tokens: int, seen: Stream, begun: threading.Event) -> None:
    try:
        stream = server.client().chat.completions.create(
            model=server.model,
            messages=[{"role": "user", "content": "tell me about the water"}],
            max_tokens=tokens,
            stream=True,
            extra_body={"ignore_eos": True},
        )
        for chunk in stream:
            seen.chunks += 1
            seen.reason = (chunk.choices and chunk.choices[0].finish_reason) or seen.reason
            if seen.chunks == 5:
                begun.set()
    except Exception as error:
        seen.error = repr(error)
    finally:
        begun.set()


def stop_mid_stream(server: LiveServer, tokens: int, to_group: bool = False) -> list[Stream]:
    """Three streams, SIGTERM once each has begun; what they saw when the server had ended."""
    family = server.processes()
    assert len(family) >= 3
    streams, threads = [Stream() for _ in range(3)], []
    for seen in streams:
        begun = threading.Event()
        thread = threading.Thread(target=read_stream, args=(server, tokens, seen, begun))
        thread.start()
        assert begun.wait(60)
        threads.append(thread)
    for process in family if to_group else family[:1]:
        process.send_signal(signal.SIGTERM)
    for thread in threads:
        thread.join(90)
    assert server.process.wait(90) == 0, server.log.read_text()[-4000:]
    left = wait_for(lambda: [p for p in family if alive(p)], lambda left: not left, seconds=10)
    assert left == []
    return streams


def alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_streams_finish_within_the_drain_time(tiny_model: Path, tmp_path: Path) -> None:
    with live_server(tiny_model, tmp_path / "log") as server:
        streams = stop_mid_stream(server, tokens=200)
        assert "3 requests in flight" in server.log.read_text()
    assert [(s.reason, s.error) for s in streams] == [("length", None)] * 3


def test_a_signal_to_every_process_leaves_nobody_and_no_stream_hanging(
    tiny_model: Path, tmp_path: Path
) -> None:
    """A worker told to stop cannot finish: its streams end with an error event or are complete."""
    with live_server(tiny_model, tmp_path / "log") as server:
        streams = stop_mid_stream(server, tokens=200, to_group=True)
    assert all((s.reason == "length") != (s.error is not None) for s in streams), streams


def test_streams_end_cleanly_after_the_drain_time(tiny_model: Path, tmp_path: Path) -> None:
    # Slow enough that no answer can be complete: the prompt alone fills the drain time.
    with live_server(tiny_model, tmp_path / "log", "--drain-seconds", "1") as server:
        streams = stop_mid_stream(server, tokens=900)
        text = server.log.read_text()
    assert [s.error for s in streams] == [None] * 3
    assert {s.reason for s in streams} <= {"abort", "length"}
    assert "abort" in {s.reason for s in streams}
    assert "ending" in text and "Traceback" not in text
