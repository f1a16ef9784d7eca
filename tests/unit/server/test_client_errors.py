"""A client's mistake is a line in the log, a fault of the server's a traceback."""

from __future__ import annotations

import io
import logging

import pytest

from leanmoe_server.client_errors import leave_out_client_tracebacks


class VLLMClientError(Exception):
    """Named as vLLM's."""


class TooLongError(VLLMClientError):
    """One of its kinds."""


@pytest.mark.parametrize(
    ("name", "error", "traced"),
    [
        ("vllm.entrypoints.anthropic.api_router", ValueError("v"), False),
        ("vllm.entrypoints.anthropic.api_router", TooLongError("t"), False),
        ("vllm.entrypoints.anthropic.api_router", RuntimeError("r"), True),
        ("vllm.v1.engine.core", ValueError("v"), True),
    ],
)
def test_tracebacks(name: str, error: Exception, traced: bool) -> None:
    said, parent = io.StringIO(), logging.getLogger("vllm")
    handler = logging.StreamHandler(said)
    parent.addHandler(handler)
    try:
        leave_out_client_tracebacks(parent)
        try:
            raise error
        except Exception:
            logging.getLogger(name).exception("it went wrong")
    finally:
        parent.removeHandler(handler)
    assert "it went wrong" in said.getvalue() and ("Traceback" in said.getvalue()) is traced
