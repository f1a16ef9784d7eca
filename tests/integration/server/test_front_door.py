"""Every route of the real app is shut without a key, and each is one that was thought of."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from leanmoe_server.access import PUBLIC, Access, access_of
from leanmoe_server.keys import entry_of, new_key
from tests.forked import Forked
from tests.integration.live_server import LiveServer, live_server

USER, ADMIN = new_key(), new_key()
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
    file.write_text(entry_of("alice", USER) + entry_of("operator", ADMIN, admin=True))
    environment = {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1"}
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
                assert opened == (path in PUBLIC), (method, path, answer.status_code)


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
