"""What a key file may hold, and one sentence for what it may not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from leanmoe.cli import main
from leanmoe.errors import InputError
from leanmoe_server.keys.key_source import key_source
from leanmoe_server.keys.keys import KeyLimits, digest_of, entry_of, new_key, parse_keys

HASH = f"sha256:{digest_of('k').hex()}"


def test_an_entry_is_read_as_it_was_written() -> None:
    user, admin = parse_keys(entry_of("a.b", "k") + entry_of("boss", "l", admin=True), "here")
    assert (user.name, user.digests, user.admin) == ("a.b", (digest_of("k"),), False)
    assert (admin.name, admin.admin, admin.limits) == ("boss", True, KeyLimits())


def test_limits_and_two_keys_of_one_name() -> None:
    other = f"sha256:{digest_of('l').hex()}"
    text = f"""
[alice]
hash = ["{HASH}", "{other}"]
max_level = 0.5
max_kld = 0.05
requests_per_minute = 60
tokens_per_minute = 10000
concurrent_requests = 4
"""
    [key] = parse_keys(text, "here")
    assert key.digests == (digest_of("k"), digest_of("l"))
    assert key.limits == KeyLimits(0.5, 0.05, 60, 10000, 4)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[alice", "is not valid TOML"),
        ("a = " + "9" * 5_000, "is not valid TOML: Exceeds the limit"),
        ('alice = "k"', "expected a table"),
        ("[alice]", "hash is not"),
        ('[alice]\nhash = "s3cret"', "hash is not"),
        ("[alice]\nhash = []", "hash is not"),
        (f'[alice]\nhash = ["{HASH}", 5]', "hash is not"),
        (f'[alice]\nhash = "{HASH}"\nlevel = 1', "unknown fields ['level']"),
        (f'["a b"]\nhash = "{HASH}"', "cannot be a key's"),
        (f'[unknown]\nhash = "{HASH}"', "is taken"),
        (f'[a]\nhash = "{HASH}"\nadmin = 1', "expected true or false"),
        (f'[a]\nhash = "{HASH}"\nadmin = true\nmax_level = 1', "takes no limits"),
        (f'[a]\nhash = "{HASH}"\nmax_level = 1.5', "expected 0 to 1"),
        (f'[a]\nhash = "{HASH}"\nmax_level = nan', "expected 0 to 1"),
        (f'[a]\nhash = "{HASH}"\nmax_level = true', "expected 0 to 1"),
        (f'[a]\nhash = "{HASH}"\nmax_kld = inf', "expected nats"),
        (f'[a]\nhash = "{HASH}"\nrequests_per_minute = 0', "expected a whole number"),
        (f'[a]\nhash = "{HASH}"\ntokens_per_minute = 1.5', "expected a whole number"),
        (f'[a]\nhash = "{HASH}"\n[b]\nhash = "{HASH}"', "have the same key"),
    ],
)
def test_what_is_refused(text: str, words: str) -> None:
    with pytest.raises(InputError) as refused:
        parse_keys(text, "keys.toml")
    assert words in str(refused.value) and "\n" not in str(refused.value)
    assert "s3cret" not in str(refused.value)


def test_a_byte_order_mark_is_no_part_of_a_key(tmp_path: Path) -> None:
    """Windows' editors put one before the text."""
    users, admin = tmp_path / "keys.toml", tmp_path / "admin"
    users.write_text(entry_of("a", "k"), encoding="utf-8-sig")
    admin.write_text("secret\n", encoding="utf-8-sig")
    found = key_source(str(users), str(admin), {}).read()
    assert {key.digests for key in found} == {(digest_of("k"),), (digest_of("secret"),)}
    assert main(["key", "new", "bob", "--file", str(users)]) == 0
    assert [key.name for key in parse_keys(users.read_text(), "here")] == ["a", "bob"]


def test_keys_are_long_and_never_the_same() -> None:
    made = {new_key() for _ in range(100)}
    assert len(made) == 100 and min(map(len, made)) >= 40


def test_where_keys_come_from(tmp_path: Path) -> None:
    assert key_source(None, None, {}).admits_everyone
    assert key_source(None, None, {"LEANMOE_ADMIN_KEY": "a"}).admits_everyone
    assert not key_source(None, None, {}).with_users(["u"]).admits_everyone
    file = tmp_path / "keys.toml"
    file.write_text("")
    assert not key_source(str(file), None, {}).admits_everyone
    assert not key_source(None, None, {"LEANMOE_KEYS": entry_of("a", "k")}).admits_everyone


def test_sources_that_contradict_each_other(tmp_path: Path) -> None:
    file = tmp_path / "keys.toml"
    file.write_text(entry_of("a", "k"))
    with pytest.raises(InputError, match="keep one"):
        key_source(str(file), None, {"LEANMOE_KEYS": ""})
    with pytest.raises(InputError, match="have the same key"):
        key_source(str(file), None, {"LEANMOE_ADMIN_KEY": "k"})
    with pytest.raises(InputError, match="have the same key"):
        key_source(str(file), None, {}).with_users(["k"])
    with pytest.raises(InputError, match="cannot be read"):
        key_source(str(tmp_path), None, {})


def test_a_new_key_is_printed_once_and_its_hash_kept(tmp_path: Path, capsys) -> None:
    file = tmp_path / "keys.toml"
    assert main(["key", "new", "alice", "--file", str(file)]) == 0
    key = capsys.readouterr().out.splitlines()[0]
    assert main(["key", "new", "operator", "--admin", "--file", str(file), "--json"]) == 0
    admin = json.loads(capsys.readouterr().out)["key"]
    text = file.read_text()
    assert key not in text and admin not in text
    assert file.stat().st_mode & 0o777 == 0o600
    user, operator = parse_keys(text, "here")
    assert user.digests == (digest_of(key),) and not user.admin
    assert operator.digests == (digest_of(admin),) and operator.admin
    assert main(["key", "new", "alice", "--file", str(file)]) == 2
    assert "has an entry for 'alice' already" in capsys.readouterr().err
    assert file.read_text() == text
    assert main(["key", "new", "bob"]) == 0
    said = capsys.readouterr().out
    assert parse_keys(said.split("file:\n")[1], "here")[0].name == "bob"
    assert main(["key", "new", "a b"]) == 2


def test_a_broken_file_is_left_as_it_is(tmp_path: Path, capsys) -> None:
    file = tmp_path / "keys.toml"
    file.write_text("[alice")
    assert main(["key", "new", "bob", "--file", str(file)]) == 2
    assert "is not valid TOML" in capsys.readouterr().err and file.read_text() == "[alice"
