"""Errors of all layers below ours come in the shape of the API that was asked."""

from __future__ import annotations

import json

import pytest

from leanmoe_server.error_shapes import in_shape

pytestmark = pytest.mark.anyio
OURS = {"error": {"message": "m", "type": "t", "param": "p", "code": 400}}


async def passed(
    path: str, status: int, parts: list[bytes], kind: str = "application/json"
) -> tuple[dict, bytes, int]:
    sent: list[dict] = []

    async def send(message: dict) -> None:
        sent.append(message)

    shaped = in_shape(path, send)
    length = str(sum(map(len, parts))).encode()
    headers = [(b"content-type", kind.encode()), (b"content-length", length)]
    await shaped({"type": "http.response.start", "status": status, "headers": headers})
    for number, part in enumerate(parts, start=1):
        more = number < len(parts)
        await shaped({"type": "http.response.body", "body": part, "more_body": more})
    body = b"".join(one.get("body", b"") for one in sent)
    head = dict(sent[0]["headers"])
    assert head[b"content-length"] == str(len(body)).encode()
    return head, body, len(sent)


@pytest.mark.parametrize(
    ("status", "parts", "message"),
    [
        (404, [b'{"detail":', b'"Not Found"}'], "Not Found"),
        (401, [b'{"error": "Unauthorized"}'], "Unauthorized"),
        (500, [b"[1]"], "Internal Server Error"),
        (422, [b'{"detail": [{"loc": 1}]}'], "Unprocessable"),
    ],
)
async def test_other_shapes_become_openai_s(status: int, parts: list[bytes], message: str) -> None:
    _, body, _ = await passed("/v1/x", status, parts)
    error = json.loads(body)["error"]
    assert set(error) == {"message", "type", "param", "code"} and error["code"] == status
    assert error["message"].startswith(message)


async def test_what_a_model_has_not_is_not_found() -> None:
    none = {"error": {"message": "m", "type": "NotImplementedError", "param": None, "code": 501}}
    _, body, _ = await passed("/v1/systemone", 501, [json.dumps(none).encode()])
    error = json.loads(body)["error"]
    assert (error["message"], error["code"]) == ("m", 404)


async def test_a_plain_text_gives_nothing_away() -> None:
    head, body, _ = await passed("/v1/x", 500, [b"Traceback: /usr/lib"], "text/plain")
    assert json.loads(body)["error"]["message"] == "Internal Server Error"
    assert head[b"content-type"] == b"application/json"


async def test_what_has_its_shape_passes_as_it_is() -> None:
    text = json.dumps(OURS).encode()
    assert (await passed("/v1/x", 400, [text]))[1] == text
    text = b'{"ready": false, "reasons": ["r"]}'
    assert (await passed("/ready", 503, [text]))[1] == text
    text = b'{"detail": 1}'
    assert (await passed("/v1/x", 200, [text[:4], text[4:]]))[1:] == (text, 3)
    assert (await passed("/v1/x", 404, [b"<p>"], "text/html"))[1] == b"<p>"


@pytest.mark.parametrize("path", ["/v1/messages", "/v1/messages/count_tokens"])
async def test_messages_have_anthropic_s(path: str) -> None:
    for status, kind in ((400, "invalid_request_error"), (413, "request_too_large"), (418, None)):
        _, body, _ = await passed(path, status, [json.dumps(OURS).encode()])
        told = {"type": kind or "invalid_request_error", "message": "m"}
        assert json.loads(body) == {"type": "error", "error": told}
    assert (await passed("/v1/messagesx", 400, [json.dumps(OURS).encode()]))[1][:9] == b'{"error":'
