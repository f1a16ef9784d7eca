"""Who comes in by which key, on every kind of route, through the real stack."""

from __future__ import annotations

import asyncio

import pytest

from leanmoe.wire import ADMIN_HEADER
from leanmoe_server.access import Access, access_of
from leanmoe_server.keys.key_source import KeySource
from leanmoe_server.keys.keys import entry_of

pytestmark = pytest.mark.anyio
PATH = "/v1/expert_skipping"
USER, ADMIN, WRONG = "Bearer s3cret-user", "Bearer s3cret-admin", "Bearer wrong"
HEADER = ADMIN_HEADER


@pytest.mark.parametrize(
    ("user_key", "admin_key", "headers", "status"),
    [
        # No admin key: nobody changes the level, from wherever.
        (None, None, {}, 403),
        (None, None, {"authorization": WRONG}, 403),
        (None, None, {"x-forwarded-for": "127.0.0.1"}, 403),
        ("s3cret-user", None, {}, 401),
        ("s3cret-user", None, {"authorization": USER}, 403),
        ("s3cret-user", None, {"authorization": USER, HEADER: "s3cret-user"}, 403),
        # An administrator and open use.
        (None, "s3cret-admin", {}, 401),
        (None, "s3cret-admin", {"authorization": WRONG}, 401),
        (None, "s3cret-admin", {"authorization": ADMIN}, 200),
        (None, "s3cret-admin", {HEADER: "s3cret-admin"}, 200),
        (None, "s3cret-admin", {HEADER: "s3cret-admi"}, 401),
        (None, "s3cret-admin", {HEADER: ""}, 401),
        # Both.
        ("s3cret-user", "s3cret-admin", {}, 401),
        ("s3cret-user", "s3cret-admin", {"authorization": WRONG}, 401),
        ("s3cret-user", "s3cret-admin", {"authorization": USER}, 403),
        ("s3cret-user", "s3cret-admin", {"authorization": ADMIN}, 200),
        ("s3cret-user", "s3cret-admin", {"authorization": "bearer s3cret-admin"}, 200),
        ("s3cret-user", "s3cret-admin", {"authorization": "Basic s3cret-admin"}, 401),
        ("s3cret-user", "s3cret-admin", {HEADER: "s3cret-admin"}, 200),
        ("s3cret-user", "s3cret-admin", {"authorization": USER, HEADER: "s3cret-admin"}, 200),
    ],
)
async def test_changing_the_level(build_app, user_key, admin_key, headers, status) -> None:
    app = build_app(user_key=user_key, admin_key=admin_key)
    await app.service.control.start()
    async with app.client(**headers) as client:
        answer = await client.put(PATH, json={"level": 1})
    assert answer.status_code == status, answer.text
    assert app.service.control.current.level == (1.0 if status == 200 else 0.0)
    assert "s3cret" not in answer.text
    if status != 200:
        error = answer.json()["error"]
        assert set(error) == {"message", "type", "param", "code"} and error["code"] == status


async def test_a_key_is_compared_as_the_bytes_that_were_sent(build_app) -> None:
    app = build_app(admin_key="clé")
    await app.service.control.start()
    for sent, status in (("clé".encode(), 200), ("clé".encode("latin-1"), 401), (b"cl", 401)):
        async with app.client() as client:
            headers = [(HEADER.encode(), sent)]
            answer = await client.put(PATH, json={"level": 1}, headers=headers)
        assert answer.status_code == status, sent


async def test_the_level_is_read_with_any_key_and_the_model_used_with_a_user_s(build_app) -> None:
    app = build_app(user_key="s3cret-user", admin_key="s3cret-admin")
    await app.service.control.start()
    wanted = {
        PATH: {USER: 200, ADMIN: 200, WRONG: 401},
        "/v1/models": {USER: 200, ADMIN: 403, WRONG: 401},
        "/openapi.json": {USER: 200, ADMIN: 403, WRONG: 401},
        "/nowhere": {USER: 404, ADMIN: 403, WRONG: 401},
    }
    async with app.client() as client:
        for path, statuses in wanted.items():
            for authorization, status in statuses.items():
                answer = await client.get(path, headers={"authorization": authorization})
                assert answer.status_code == status, (path, authorization)
        by_other_name = await client.get("/v1/models", headers={"x-api-key": "s3cret-user"})
        assert by_other_name.status_code == 200
        missing = await client.get("/v1/models")
        assert missing.status_code == 401 and missing.headers["www-authenticate"] == "Bearer"
        assert missing.json()["error"]["type"] == "authentication_error"
        for path in ("/ready", "/metrics", "/ping"):
            assert (await client.get(path)).status_code in (200, 404), path


