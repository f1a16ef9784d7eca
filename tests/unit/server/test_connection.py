"""A real socket on uvicorn with our connections: what is late, endless or unread is cut off."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import uvicorn
from fastapi import FastAPI, Request
from starlette.responses import Response, StreamingResponse

from leanmoe_server import connection
from leanmoe_server.connection import HEAD_BYTES, BoundedConnection

pytestmark = pytest.mark.anyio
SOON = 0.3
_CHUNK = b"x" * 65536
# Far past what the kernel keeps for a socket at both ends.
_ENDLESS = 4096


class Site:
    """An app that tells how its requests ended."""

    def __init__(self) -> None:
        self.app = FastAPI()
        self.ended = asyncio.Event()
        self.app.add_api_route("/echo", self.echo, methods=["POST"])
        self.app.add_api_route("/stream", self.stream)

    async def echo(self, request: Request) -> Response:
        return Response(str(len(await request.body())))

    async def stream(self) -> Response:
        return StreamingResponse(self._chunks())

    async def _chunks(self) -> AsyncIterator[bytes]:
        try:
            for _ in range(_ENDLESS):
                yield _CHUNK
        finally:
            self.ended.set()


@asynccontextmanager
async def served(site: Site) -> AsyncIterator[int]:
    config = uvicorn.Config(site.app, port=0, http=BoundedConnection, log_level="error")
    server = uvicorn.Server(config)
    server.install_signal_handlers = lambda: None
    task = asyncio.create_task(server.serve())
    while not server.started and not task.done():
        await asyncio.sleep(0.01)
    try:
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = True
        await task


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "CLIENT_SECONDS", SOON)
    monkeypatch.setattr(connection, "KEEP_ALIVE_SECONDS", 1)
    monkeypatch.setattr(connection, "_FLUSH_SECONDS", SOON)


async def until_closed(port: int, *parts: bytes) -> bytes:
    """All that comes back on a connection on which ``parts`` were sent."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        for part in parts:
            writer.write(part)
            await writer.drain()
        return await asyncio.wait_for(reader.read(), 60)
    except ConnectionResetError:
        return b""
    finally:
        writer.close()


HEAD = b"POST /echo HTTP/1.1\r\nhost: test\r\n"


@pytest.mark.parametrize(
    ("sent", "answer"),
    [
        (b"", b""),
        (b"\r\n", b""),
        (b"POST /ec", b"408"),
        (HEAD, b"408"),
        (HEAD + b"content-length: 9\r\n\r\nhalf", b"408"),
        (HEAD + b"transfer-encoding: chunked\r\n\r\n4\r\nhalf\r\n", b"408"),
    ],
)
async def test_what_does_not_arrive_is_cut_off(sent: bytes, answer: bytes) -> None:
    async with served(Site()) as port:
        said = await until_closed(port, sent)
    assert answer in said and bool(answer) is bool(said)


async def test_a_connection_is_kept_between_requests_and_then_closed() -> None:
    whole = HEAD + b"content-length: 4\r\n\r\nbody"
    async with served(Site()) as port:
        said = await until_closed(port, whole, whole + whole)
        # What comes after an answer is a request again, and has its time.
        late = await until_closed(port, whole + b"POST /echo HT")
    assert said.count(b"200 OK") == 3
    assert late.count(b"200 OK") == 1 and b"408" in late


@pytest.mark.parametrize(
    "sent",
    [
        HEAD + b"x: " + b"y" * (HEAD_BYTES + 1),
        HEAD + b"x: y\r\n" * HEAD_BYTES,
        HEAD + b"transfer-encoding: chunked\r\n\r\n0\r\n" + b"x: y\r\n" * HEAD_BYTES,
        HEAD + b"transfer-encoding: chunked\r\n\r\n4;" + b"e" * HEAD_BYTES,
    ],
    ids=["header", "headers", "trailers", "extension"],
)
async def test_an_endless_head_is_refused(sent: bytes) -> None:
    async with served(Site()) as port:
        said = await until_closed(port, sent)
    assert b"431" in said or said == b""
    assert b"200" not in said


async def test_a_client_that_does_not_read_is_cut_off() -> None:
    site = Site()
    async with served(site) as port:
        _, writer = await asyncio.open_connection("127.0.0.1", port, limit=1)
        writer.write(b"GET /stream HTTP/1.1\r\nhost: test\r\n\r\n")
        await asyncio.wait_for(site.ended.wait(), 60)
        writer.transport.abort()
