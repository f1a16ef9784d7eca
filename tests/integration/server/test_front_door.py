"""Every route of the real app is shut without a key, and each is one that was thought of."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import openai
import pytest
from prometheus_client.parser import text_string_to_metric_families

from leanmoe_server.access import PUBLIC, Access, access_of
from leanmoe_server.keys.keys import entry_of, new_key
from tests.forked import Forked
from tests.integration.live_server import LiveServer, live_server

USER, OTHER, RARE, ADMIN = (new_key() for _ in range(4))
# What a user's key opens in vLLM and in ours. A route that is new is to be thought of: it may
# belong to administrators (``access.ADMIN_FOLDERS``).
FOR_USERS = {
    *("/openapi.json", "/docs", "/docs/oauth2-redirect", "/redoc", "/load", "/version"),
    *("/tokenize", "/detokenize", "/invocations", "/generative_scoring", "/inference/v1/generate"),
    *("/v1/models", "/v1/systemone", "/v1/messages", "/v1/messages/count_tokens"),
    *("/v1/chat/completions", "/v1/chat/completions/batch", "/v1/completions", "/v1/responses"),
    *("/v1/responses/{response_id}", "/v1/responses/{response_id}/cancel"),
    *(f"/v1/{kind}/render" for kind in ("chat/completions", "completions", "messages")),
    *("/v1/responses/render", "/v1/chat/completions/derender", "/v1/completions/derender"),
}


@pytest.fixture(scope="module")
def keyed(
    tiny_model: Path, forked: type[Forked], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LiveServer]:
    """A server with a key file, and with vLLM's routes that change adapters."""
    folder = tmp_path_factory.mktemp("keyed")
    file = folder / "keys.toml"
    users = entry_of("alice", USER) + entry_of("bob", OTHER) + "max_level = 0\n"
    rare = entry_of("rare", RARE) + "requests_per_minute = 1\n"
    file.write_text(users + rare + entry_of("operator", ADMIN, admin=True))
    environment = {
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",
        "VLLM_ENABLE_RESPONSES_API_STORE": "1",
    }
    log, told = folder / "log", ("--keys", str(file))
    with live_server(tiny_model, log, *told, environment=environment, popen=forked) as running:
        yield running


def routes_of(server: LiveServer) -> dict[str, set[str]]:
    """Methods by path, as vLLM tells when it starts; none for WebSockets and mounts."""
    log = server.log.read_text()
    told = re.findall(r"Route: (\S+), (?:Methods: ([A-Z, ]+)|Endpoint: .*)$", log, re.MULTILINE)
    routes: dict[str, set[str]] = {}
    for path, methods in told:
        routes.setdefault(path, set()).update(one for one in methods.split(", ") if one)
    return routes


def test_every_route_is_one_that_was_thought_of(keyed: LiveServer) -> None:
    routes = routes_of(keyed)
    assert {"/v1/load_lora_adapter", "/scale_elastic_ep", "/ready"} <= set(routes)
    found = {
        path
        for path, methods in routes.items()
        for method in methods or {""}
        if access_of(path, method) is Access.USER
    }
    assert found == FOR_USERS


@pytest.mark.parametrize("key", [None, "wrong"])
def test_no_route_but_the_public_ones_opens_without_a_key(
    keyed: LiveServer, key: str | None
) -> None:
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    with httpx.Client(base_url=keyed.url, headers=headers, timeout=60) as client:
        for path, methods in routes_of(keyed).items():
            for method in methods or {"GET"}:
                answer = client.request(method, path.replace("{response_id}", "r"), json={})
                opened = answer.status_code not in (401, 403)
                public = path in PUBLIC or path.startswith("/console")
                assert opened == public, (method, path, answer.status_code)


def test_a_user_opens_no_route_of_administrators(keyed: LiveServer) -> None:
    headers = {"Authorization": f"Bearer {USER}"}
    with httpx.Client(base_url=keyed.url, headers=headers, timeout=60) as client:
        for path, methods in routes_of(keyed).items():
            for method in methods:
                if access_of(path, method) is Access.ADMIN:
                    answer = client.request(method, path, json={})
                    assert answer.status_code == 403, (method, path)
                    assert "needs the admin key" in answer.json()["error"]["message"]


