"""Bodies that do not fit: one sentence that says what was found and what is expected instead."""

from __future__ import annotations

import pytest

from leanmoe.errors import InputError
from leanmoe_server.policy import NO_BUDGET, PolicyChange, Target
from leanmoe_server.schema import parse_change, request_target

KIND = 'expected {"level": 0.5} or {"max_kld": 0.05}'


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        (b"[]", f'the body is not a JSON object; {KIND}, "phases", "union_budget" or "union_mode"'),
        (b'{"level": 0, "level": 1}', f"the body names a key twice: ['level']; {KIND}"),
        (b'{"phases": "all", "reason": "a", "reason": "b"}', "the body names a key twice: ['rea"),
        (b'{"b": 1, "level": 7, "a": 1}', f"the body has unknown keys ['a', 'b']; {KIND}"),
        (b'{"\\ud800": 1}', f"the body has unknown keys ['\\ud800']; {KIND}"),
        (
            b"{%s}" % b", ".join(b'"k%d": 1' % i for i in range(300)),
            f"the body has unknown keys ['k0', 'k1', 'k10', 'k100', 'k101'] and 295 more; {KIND}",
        ),
        (
            b'{"level": 0, "reason": "\\ud800"}',
            "reason is '\\ud800', expected a text of 1 to 500 characters",
        ),
        (b'{"phases": "\\ud800"}', "phases is '\\ud800', expected 'all' or 'decode'"),
        (b" ", f"the body is empty; {KIND}"),
        (b"[" * 4096, f"the body is nested too deeply; {KIND}"),
        (b'{"level": 0, "max_kld": 0.1}', f"the body has both level and max_kld; {KIND}"),
        (
            b'{"level": true}',
            "level is True, outside [0, 1]; give a number from 0 (exact) to 1 (top-1 only)",
        ),
        (b'{"level": null}', "level is None, outside [0, 1]; give a number"),
        (b'{"level": 1' + 400 * b"0" + b"}", "level is inf, outside [0, 1]; give a number"),
        (b'{"max_kld": null}', "max_kld is None, expected a finite number >= 0 (nats per token)"),
        (b'{"max_kld": "0.1"}', "max_kld is '0.1', expected a finite number >= 0"),
        (b'{"phases": null}', "phases is None, expected 'all' or 'decode'"),
        (b'{"union_mode": null}', "union_mode is None, expected 'vanish' or 'redirect'"),
        (
            b'{"union_budget": 100001}',
            "union_budget is 100001.0, expected a whole number of experts from 1 up, or null for "
            "no budget",
        ),
    ],
)
def test_a_change_that_does_not_fit(body: bytes, sentence: str) -> None:
    with pytest.raises(InputError) as refused:
        parse_change(body)
    assert str(refused.value).startswith(sentence)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ({}, f"'expert_skipping' has neither level nor max_kld; {KIND}"),
        ("on", f"'expert_skipping' is not a JSON object; {KIND}, \"deterministic\" beside it, or"),
        ({"phases": "all"}, "'expert_skipping' has unknown keys ['phases']; "),
        ({"level": 1, "deterministic": 1}, "deterministic is 1, expected true or false"),
        ({"level": 1, "deterministic": None}, "deterministic is None, expected true or false"),
    ],
)
def test_a_request_that_does_not_fit(content: object, sentence: str) -> None:
    with pytest.raises(InputError) as refused:
        request_target(content)
    assert str(refused.value).startswith(sentence)


def test_null_is_no_budget_and_absent_is_no_change() -> None:
    assert parse_change(b'{"union_budget": null}') == PolicyChange(union_budget=NO_BUDGET)
    assert parse_change(b'{"union_budget": 8.0}') == PolicyChange(union_budget=8)
    assert parse_change(b'{"max_kld": 1}') == PolicyChange(target=Target(max_kld=1.0))


def test_the_document_of_the_api_holds_what_a_change_may_say(build_app) -> None:
    methods = build_app().asgi.openapi()["paths"]["/v1/expert_skipping"]
    content = methods["put"]["requestBody"]["content"]["application/json"]["schema"]
    named = {"level", "max_kld", "phases", "union_budget", "union_mode", "reason", "governor"}
    assert set(content["properties"]) == named and content["additionalProperties"] is False
    assert content["properties"]["phases"]["enum"] == ["all", "decode"]
