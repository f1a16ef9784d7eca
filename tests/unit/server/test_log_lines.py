"""The log as JSON, the ids of requests, and what is left out of the access log."""

from __future__ import annotations

import json
import logging
import logging.config
import os
from collections.abc import Iterator

import pytest
from fastapi import FastAPI
from httpx import ASGITransport, AsyncClient
from starlette.requests import Request

from leanmoe.errors import InputError
from leanmoe_server.log_lines import CONFIG_VARIABLE, JsonLines, _Polls, logging_as
from leanmoe_server.marking import Marking
from leanmoe_server.request_mark import current_mark


@pytest.fixture(autouse=True)
def _warnings_as_before() -> Iterator[None]:
    yield
    logging.captureWarnings(False)


def record(message: str, *args: object, **more: object) -> logging.LogRecord:
    made = logging.LogRecord("a.logger", logging.ERROR, "file.py", 1, message, args or None, None)
    made.__dict__.update(more)
    return made


def test_a_record_is_one_line_whatever_it_holds():
    try:
        raise ValueError("two\nlines")
    except ValueError as error:
        raised = (ValueError, error, error.__traceback__)
    text = JsonLines().format(record("one\n%s \u2028 ä", "two", exc_info=raised))
    assert "\n" not in text
    line = json.loads(text)
    assert line["message"] == "one\ntwo \u2028 ä" and line["level"] == "ERROR"
    assert "ValueError: two\nlines" in line["traceback"]
    assert line["logger"] == "a.logger" and line["pid"] == os.getpid() and line["time"][-1] == "Z"
    assert "request_id" not in line


def test_the_configuration_is_there_while_it_is_wanted_and_gone_after(monkeypatch):
    monkeypatch.delenv(CONFIG_VARIABLE, raising=False)
    with logging_as("text", {}):
        assert CONFIG_VARIABLE not in os.environ
    with logging_as("json", {"VLLM_LOGGING_LEVEL": "DEBUG"}):
        with open(file := os.environ[CONFIG_VARIABLE]) as opened:  # noqa: PTH123
            config = json.load(opened)
        assert config["loggers"]["vllm"]["level"] == "DEBUG"
        assert config["loggers"]["leanmoe_server"]["handlers"] == ["lines"]
    assert CONFIG_VARIABLE not in os.environ and not os.path.exists(file)  # noqa: PTH110


def test_two_ways_to_log_are_refused_in_one_sentence():
    with (
        pytest.raises(InputError, match="each say how to log"),
        logging_as("json", {CONFIG_VARIABLE: "/x"}),
    ):
        pass


@pytest.mark.parametrize(
    ("path", "status", "kept"),
    [
        ("/v1/expert_skipping/status?after=3", 200, False),
        ("/v1/expert_skipping/status", 401, True),
        ("/v1/expert_skipping", 200, True),
    ],
)
def test_a_page_s_polls_are_left_out_of_the_access_log(path, status, kept):
    line = record("%s - %s %s %s %d", "127.0.0.1:1", "GET", path, "1.1", status)
    assert _Polls().filter(line) is kept
    assert _Polls().filter(record("something else"))


@pytest.mark.anyio
async def test_each_request_sees_its_own_id_and_hands_it_on():
    app = FastAPI()

    @app.get("/id")
    async def told(request: Request) -> list[str]:
        mark = current_mark()
        return [mark.id if mark else "", request.headers["x-request-id"]]

    app.add_middleware(Marking)
    async with AsyncClient(transport=ASGITransport(app), base_url="http://a") as client:
        given = await client.get("/id", headers={"X-Request-Id": "order-1"})
        made = await client.get("/id")
        twice = await client.get("/id", headers=[("x-request-id", "a"), ("x-request-id", "b")])
    assert given.json() == ["order-1"] * 2 and given.headers["x-request-id"] == "order-1"
    assert made.json() == [made.headers["x-request-id"]] * 2
    assert twice.json() == ["a", "a"]
