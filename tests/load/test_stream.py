"""Events out of bytes: nothing depends on where the bytes were cut."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leanmoe_loadtest.sse import SSEParser

STREAM = (
    ': ping\n\ndata: {"a": "é"}\r\n\r\nevent: x\ndata: one\ndata: two\n\ndata:[DONE]\n\n'.encode()
)
EVENTS = ['{"a": "é"}'.encode(), b"one\ntwo", b"[DONE]"]


def test_events_end_with_an_empty_line_and_comments_are_left_out() -> None:
    parser = SSEParser()
    found = [parser.line(line) for line in STREAM.splitlines(keepends=True)]
    assert [data for data in found if data is not None] == EVENTS


# The stream's reader needs gevent, whose patching must stay out of this process.
_CUT = """
import sys
from leanmoe_loadtest.stream import _events
from geventhttpclient.response import HTTPSocketResponse

class Socket:
    def __init__(self, blocks): self.blocks = iter(blocks)
    def recv(self, size): return next(self.blocks, b"")
    def close(self): pass

wire = sys.stdin.buffer.read()
head = wire.index(b"\\r\\n\\r\\n") + 4
for cut in range(head, len(wire)):
    response = HTTPSocketResponse(Socket([wire[:cut], wire[cut:]]), method="POST")
    print([data for _, data in _events(response)])
singles = [wire[i : i + 1] for i in range(len(wire))]
print([data for _, data in _events(HTTPSocketResponse(Socket(singles), method="POST"))])
"""


@pytest.mark.parametrize("chunk_bytes", [1, 7, 1000])
def test_events_survive_every_cut_of_the_bytes(chunk_bytes: int) -> None:
    parts = [STREAM[i : i + chunk_bytes] for i in range(0, len(STREAM), chunk_bytes)]
    body = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts)
    wire = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + body + b"0\r\n\r\n"
    done = subprocess.run(
        [sys.executable, "-c", _CUT], input=wire, capture_output=True, timeout=60, check=True
    )
    found = done.stdout.decode().splitlines()
    assert len(found) > len(body)
    assert set(found) == {str(EVENTS)}


@settings(max_examples=40)
@given(st.lists(st.binary(min_size=1).filter(lambda data: not {*b"\r\n "} & {*data})))
def test_any_data_comes_through(pieces: list[bytes]) -> None:
    parser = SSEParser()
    for data in pieces:
        assert parser.line(b"data: " + data + b"\n") is None
        assert parser.line(b"\n") == data
