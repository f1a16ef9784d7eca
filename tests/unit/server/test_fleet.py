"""``leanmoe fleet`` on servers that listen: real routes, keys and control around fake engines."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from leanmoe import cli
from leanmoe.errors import InputError
from leanmoe.wire import CONTROL_PATH
from leanmoe_server.fleet import members, standing
from leanmoe_server.fleet.members import Member, Roster, member_of
from leanmoe_server.model import SkipModel
from tests.unit.server.conftest import App

KEY = "an-admin-key-of-the-fleet"


@dataclass
class Replica:
    """One listening server."""

    app: App
    server: uvicorn.Server
    thread: threading.Thread
    address: str

    @property
    def level(self) -> float:
        policy = self.app.service.control.current
        assert policy is not None
        return policy.level

    @property
    def version(self) -> int:
        return self.app.service.control.version

    def stop(self) -> None:
        self.server.should_exit = True
        self.thread.join(20)


def listen(app: App) -> Replica:
    asyncio.run(app.service.control.start())
    held = socket.socket()
    held.bind(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app.asgi, log_level="error", lifespan="off"))
    thread = threading.Thread(target=server.run, args=([held],), daemon=True)
    thread.start()
    while not server.started and thread.is_alive():
        time.sleep(0.01)
    return Replica(app, server, thread, f"127.0.0.1:{held.getsockname()[1]}")


@pytest.fixture
def start(build_app: Callable[..., App]) -> Iterator[Callable[..., Replica]]:
    running: list[Replica] = []

    def one(**options: Any) -> Replica:
        running.append(listen(build_app(admin_key=KEY, **options)))
        return running[-1]

    yield one
    for replica in running:
        replica.stop()


@pytest.fixture(autouse=True)
def _admin(monkeypatch: pytest.MonkeyPatch, _no_keys_from_outside: None) -> None:
    monkeypatch.setenv("LEANMOE_ADMIN_KEY", KEY)


def fleet(capsys: pytest.CaptureFixture[str], word: str, *arguments: str) -> tuple[int, Any, str]:
    """Exit code, the report, and what was said on stderr."""
    code = cli.main(["fleet", word, *arguments, "--json"])
    said = capsys.readouterr()
    return code, json.loads(said.out) if said.out else None, said.err.strip()


def named(*replicas: Replica) -> list[str]:
    return [part for one in replicas for part in ("--replica", one.address)]


def test_one_level_comes_to_all_and_a_second_time_to_nobody(start, capsys) -> None:
    three = [start() for _ in range(3)]
    code, told, _ = fleet(capsys, "set", "--level", "0.5", *named(*three), "--reason", "evening")
    assert (code, told["agreed"]) == (0, True)
    assert [row["outcome"] for row in told["members"]] == ["changed"] * 3
    assert [replica.level for replica in three] == [0.5] * 3
    assert all(row["leanmoe"] and row["version"] == 2 for row in told["members"])
    assert "evening" in str(three[0].app.service.control.trail.latest(1)[0])
    code, told, _ = fleet(capsys, "set", "--level", "0.5", *named(*three))
    assert [row["outcome"] for row in told["members"]] == ["unchanged"] * 3 and code == 0
    assert [replica.version for replica in three] == [2, 2, 2]
    assert fleet(capsys, "show", *named(*three))[0] == 0


def test_what_a_stopped_command_left_undone_is_done_by_the_next(start, capsys) -> None:
    three = [start() for _ in range(3)]
    assert fleet(capsys, "set", "--max-kld", "0.05", *named(three[0]))[0] == 0
    code, told, said = fleet(capsys, "show", *named(*three))
    assert code == 1 and not told["agreed"] and "do not agree" in said
    code, told, _ = fleet(capsys, "set", "--max-kld", "0.05", *named(*three))
    assert [row["outcome"] for row in told["members"]] == ["unchanged", "changed", "changed"]
    assert {row["max_kld"] for row in told["members"]} == {0.05} and code == 0


def test_a_member_that_is_gone_fails_the_command_and_the_others_are_told(start, capsys) -> None:
    three = [start() for _ in range(3)]
    three[1].stop()
    code, told, said = fleet(capsys, "set", "--level", "1", *named(*three))
    assert code == 1 and "1 of 3 members have not the level" in said and "\n" not in said
    assert [row["outcome"] for row in told["members"]] == ["changed", "failed", "changed"]
    assert told["members"][1]["reachable"] is False and "does not answer" in said
    assert (three[0].level, three[2].level) == (1.0, 1.0)


@pytest.mark.parametrize("other", ["leanmoe", "model"])
def test_a_member_of_another_release_is_refused_before_any_is_told(
    start, capsys, skip_model: SkipModel, other: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = start(), start(model=replace(skip_model, digest="sha256:another"))
    if other == "leanmoe":
        second = start()
        describe = second.app.service.control.describe
        monkeypatch.setattr(
            second.app.service.control, "describe", lambda: {**describe(), "leanmoe": "9.9"}
        )
    code, told, said = fleet(capsys, "set", "--level", "1", *named(first, second))
    assert code == 2 and told is None and "\n" not in said
    assert f"http://{second.address} serves" in said and "nothing was changed" in said
    assert (first.level, second.level) == (0.0, 0.0)


def test_what_one_server_refuses_is_told_to_no_other(start, capsys, skip_model: SkipModel) -> None:
    two = [start(model=replace(skip_model, max_level=0.5)) for _ in range(2)]
    code, told, said = fleet(capsys, "set", "--level", "1", *named(*two))
    assert code == 2 and told is None and "answered 400" in said and "nothing was changed" in said
    assert [replica.version for replica in two] == [1, 1]


def test_a_wrong_key_changes_nothing_and_is_not_said(start, capsys, tmp_path: Path) -> None:
    one, file = start(), tmp_path / "key"
    file.write_text("a-wrong-one")
    key = ("--admin-key-file", str(file))
    code, _, said = fleet(capsys, "set", "--level", "1", *named(one), *key)
    assert code == 1 and "answered 401" in said and "a-wrong-one" not in said
    assert one.level == 0.0


def test_without_a_key_or_members_nothing_is_asked(start, capsys, monkeypatch, tmp_path) -> None:
    monkeypatch.delenv("LEANMOE_ADMIN_KEY")
    code, _, said = fleet(capsys, "set", "--level", "1", "--replica", "127.0.0.1:1")
    assert code == 2 and "needs the admin key" in said
    assert "the fleet has no member" in fleet(capsys, "show")[2]
    absent = str(tmp_path / "absent")
    assert "cannot be read" in fleet(capsys, "show", "--replicas-file", absent)[2]
    assert "outside [0, 1]" in fleet(capsys, "set", "--level", "2", "--replica", "a")[2]


def test_watch_brings_the_level_to_one_that_came_later(start, capsys, tmp_path: Path) -> None:
    first, file = start(), tmp_path / "replicas"
    # With the byte order mark that some editors write.
    file.write_text(f"\ufeff# the fleet\n{first.address}\n\n")
    told = ("--level", "0.5", "--replicas-file", str(file), "--every", "0.05")
    looks = threading.Thread(target=cli.main, args=(["fleet", "watch", *told, "--times", "40"],))
    looks.start()
    second = start()
    file.write_text(f"{first.address}\n{second.address}\n")
    looks.join(60)
    assert (first.level, second.level) == (0.5, 0.5)
    assert f"http://{second.address}" in capsys.readouterr().out


def test_a_name_stands_for_all_its_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    pods = ["10.0.0.2", "10.0.0.1", "10.0.0.2"]
    answers = [(2, 1, 6, "", (pod, 8000)) for pod in pods]
    monkeypatch.setattr(members.socket, "getaddrinfo", lambda *_, **__: answers)
    found = Roster(replicas=("10.0.0.1",), dns="lean-fleet.models.svc").members()
    assert [one.url for one in found] == ["http://10.0.0.1:8000", "http://10.0.0.2:8000"]


def test_a_name_that_nobody_knows() -> None:
    with pytest.raises(InputError, match="could not be resolved"):
        Roster(dns="no-such-name.invalid").members()


@pytest.mark.parametrize(
    ("address", "url"),
    [
        ("a:9000", "http://a:9000"),
        ("a", "http://a:8000"),
        ("https://a/lean/", "https://a:8000/lean"),
        ("[::1]:9", "http://[::1]:9"),
    ],
)
def test_addresses_as_people_write_them(address: str, url: str) -> None:
    assert member_of(address).url == url


@pytest.mark.parametrize("address", ["", "ftp://a", "a:99999", "http://u:p@a", "a?x=1", "http://["])
def test_what_is_no_address(address: str) -> None:
    with pytest.raises(InputError, match="is not one"):
        member_of(address)


def test_a_server_of_another_kind_is_named(capsys) -> None:
    from http.server import BaseHTTPRequestHandler, HTTPServer

    class Other(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            assert self.path == CONTROL_PATH
            self.send_response(302)
            self.send_header("Location", "http://127.0.0.1:1/")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Other) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        address = f"127.0.0.1:{server.server_port}"
        code, told, _ = fleet(capsys, "show", "--replica", address)
        server.shutdown()
    assert code == 1 and "answered 302" in told["members"][0]["error"]


def test_a_report_for_a_person_says_who_is_gone() -> None:
    gone = standing.Standing(Member("a", 1), error="http://a:1 does not answer: refused")
    says = {"level": 0.5, "version": 2, "ready": True, "leanmoe": "1", "model": "sha256:abc"}
    text = standing.table(standing.report([standing.Standing(Member("b", 2), says), gone]))
    assert "http://b:2  0.5" in text and "unreachable" in text
    assert text.endswith("http://a:1: http://a:1 does not answer: refused")