def test_a_web_socket_needs_a_key_too(keyed: LiveServer) -> None:
    asks = {
        "Connection": "Upgrade",
        "Upgrade": "websocket",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
    }
    assert keyed.get("/v1/realtime", asks).status_code == 403


def test_each_key_opens_its_own(keyed: LiveServer) -> None:
    assert keyed.client(USER).models.list().data
    admin = {"Authorization": f"Bearer {ADMIN}"}
    assert keyed.put_level({"level": 0}, admin).status_code == 200
    assert keyed.get("/v1/expert_skipping", admin).status_code == 200
    log = keyed.log.read_text()
    assert USER not in log and ADMIN not in log


def test_stored_responses_are_their_tenant_s(keyed: LiveServer) -> None:
    """Also where another tenant names the same id."""
    own, other = ({"Authorization": f"Bearer {key}"} for key in (USER, OTHER))
    with httpx.Client(base_url=f"{keyed.url}/v1", timeout=60) as client:

        def respond(headers: dict[str, str], **more: object) -> httpx.Response:
            body = {"model": keyed.model, "input": "water", "max_output_tokens": 4, **more}
            return client.post("/responses", json=body, headers=headers)

        name = respond(own, request_id="resp_same").json()["id"]
        assert client.get(f"/responses/{name}", headers=own).json()["id"] == name
        assert client.get(f"/responses/{name}", headers=other).status_code == 404
        assert client.post(f"/responses/{name}/cancel", headers=other).status_code == 404
        assert respond(other, previous_response_id=name).status_code == 404
        assert respond(own, previous_response_id=name).status_code == 200
        again = respond(other, request_id="resp_same", max_output_tokens=2).json()
        assert again["id"] == name
        kept = client.get(f"/responses/{name}", headers=own).json()
        assert kept["max_output_tokens"] == 4


def test_errors_of_messages_are_anthropic_s(keyed: LiveServer) -> None:
    def asked(key: str, body: object) -> httpx.Response:
        headers = {"x-api-key": key}
        return httpx.post(f"{keyed.url}/v1/messages", headers=headers, json=body, timeout=60)

    message = {"role": "user", "content": "h"}
    good = {"model": keyed.model, "max_tokens": 2, "messages": [message]}
    assert asked(USER, good).status_code == 200
    wanted = [
        ("wrong", good, 401, "authentication_error"),
        (ADMIN, good, 403, "permission_error"),
        (USER, {}, 400, "invalid_request_error"),
        (USER, {**good, "expert_skipping": {"level": 7}}, 400, "invalid_request_error"),
        (USER, {**good, "model": "nowhere"}, 404, "not_found_error"),
    ]
    for key, body, status, kind in wanted:
        answer = asked(key, body)
        content = answer.json()
        assert (answer.status_code, content["type"]) == (status, "error"), content
        assert content["error"]["type"] == kind and len(content["error"]["message"]) > 10


def chat(server: LiveServer, key: str, **body: object) -> httpx.Response:
    good = {
        "model": server.model,
        "messages": [{"role": "user", "content": "the people and the water " * 30}],
        "max_tokens": 4,
        "ignore_eos": True,
    }
    return httpx.post(
        f"{server.url}/v1/chat/completions",
        headers={"Authorization": f"Bearer {key}", "Content-Type": "application/json"},
        content=json.dumps({**good, **body}),
        timeout=60,
    )


def tenant_samples(server: LiveServer, name: str) -> dict[tuple[str, ...], float]:
    families = text_string_to_metric_families(server.get("/metrics").text)
    samples = [s for family in families for s in family.samples if s.name == name]
    return {tuple(s.labels.values()): s.value for s in samples}


def cached(server: LiveServer) -> float:
    return server.metrics().get(("vllm:prefix_cache_hits_total", ""), 0.0)