async def test_no_spelling_of_a_path_opens_what_its_route_keeps_shut(build_app) -> None:
    app = build_app(user_key="s3cret-user", admin_key="s3cret-admin")
    await app.service.control.start()
    spellings = (f"{PATH}/", f"{PATH}//", f"/ready/..{PATH}", f"/{PATH}", "/V1/expert_skipping")
    async with app.client(authorization=USER) as client:
        for path in spellings:
            answer = await client.put(path, json={"level": 1}, follow_redirects=True)
            assert answer.status_code in (403, 404, 405), path
    assert app.service.control.current.level == 0.0


async def test_a_browser_asks_before_it_sends_a_key(build_app) -> None:
    app = build_app(user_key="s3cret-user")
    asks = {"origin": "http://here", "access-control-request-method": "POST"}
    async with app.client() as client:
        assert (await client.options("/v1/models", headers=asks)).status_code != 401
        assert (await client.options("/v1/models")).status_code == 401


async def test_a_web_socket_without_a_key_is_closed(build_app) -> None:
    app = build_app(user_key="s3cret-user")
    sent = []

    async def receive() -> dict:
        return {"type": "websocket.connect"}

    async def send(message: dict) -> None:
        sent.append(message)

    scope = {"type": "websocket", "path": "/v1/realtime", "headers": [], "query_string": b""}
    await app.asgi({**scope, "subprotocols": []}, receive, send)
    assert [(one["type"], one["code"]) for one in sent] == [("websocket.close", 1008)]


@pytest.mark.parametrize(
    ("method", "path", "access"),
    [
        ("GET", "/health", Access.PUBLIC),
        ("POST", "/ping", Access.PUBLIC),
        ("GET", "/metricsx", Access.USER),
        ("GET", "/healthy", Access.USER),
        ("GET", "/console", Access.PUBLIC),
        ("GET", "/console/app.js", Access.PUBLIC),
        ("POST", "/console", Access.USER),
        ("GET", "/consoles", Access.USER),
        ("GET", PATH, Access.READER),
        ("POST", f"{PATH}/rollback", Access.ADMIN),
        ("GET", "/v1/load_lora_adapter", Access.ADMIN),
        ("POST", "/adapters/mine", Access.ADMIN),
        ("POST", "/invocations", Access.USER),
        ("", "/v1/realtime", Access.USER),
        ("POST", "/tokenize", Access.USER),
    ],
)
def test_what_each_route_wants(method: str, path: str, access: Access) -> None:
    assert access_of(path, method) is access


async def test_where_the_app_lies_under_a_path_of_its_own(build_app) -> None:
    app = build_app(user_key="s3cret-user", admin_key="s3cret-admin")
    app.asgi.root_path = "/api"
    async with app.client() as client:
        assert (await client.get("/api/ready")).status_code in (200, 503)
        assert (await client.get("/api/v1/models")).status_code == 401
        assert (await client.get("/apiready")).status_code == 401


async def test_a_changed_file_is_read_and_a_broken_one_is_not(build_app, tmp_path, caplog) -> None:
    file = tmp_path / "keys.toml"
    file.write_text(entry_of("alice", "old"))
    app = build_app(keys=KeySource(file=file), admin_key=None)
    await app.service.control.start()
    keyring = app.service.tenants.keyring

    async def status(key: str) -> int:
        async with app.client(authorization=f"Bearer {key}") as client:
            return (await client.get("/v1/models")).status_code

    assert [await status("old"), await status("new")] == [200, 401]
    keyring.watch()
    file.write_text(entry_of("alice", "new") + entry_of("bob", "newer"))
    async with asyncio.timeout(20):
        while await status("new") == 401:
            await asyncio.sleep(0.05)
    assert [await status("old"), await status("newer")] == [401, 200]
    broken = 'alice = "new"'
    file.write_text(broken)
    assert keyring.reload() is False
    assert [await status("new"), await status("newer")] == [200, 200]
    [said] = [one for one in caplog.records if one.levelname == "ERROR"]
    assert "the keys stay as they were" in said.getMessage()
    assert app.registry.get_sample_value("leanmoe_key_file_errors_total") == 1
    file.unlink()
    assert keyring.reload() is False and await status("new") == 200
    file.write_text("")
    assert keyring.reload() is True
    assert await status("new") == 401


def test_no_key_is_in_the_settings_text(build_app) -> None:
    app = build_app(admin_key="s3cret-admin", user_key="s3cret-user")
    assert "s3cret" not in repr(app.service.settings)
