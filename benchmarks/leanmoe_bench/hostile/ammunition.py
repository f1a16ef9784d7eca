"""Requests that mean harm or make no sense, drawn from good ones; the same for a seed."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from leanmoe.wire import ADMIN_HEADER, CONTROL_PATH, REQUEST_KEY

_CHAT, _TEXT = "/v1/chat/completions", "/v1/completions"
# Values that no field expects, or that lie past every bound.
_ODD: tuple[Any, ...] = (
    *(None, True, False, "", "x", [], {}, 0, -1, 1.5, 2**31, 2**63, 2**64, -(2**70)),
    *(
        float("nan"),
        float("inf"),
        -float("inf"),
        1e308,
        "\x00",
        "\ud83d",
        "\U0001d54f" * 500,
        "../" * 50,
    ),
    *([[]], [None], [{}], ["x"] * 300, {"": ""}, {"a": {"b": {"c": []}}}, [1e400], "9" * 400),
    *("<script>", "{{7*7}}", "%s%n", "'; --", "\u202e", "${jndi:x}", "\r\nX: y", "a" * 20_000),
)
_FIELDS = (
    *("model", "messages", "prompt", "max_tokens", "temperature", "top_p", "top_k", "min_p", "n"),
    *("stop", "stream", "stream_options", "logprobs", "top_logprobs", "logit_bias", "seed"),
    *("presence_penalty", "frequency_penalty", "repetition_penalty", "user", "tools", "min_tokens"),
    *("tool_choice", "response_format", "structured_outputs", "prompt_logprobs", "echo", "suffix"),
    *("best_of", "use_beam_search", "stop_token_ids", "bad_words", "allowed_token_ids", "priority"),
    *("vllm_xargs", "cache_salt", "chat_template", "chat_template_kwargs", "add_generation_prompt"),
    *(
        "continue_final_message",
        "documents",
        "mm_processor_kwargs",
        "request_id",
        "kv_transfer_params",
    ),
    *(
        "truncate_prompt_tokens",
        "length_penalty",
        "ignore_eos",
        "skip_special_tokens",
        "max_tokens",
    ),
    *("input", "instructions", "max_output_tokens", "previous_response_id", "store", "background"),
    *("system", "stop_sequences", "thinking", "tokens", "return_token_ids", "reasoning_effort"),
    *(REQUEST_KEY, "level", "max_kld", "phases", "union_budget", "reason", "logits_processors"),
)
_HEADERS: tuple[dict[str, str], ...] = (
    {"Content-Type": "text/plain"},
    {"Content-Type": "application/json; charset=utf-16"},
    {"Content-Type": "multipart/form-data; boundary=x"},
    {"Content-Type": "application/x-www-form-urlencoded"},
    {"Content-Encoding": "gzip"},
    {"X-Request-Id": "a" * 5000},
    {"X-Forwarded-For": "127.0.0.1, 127.0.0.1", "Forwarded": "for=127.0.0.1"},
    {"X-data-parallel-rank": "-5"},
    {"X-Amzn-SageMaker-Session-Id": "../../etc"},
    {"Accept": "application/xml", "Range": "bytes=0-1"},
    {"traceparent": "00-zz-zz-00"},
    {"Expect": "200-maybe"},
)
_PATHS = (
    *(_CHAT, _TEXT, "/v1/responses", "/v1/messages", "/v1/messages/count_tokens", "/tokenize"),
    *("/detokenize", "/invocations", "/generative_scoring", "/inference/v1/generate"),
    *("/v1/chat/completions/batch", "/v1/chat/completions/render", "/v1/completions/render"),
    *("/v1/chat/completions/derender", "/v1/systemone", "/v1/embeddings", CONTROL_PATH),
)
_STRANGE_PATHS = (
    *("/v1/../v1/models", "//v1/models", "/v1/models%00", "/v1/responses/..%2f..%2fetc", "/%ff%fe"),
    *("/console/../../etc/passwd", "/console/%2e%2e/%2e%2e/etc/passwd", "/static/../x", "/v1//"),
    *("/metrics/../v1/models", "/v1/responses/" + "a" * 4000, "/collective_rpc", "/sleep", "/v1"),
    *("/v1/load_lora_adapter", "/scale_elastic_ep", "/adapters/x", "/start_profile", "/docs/x"),
)
_WRONG_KEYS: tuple[dict[str, str], ...] = (
    {},
    {"Authorization": "Bearer x"},
    {"Authorization": "Basic Og=="},
    {"Authorization": "Bearer " + "k" * 5000},
)
_FORMATS = ("json_schema", "text", "json_object", "x")
_METHODS = ("POST", "GET", "PUT", "DELETE", "PATCH", "OPTIONS", "HEAD", "TRACE")


@dataclass(frozen=True)
class Shot:
    """One request. ``headers`` go beside those of the key."""

    method: str
    path: str
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)


def _good(path: str, model: str) -> dict[str, Any]:
    message = [{"role": "user", "content": "the water and the day"}]
    match path:
        case "/v1/completions" | "/v1/completions/render" | "/tokenize":
            return {"model": model, "prompt": "the water", "max_tokens": 2}
        case "/v1/responses":
            return {"model": model, "input": "the water", "max_output_tokens": 2}
        case "/detokenize":
            return {"model": model, "tokens": [1, 2, 3]}
        case "/generative_scoring":
            return {"model": model, "query": "a", "items": ["b"], "label_token_ids": [1, 2]}
        case "/inference/v1/generate":
            sampling = {"max_tokens": 2}
            return {"model": model, "token_ids": [1, 2, 3], "sampling_params": sampling}
        case "/v1/chat/completions/batch":
            return {"model": model, "messages": [message, message], "max_tokens": 2}
        case _ if path == CONTROL_PATH:
            return {"level": 0}
        case _:
            return {"model": model, "messages": message, "max_tokens": 2}


def _deep(draw: random.Random) -> bytes:
    opening = draw.choice(("[", '{"a":'))
    return opening.encode() * draw.choice((50, 990, 5000, 60_000))


def _odd_field(draw: random.Random, body: dict[str, Any]) -> dict[str, Any]:
    names = draw.choices((*_FIELDS, *body), k=draw.randint(1, 3))
    return {**body, **{name: draw.choice(_ODD) for name in names}}


def _odd_inside(draw: random.Random, body: dict[str, Any]) -> dict[str, Any]:
    """Something odd where a message, its parts or a wish would be."""
    odd = draw.choice(_ODD)
    part = {"type": draw.choice(("text", "image_url", "input_audio", "x")), "text": odd}
    messages = (
        [{"role": odd, "content": "h"}],
        [{"role": "user", "content": odd}],
        [{"role": "user", "content": [part]}],
        [{"role": "assistant", "tool_calls": [{"function": odd}]}],
        [{"role": "tool", "content": "h", "tool_call_id": odd}],
    )
    inside = (
        {"messages": draw.choice(messages)},
        {REQUEST_KEY: {draw.choice(("level", "max_kld", "deterministic", "x")): odd}},
        {"vllm_xargs": {"a": odd}},
        {"structured_outputs": {draw.choice(("json", "regex", "choice", "grammar")): odd}},
        {
            "response_format": {
                "type": draw.choice(("json_schema", "text", "x")),
                "json_schema": odd,
            }
        },
        {"stream": True, "stream_options": {"include_usage": odd}},
        {"tools": [{"type": "function", "function": {"name": "f", "parameters": odd}}]},
        {"sampling_params": {draw.choice(("max_tokens", "stop", "temperature", "n")): odd}},
        {"token_ids": [odd]},
        {"stop": [odd]},
    )
    return {**body, **draw.choice(inside)}


def _without(draw: random.Random, body: dict[str, Any]) -> dict[str, Any]:
    gone = draw.choice(list(body))
    return {name: value for name, value in body.items() if name != gone}


def _bytes_of(content: Any) -> bytes:
    try:
        return json.dumps(content, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return json.dumps(content).encode()


def _broken(draw: random.Random, body: bytes) -> bytes:
    """A body whose bytes are no longer JSON, or not in UTF-8, or say one thing twice."""
    place = draw.randrange(len(body) + 1)
    return draw.choice(
        (
            body[:place],
            body[:place] + b"\xff\xfe" + body[place:],
            body[:place] + b"\x00" + body[place:],
            body + body,
            b"\xef\xbb\xbf" + body,
            body.decode().encode("utf-16"),
            b'{"model": "a", ' + body[1:],
            b'{"expert_skipping": "off", "expert_skipping": null, ' + body[1:],
            b"[" + body + b"]",
            _deep(draw),
            b"",
            b"null",
            b"\xed\xa0\x80",
            body[:-1] + b', "x": "\\ud800"}',
            body[:-1] + b', "seed": 1' + b"0" * 5000 + b"}",
            body[:-1] + b', "temperature": NaN}',
        )
    )


def _on_a_route(draw: random.Random, model: str) -> Shot:
    path = draw.choice(_PATHS)
    change: Callable[[random.Random, dict[str, Any]], dict[str, Any]]
    change = draw.choice((_odd_field, _odd_field, _odd_inside, _odd_inside, _without))
    body = _bytes_of(change(draw, _good(path, model)))
    if draw.random() < 0.2:
        body = _broken(draw, _bytes_of(_good(path, model)))
    headers = draw.choice(_HEADERS) if draw.random() < 0.15 else {}
    method = "PUT" if path == CONTROL_PATH else "POST"
    if draw.random() < 0.05:
        method = draw.choice(_METHODS)
    return Shot(method, path, body, {"Content-Type": "application/json", **headers})


def shots(count: int, seed: int, model: str, key: str, admin_key: str) -> Iterator[Shot]:
    """``count`` requests, most of them with the right key."""
    draw = random.Random(seed)
    for _ in range(count):
        if draw.random() < 0.08:
            shot = Shot(draw.choice(_METHODS), draw.choice(_STRANGE_PATHS))
        else:
            shot = _on_a_route(draw, model)
        right = {"Authorization": f"Bearer {key}"}
        if shot.path == CONTROL_PATH and draw.random() < 0.7:
            right = {ADMIN_HEADER: admin_key}
        wrong: tuple[dict[str, str], ...] = (
            {},
            {"Authorization": "Bearer x"},
            {"Authorization": "Basic Og=="},
        )
        keys = draw.choice(wrong) if draw.random() < 0.1 else right
        yield Shot(shot.method, shot.path, shot.body, {**shot.headers, **keys})
