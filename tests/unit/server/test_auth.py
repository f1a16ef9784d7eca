"""Who may read and who may change the level: every combination of keys, through the real stack."""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.anyio
PATH = "/v1/expert_skipping"
HERE, AWAY = "127.0.0.1", "10.1.2.3"
USER, ADMIN, WRONG = "Bearer s3cret-user", "Bearer s3cret-admin", "Bearer wrong"


@pytest.mark.parametrize(
    ("user_key", "admin_key", "host", "headers", "status"),
    [
        # No key at all: this machine only, and no page of another site in its browser.
        (None, None, HERE, {}, 200),
        (None, None, "::1", {}, 200),
        (None, None, AWAY, {}, 403),
        (None, None, HERE, {"origin": "http://evil.example"}, 403),
        (None, None, HERE, {"origin": "null"}, 403),
        (None, None, HERE, {"origin": "http://["}, 403),
        (None, None, "::ffff:127.0.0.1", {}, 200),
        (None, None, "::ffff:10.1.2.3", {}, 403),
        (None, None, HERE, {"origin": "http://localhost:3000"}, 200),
        # Users have keys, nobody is an administrator.
        ("s3cret-user", None, HERE, {}, 401),
        ("s3cret-user", None, HERE, {"authorization": USER}, 403),
        (
            "s3cret-user",
            None,
            HERE,
            {"authorization": USER, "x-leanmoe-admin-key": "s3cret-user"},
            403,
        ),
        # An administrator and open use.
        (None, "s3cret-admin", HERE, {}, 401),
        (None, "s3cret-admin", HERE, {"authorization": WRONG}, 401),
        (None, "s3cret-admin", AWAY, {"authorization": ADMIN}, 200),
        (None, "s3cret-admin", AWAY, {"x-leanmoe-admin-key": "s3cret-admin"}, 200),
        (None, "s3cret-admin", AWAY, {"x-leanmoe-admin-key": "s3cret-admi"}, 401),
        (None, "s3cret-admin", AWAY, {"x-leanmoe-admin-key": ""}, 401),
        # Both.
        ("s3cret-user", "s3cret-admin", AWAY, {}, 401),
        ("s3cret-user", "s3cret-admin", AWAY, {"authorization": USER}, 401),
        ("s3cret-user", "s3cret-admin", AWAY, {"authorization": ADMIN}, 200),
        ("s3cret-user", "s3cret-admin", AWAY, {"authorization": "bearer s3cret-admin"}, 200),
        ("s3cret-user", "s3cret-admin", AWAY, {"authorization": "Basic s3cret-admin"}, 401),
        ("s3cret-user", "s3cret-admin", AWAY, {"x-leanmoe-admin-key": "s3cret-admin"}, 200),
        (
            "s3cret-user",
            "s3cret-admin",
            AWAY,
            {"authorization": USER, "x-leanmoe-admin-key": "s3cret-admin"},
            200,
        ),
    ],
)
async def test_changing_the_level(build_app, user_key, admin_key, host, headers, status) -> None:
    app = build_app(user_key=user_key, admin_key=admin_key)
    await app.service.control.start()
    async with app.client(host, **headers) as client:
        answer = await client.put(PATH, json={"level": 1})
    assert answer.status_code == status, answer.text
    assert app.service.control.current.level == (1.0 if status == 200 else 0.0)
    assert "s3cret-admin" not in answer.text and "s3cret-user" not in answer.text


async def test_a_key_is_compared_as_the_bytes_that_were_sent(build_app) -> None:
    app = build_app(admin_key="clé")
    await app.service.control.start()
    for sent, status in (("clé".encode(), 200), ("clé".encode("latin-1"), 401), (b"cl", 401)):
        async with app.client() as client:
            headers = [(b"x-leanmoe-admin-key", sent)]
            answer = await client.put(PATH, json={"level": 1}, headers=headers)
        assert answer.status_code == status, sent


async def test_reading_is_for_users_and_the_admin_key_is_not_a_user_key(build_app) -> None:
    app = build_app(user_key="s3cret-user", admin_key="s3cret-admin")
    await app.service.control.start()
    async with app.client() as client:
        for path in (PATH, "/v1/models"):
            for authorization, status in ((USER, 200), (ADMIN, 401), (WRONG, 401)):
                answer = await client.get(path, headers={"authorization": authorization})
                assert answer.status_code == status, (path, authorization)


async def test_no_other_path_lets_the_admin_key_past_authentication(build_app) -> None:
    app = build_app(user_key="s3cret-user", admin_key="s3cret-admin")
    await app.service.control.start()
    async with app.client(authorization=ADMIN) as client:
        for path in (f"{PATH}/../models", f"{PATH}//", "/v1/models", "/V1/expert_skipping"):
            answer = await client.put(path, json={"level": 1})
            assert answer.status_code in (401, 404), path
    assert app.service.control.current.level == 0.0


def test_the_key_is_not_in_the_settings_text(build_app) -> None:
    app = build_app(admin_key="s3cret-admin")
    assert "s3cret-admin" not in repr(app.service.settings)
