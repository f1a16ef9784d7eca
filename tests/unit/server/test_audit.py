"""Every change of the policy is told: who, when, from, to, why; and the last one can be undone."""

from __future__ import annotations

import json
import os
from datetime import datetime
from pathlib import Path

import pytest

from leanmoe.errors import InputError
from leanmoe_server.audit.entry import Cause, Origin
from leanmoe_server.audit.journal import Journal
from leanmoe_server.audit.trail import KEPT
from leanmoe_server.fake_engine import FakeEngine
from leanmoe_server.policy import PolicyChange, Target

pytestmark = pytest.mark.anyio
PATH, HISTORY, ROLLBACK = (f"/v1/expert_skipping{end}" for end in ("", "/history", "/rollback"))
ADMIN = {"authorization": "Bearer s3cret-admin"}


def lines(file: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


async def test_a_change_is_told_with_who_when_and_why(build_app, tmp_path) -> None:
    file = tmp_path / "audit.jsonl"
    app = build_app(admin_key="s3cret-admin", audit_file=file)
    await app.service.control.start()
    async with app.client("10.1.2.3", **ADMIN) as client:
        changed = {"level": 0.5, "reason": "busy\nevening"}
        assert (await client.put(PATH, json=changed)).status_code == 200
        assert (await client.put(PATH, json={"level": 2, "reason": "no"})).status_code == 400
        told = (await client.get(HISTORY)).json()
    assert told["total"] == 2 and told["file"] is True
    change, start = told["changes"]
    assert (start["cause"], start["who"], start["from"]) == ("start", "start", None)
    assert (start["to"]["level"], start["version"]) == (0.0, 1)
    assert (change["cause"], change["who"], change["peer"]) == ("admin", "admin", "10.1.2.3")
    assert (change["from"]["level"], change["to"]["level"]) == (0.0, 0.5)
    assert (change["reason"], change["version"], change["id"]) == ("busy\nevening", 2, 2)
    assert change["time"].endswith("Z") and datetime.fromisoformat(change["time"])
    assert lines(file) == [start, change]
    assert "s3cret" not in file.read_text()


async def test_a_change_that_failed_is_told_too_and_counted_apart(build_app) -> None:
    engine = FakeEngine(workers=2)
    app = build_app(engine)
    await app.service.control.start()
    engine.workers[1].deaf = True
    async with app.client() as client:
        assert (await client.put(PATH, json={"level": 1})).status_code == 503
        [failed, _] = (await client.get(HISTORY)).json()["changes"]
        assert "rank1" in failed["error"] and failed["to"]["level"] == 1.0
        # Back is to what was in force, and not to what was before that.
        engine.workers[1].deaf = False
        assert (await client.post(ROLLBACK)).json()["level"] == 0.0
        assert (await client.post(ROLLBACK)).status_code == 409
    name = "leanmoe_policy_changes_total"
    counted = {
        (cause, outcome): app.registry.get_sample_value(name, {"cause": cause, "outcome": outcome})
        for cause, outcome in (("admin", "failed"), ("start", "in_force"), ("rollback", "in_force"))
    }
    assert set(counted.values()) == {1.0}, counted


async def test_rollbacks_go_back_one_change_each(build_app) -> None:
    app = build_app(target=Target(max_kld=0.05))
    await app.service.control.start()
    async with app.client() as client:
        for change in ({"level": 0.2}, {"level": 0.2}, {"union_budget": 4}, {"level": 0.9}):
            assert (await client.put(PATH, json=change)).status_code == 200
        seen = []
        for _ in range(3):
            answer = (await client.post(ROLLBACK, json={"reason": "wrong"})).json()
            seen.append((answer["level"], answer["union_budget"], answer["max_kld"]))
        assert seen == [(0.2, 4, None), (0.2, None, None), (0.5, None, 0.05)]
        refused = await client.post(ROLLBACK)
        assert refused.status_code == 409 and "nothing to undo" in refused.text
        [last, *_] = (await client.get(HISTORY, params={"limit": 1})).json()["changes"]
    assert (last["cause"], last["reason"], last["to"]["max_kld"]) == ("rollback", "wrong", 0.05)


async def test_two_administrators_do_not_undo_one_change_twice(build_app) -> None:
    app = build_app()
    await app.service.control.start()
    async with app.client() as client:
        await client.put(PATH, json={"level": 0.5})
        version = (await client.put(PATH, json={"level": 1})).json()["version"]
        assert (await client.post(ROLLBACK, json={"version": version})).json()["level"] == 0.5
        refused = await client.post(ROLLBACK, json={"version": version})
        assert refused.status_code == 409 and "is not in force" in refused.text
        assert (await client.get(PATH)).json()["level"] == 0.5


@pytest.mark.parametrize(
    "body", ["[]", "{", '{"level": 1}', '{"version": -1}', '{"reason": ""}', '{"version": true}']
)
async def test_a_rollback_with_a_wrong_body_changes_nothing(build_app, body: str) -> None:
    app = build_app()
    await app.service.control.start()
    async with app.client() as client:
        await client.put(PATH, json={"level": 0.5})
        answer = await client.post(ROLLBACK, content=body)
        assert answer.status_code == 400 and "message" in answer.json()["error"]
        assert (await client.get(PATH)).json()["level"] == 0.5


@pytest.mark.parametrize("limit", ["0", "-1", "x", "1001", "9" * 40, "²"])
async def test_a_wrong_limit_is_refused(build_app, limit: str) -> None:
    app = build_app()
    async with app.client() as client:
        assert (await client.get(HISTORY, params={"limit": limit})).status_code == 400


@pytest.mark.parametrize(
    ("keys", "headers", "read", "undo"),
    [
        ({"admin_key": None}, {}, 403, 403),
        ({"user_key": "s3cret-user"}, {}, 401, 401),
        ({"user_key": "s3cret-user"}, {"authorization": "Bearer s3cret-user"}, 403, 403),
        ({"admin_key": "s3cret-admin"}, {}, 401, 401),
        ({"admin_key": "s3cret-admin"}, ADMIN, 200, 200),
        ({"user_key": "s3cret-user", "admin_key": "s3cret-admin"}, ADMIN, 200, 200),
    ],
)
async def test_who_may_read_the_history_and_undo(build_app, keys, headers, read, undo) -> None:
    app = build_app(**keys)
    control = app.service.control
    await control.start()
    await control.change(PolicyChange(Target(level=1.0)), Origin(Cause.ADMIN, "test"))
    async with app.client("10.1.2.3", **headers) as client:
        assert (await client.get(HISTORY)).status_code == read
        assert (await client.post(ROLLBACK)).status_code == undo


async def test_memory_holds_the_last_changes_only(build_app) -> None:
    app = build_app()
    control = app.service.control
    await control.start()
    for number in range(KEPT + 5):
        await control.change(
            PolicyChange(Target(level=float(1 - number % 2))), Origin(Cause.ADMIN, "test")
        )
    assert len(control.trail.latest()) == KEPT and control.trail.recorded == KEPT + 6


async def test_a_full_disk_stops_no_change_and_is_counted(build_app) -> None:
    app = build_app(audit_file=Path("/dev/full"))
    await app.service.control.start()
    assert app.service.control.current.level == 0.0 and app.service.readiness.ready
    assert app.registry.get_sample_value("leanmoe_audit_write_failures_total") == 1


def test_a_moved_file_is_opened_anew_and_a_torn_line_is_left_alone(tmp_path) -> None:
    file = tmp_path / "audit.jsonl"
    file.write_text('{"torn')
    journal = Journal(file)
    journal.append('{"n": 1}')
    file.rename(tmp_path / "audit.1")
    journal.append('{"n": 2}')
    journal.append('{"n": 3}')
    assert (tmp_path / "audit.1").read_text() == '{"torn\n{"n": 1}\n'
    assert file.read_text() == '{"n": 2}\n{"n": 3}\n'
    assert file.stat().st_mode & 0o007 == 0
    journal.close()


def test_a_line_is_on_the_disk_when_append_returns(tmp_path, monkeypatch) -> None:
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", synced.append)
    Journal(tmp_path / "audit.jsonl").append("{}")
    assert len(synced) == 1


def test_a_file_that_cannot_be_appended_to_is_refused(tmp_path) -> None:
    with pytest.raises(InputError, match="--audit-file"):
        Journal(tmp_path / "absent" / "audit.jsonl")