def test_tenants_are_counted_and_share_no_cached_prompt(keyed: LiveServer) -> None:
    """On a route of our own body edits and on one that none of them knows."""
    before = tenant_samples(keyed, "leanmoe_tenant_tokens_total")
    usage = chat(keyed, USER).json()["usage"]
    hits = cached(keyed)
    assert chat(keyed, OTHER).status_code == 200
    assert cached(keyed) == hits
    assert chat(keyed, USER).status_code == 200
    assert cached(keyed) > hits
    hits = cached(keyed)
    body = {"model": keyed.model, "prompt": "the day and the long time " * 30, "max_tokens": 2}
    for key, shared in ((USER, False), (OTHER, False), (USER, True)):
        headers = {"Authorization": f"Bearer {key}"}
        answer = httpx.post(f"{keyed.url}/invocations", headers=headers, json=body, timeout=60)
        assert answer.status_code == 200, answer.text
        assert (cached(keyed) > hits) is shared
    after = tenant_samples(keyed, "leanmoe_tenant_tokens_total")
    spent = after["generated", "bob"] - before["generated", "bob"]
    assert spent == usage["completion_tokens"] + 2
    assert after["prompt", "bob"] - before["prompt", "bob"] > usage["prompt_tokens"]


def test_a_key_s_highest_level_is_kept_by_the_workers(keyed: LiveServer) -> None:
    """Bob's is 0: what the server skips for others it does not skip for him, on any route."""
    admin = {"Authorization": f"Bearer {ADMIN}"}

    def skipped() -> float:
        series = "leanmoe_skipped_assignments_total"
        return sum(value for (name, _), value in keyed.metrics().items() if name == series)

    exact = chat(keyed, OTHER, temperature=0).json()["choices"]
    assert keyed.put_level({"level": 1}, admin).status_code == 200
    try:
        before = skipped()
        answer = chat(keyed, OTHER, temperature=0)
        assert answer.headers["x-leanmoe-skip-level"] == "0"
        assert answer.json()["choices"] == exact
        body = {"model": keyed.model, "prompt": "the water", "max_tokens": 4, "ignore_eos": True}
        headers = {"Authorization": f"Bearer {OTHER}"}
        assert httpx.post(f"{keyed.url}/invocations", headers=headers, json=body).is_success
        assert skipped() == before
        assert chat(keyed, OTHER, expert_skipping={"level": 0.5}).status_code == 403
        assert chat(keyed, USER).headers["x-leanmoe-skip-level"] == "1"
        assert skipped() > before
    finally:
        assert keyed.put_level({"level": 0}, admin).status_code == 200


def test_too_many_requests_are_told_when_to_come_again(keyed: LiveServer) -> None:
    client = keyed.client(RARE)
    assert client.completions.create(model=keyed.model, prompt="h", max_tokens=1)
    with pytest.raises(openai.RateLimitError, match="1 requests of this minute") as refused:
        client.completions.create(model=keyed.model, prompt="h", max_tokens=1)
    assert 1 <= int(refused.value.response.headers["retry-after"]) <= 60


def test_ordinary_refusals_write_no_traceback(keyed: LiveServer) -> None:
    refused = [
        {"model": "nowhere"},
        {"max_tokens": -1},
        {"temperature": "hot"},
        {"messages": []},
        {"messages": [{"role": "user", "content": "w " * 3000}]},
        {"messages": [{"role": "x" * 9, "content": 5}]},
        {"structured_outputs": {"regex": "("}},
        {"response_format": {"type": "json_schema"}},
        {"expert_skipping": {"level": -1}},
        {"logit_bias": {"999999999": 1}},
        {"chat_template": "{{ 1/0 }}", "chat_template_kwargs": {}},
        {"stop": "\ud83d"},
    ]
    told = []
    for body in refused:
        answer = chat(keyed, USER, **body)
        told.append((answer.status_code, list(body)))
    headers = {"Authorization": f"Bearer {USER}"}
    for path in ("/v1/messages", "/v1/messages/count_tokens", "/v1/responses", "/tokenize"):
        for body in ({}, {"model": keyed.model, "messages": 5, "input": 5, "max_tokens": 1}):
            answer = httpx.post(f"{keyed.url}{path}", headers=headers, json=body, timeout=60)
            told.append((answer.status_code, [path]))
    assert all(400 <= status < 500 for status, _ in told), told
    assert "Traceback" not in keyed.log.read_text()
