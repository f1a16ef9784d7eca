"""A request's own level: taken out of its body, checked, handed on, echoed; the cap holds."""

from __future__ import annotations

import json
from dataclasses import replace

import anyio
import anyio.lowlevel
import pytest

from leanmoe.messages import RequestAssignments
from leanmoe.policy import RequestLevel
from leanmoe.wire import BUDGET_HEADER, LEVEL_HEADER
from leanmoe_server.audit.entry import Cause, Origin
from leanmoe_server.fake_engine import FakeEngine
from leanmoe_server.policy import PolicyChange, Target
from leanmoe_server.request_level import ROUTES

pytestmark = pytest.mark.anyio
CHAT = "/v1/chat/completions"
BODY = {"model": "m", "messages": [{"role": "user", "content": "h\u00e9 \u4f60"}]}


async def ask(app, body, path: str = CHAT, **headers: str):
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    async with app.client(**headers) as client:
        return await client.post(path, content=content)


async def started(build_app, **options):
    app = build_app(**options)
    await app.service.control.start()
    return app


def handed_on(answer) -> dict:
    assert answer.status_code == 200, answer.text
    return json.loads(answer.json()["seen"])


async def test_a_body_without_the_key_arrives_byte_for_byte(build_app) -> None:
    app = await started(build_app, target=Target(level=0.5))
    odd = b'{ "model":"m" ,"x":"\\u00e9", "temperature": 1.0e0 }'
    answer = await ask(app, odd)
    assert answer.json()["seen"] == odd.decode()
    assert answer.headers[LEVEL_HEADER] == "0.5"
    assert (await ask(app, b"{not json")).json()["seen"] == "{not json"


@pytest.mark.parametrize("path", sorted(ROUTES))
async def test_a_level_becomes_an_argument_and_a_salt(build_app, path: str) -> None:
    app = await started(build_app)
    answer = await ask(app, {**BODY, "expert_skipping": {"level": 0.4}}, path)
    seen, key = handed_on(answer), app.service.control.request_key
    assert seen["vllm_xargs"] == {key: 40}
    assert seen["messages"] == BODY["messages"]
    assert "expert_skipping" not in seen and len(seen["cache_salt"]) == 64
    assert answer.headers[LEVEL_HEADER] == "0.4"
    assert answer.json()["usage"] == {"n": 1, "expert_skipping": {"level": 0.4}}
    assert int(answer.headers["content-length"]) == len(answer.content)


@pytest.mark.parametrize(
    ("asked", "hundredths", "alone"),
    [
        ("off", 0, False),
        ({"level": 0}, 0, False),
        ({"level": 1}, 100, False),
        ({"level": 0.29}, 29, False),
        ({"level": 0.999, "deterministic": False}, 99, False),
        ({"level": 0.29, "deterministic": True}, 29, True),
        ({"max_kld": 0.05}, 50, True),
        ({"max_kld": 0.01}, 0, True),
    ],
)
async def test_targets_resolve_to_hundredths_rounded_down(
    build_app, asked, hundredths: int, alone: bool
) -> None:
    """A promised loss and a deterministic request depend on no other request."""
    app = await started(build_app, target=Target(level=1.0))
    answer = await ask(app, {**BODY, "expert_skipping": asked})
    [code] = handed_on(answer)["vllm_xargs"].values()
    assert RequestLevel.unpack(code) == RequestLevel(hundredths, alone)
    assert answer.headers[LEVEL_HEADER] == f"{hundredths / 100:g}"


async def test_the_workers_know_the_betas_of_every_level(build_app) -> None:
    app = await started(build_app)
    table = app.engine.levels
    assert table.key == app.service.control.request_key
    assert sorted(table.betas) == list(range(101))
    assert table.betas[25] == {i: pytest.approx(0.3) for i in range(4)}
    assert table.betas[100] == dict.fromkeys(range(4), 1.0)


async def test_a_stream_is_echoed_in_its_last_event(build_app) -> None:
    app = await started(build_app)
    body = {**BODY, "stream": True, "expert_skipping": {"level": 0.5}}
    answer = await ask(app, body)
    events = [line.removeprefix("data: ") for line in answer.text.split("\n") if line]
    assert answer.headers[LEVEL_HEADER] == "0.5"
    assert json.loads(events[0])["usage"] is None
    assert json.loads(events[1])["usage"] == {"n": 1, "expert_skipping": {"level": 0.5}}
    assert events[2] == "[DONE]"


async def test_salts_differ_by_level_and_by_the_user_s_own(build_app) -> None:
    app = await started(build_app)
    bodies = [
        {**BODY, "expert_skipping": asked, **extra}
        for asked in ("off", {"level": 0.5}, {"level": 1})
        for extra in ({}, {"cache_salt": "mine"}, {"cache_salt": "yours"})
    ]
    salts = [handed_on(await ask(app, body))["cache_salt"] for body in bodies]
    assert len(set(salts)) == len(bodies)
    again = handed_on(await ask(app, bodies[4]))["cache_salt"]
    assert again == salts[4]
    assert handed_on(await ask(app, {**BODY, "cache_salt": "mine"}))["cache_salt"] == "mine"


async def test_a_user_s_own_arguments_stay(build_app) -> None:
    app = await started(build_app)
    body = {**BODY, "vllm_xargs": {"theirs": 1}, "expert_skipping": {"level": 0.5}}
    assert handed_on(await ask(app, body))["vllm_xargs"]["theirs"] == 1


async def test_the_key_in_escapes_is_no_way_around(build_app) -> None:
    app = await started(build_app)
    hidden = json.dumps(BODY)[:-1].encode() + b', "expert\\u005fskipping": {"level": 7}}'
    assert (await ask(app, hidden)).status_code == 400


@pytest.mark.parametrize(
    "asked",
    [
        {"level": 1.5},
        {"level": -0.1},
        {"level": "0.5"},
        {"level": True},
        {"level": 0.5, "max_kld": 0.1},
        {"max_kld": -1},
        {"beta": 0.5},
        {},
        [],
        0.5,
        "on",
    ],
)
async def test_a_bad_target_is_refused_in_one_sentence(build_app, asked) -> None:
    app = await started(build_app)
    answer = await ask(app, {**BODY, "expert_skipping": asked})
    message = answer.json()["error"]["message"]
    assert answer.status_code == 400 and len(message) > 20 and "\n" not in message


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("cache_salt", salt) for salt in ("", 5, "x" * 100_000, "a\0b", "a/b")),
        *(("vllm_xargs", extra) for extra in ([1], [], 0, False, "")),
    ],
)
async def test_fields_that_could_not_be_kept_are_refused_by_name(build_app, field, value) -> None:
    app = await started(build_app)
    answer = await ask(app, {**BODY, "expert_skipping": "off", field: value})
    assert answer.status_code == 400 and field in answer.json()["error"]["message"]


async def test_a_number_too_long_is_refused_by_its_length(build_app) -> None:
    """vLLM says that it could not parse the body, and no more."""
    app = await started(build_app)
    for field in ('"expert_skipping": {"level": 9%s}', '"expert_skipping": "off", "seed": 9%s'):
        answer = await ask(app, b"{%s}" % (field % ("9" * 4_999)).encode())
        assert answer.status_code == 400
        assert "an integer of 5000 digits" in answer.json()["error"]["message"]


@pytest.mark.parametrize("path", [CHAT, "/v1/messages", "/v1/embeddings"])
@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b'{"seed": 1%s}' % (b"0" * 5_000), "an integer of 5001 digits is too large a number"),
        (b'{"temperature": -1%s}' % (b"0" * 309), "an integer of 310 digits is too large"),
        (b'{"stop": "\xff"}', "not text in utf-8: byte 0xff at place 10 belongs to no character"),
    ],
)
async def test_what_vllm_would_say_nothing_of_is_told(build_app, path, body, said) -> None:
    """Where nobody wishes, too: its own words are "There was an error parsing the body"."""
    app = await started(build_app)
    answer = await ask(app, body, path)
    assert answer.status_code == 400 and said in answer.json()["error"]["message"]


async def test_long_digits_in_a_text_are_no_number(build_app) -> None:
    app = await started(build_app)
    for body in (b'{"prompt": "%s"}' % (b"7" * 5_000), b'{"top_p": 0.%s}' % (b"1" * 5_000)):
        assert (await ask(app, body)).json()["seen"] == body.decode()


async def test_the_cap_bounds_every_target(build_app, skip_model) -> None:
    app = await started(build_app, model=replace(skip_model, max_level=0.5))
    refused = await ask(app, {**BODY, "expert_skipping": {"level": 0.51}})
    assert refused.status_code == 400
    assert "0.5, the most this server allows" in refused.json()["error"]["message"]
    seen = handed_on(await ask(app, {**BODY, "expert_skipping": {"max_kld": 10}}))
    assert list(seen["vllm_xargs"].values()) == [RequestLevel(50, deterministic=True).pack()]
    assert max(app.engine.levels.betas) == 50
    async with app.client() as client:
        change = await client.put("/v1/expert_skipping", json={"level": 1})
        assert change.status_code == 400
        shown = (await client.get("/v1/expert_skipping")).json()
        assert (shown["max_level"], shown["request_levels"]) == (0.5, True)


async def test_without_a_curve_only_0_and_1_can_be_asked_for(build_app, skip_model) -> None:
    app = await started(build_app, model=replace(skip_model, curve=None))
    assert sorted(app.engine.levels.betas) == [0, 100]
    assert (await ask(app, {**BODY, "expert_skipping": {"level": 1}})).status_code == 200
    refused = await ask(app, {**BODY, "expert_skipping": {"level": 0.5}})
    assert refused.status_code == 400 and "leanmoe curve" in refused.json()["error"]["message"]


async def test_where_tokens_cannot_be_told_apart_it_says_why(build_app) -> None:
    app = await started(
        build_app, request_levels_unavailable="with --enable-dbo they lie otherwise"
    )
    refused = await ask(app, {**BODY, "expert_skipping": "off"})
    assert refused.status_code == 400 and "--enable-dbo" in refused.json()["error"]["message"]
    assert (await ask(app, BODY)).status_code == 200
    assert app.engine.levels is None


async def test_authentication_comes_first(build_app) -> None:
    app = await started(build_app, user_key="user")
    body = {**BODY, "expert_skipping": {"level": 7}}
    assert (await ask(app, body)).status_code == 401
    assert (await ask(app, body, Authorization="Bearer user")).status_code == 400


async def test_a_body_beyond_the_limit_is_refused(build_app) -> None:
    app = await started(build_app)
    longest = app.service.settings.max_body_bytes
    assert (await ask(app, b" " * (longest + 1))).status_code == 413
    assert (await ask(app, b" " * longest)).status_code == 200


async def test_other_routes_pass_untouched(build_app) -> None:
    app = await started(build_app)
    body = {"input": "x", "skipping": {"level": 7}}
    answer = await ask(app, body, "/v1/embeddings")
    assert handed_on(answer) == body and LEVEL_HEADER not in answer.headers


async def test_what_a_worker_cannot_tell_apart_no_request_can_ask_for(build_app) -> None:
    engine = FakeEngine(workers=2)
    engine.workers[1].request_levels_unavailable = "a step runs in two halves"
    app = build_app(engine)
    await app.service.control.start()
    assert app.service.readiness.ready and engine.levels is None
    refused = await ask(app, {**BODY, "expert_skipping": {"level": 0.5}})
    assert refused.status_code == 400
    assert "two halves; leave it out" in refused.json()["error"]["message"]
    assert (await ask(app, BODY)).status_code == 200
    async with app.client() as client:
        shown = (await client.get("/v1/expert_skipping")).json()
        assert shown["request_levels"] is False
        change = await client.put("/v1/expert_skipping", json={"phases": "decode"})
        assert change.status_code == 400


@pytest.mark.parametrize("path", ["/v1/embeddings", "/v1/chat/completions/batch"])
async def test_a_level_where_none_is_heeded_is_refused(build_app, path: str) -> None:
    app = await started(build_app)
    refused = await ask(app, {**BODY, "expert_skipping": "off"}, path)
    assert refused.status_code == 400
    assert f"{path} takes no 'expert_skipping'" in refused.json()["error"]["message"]
    assert (await ask(app, BODY, path)).status_code in (200, 404)


async def test_beam_search_would_lose_the_level(build_app) -> None:
    app = await started(build_app)
    for asked in ("off", {"level": 0.5}):
        refused = await ask(app, {**BODY, "use_beam_search": True, "expert_skipping": asked})
        assert refused.status_code == 400
        assert "beam search" in refused.json()["error"]["message"]
    assert (await ask(app, {**BODY, "use_beam_search": True})).status_code == 200


async def test_numbers_of_any_length_and_encodings_of_any_width_are_read(build_app) -> None:
    app = await started(build_app)
    huge = b'{"model": "m", "expert_skipping": {"max_kld": 1' + b"0" * 400 + b"}}"
    refused = await ask(app, huge)
    assert refused.status_code == 400 and "an integer of 401 digits is too" in refused.text
    wide = json.dumps({**BODY, "expert_skipping": {"level": 2}}).encode("utf-16")
    assert (await ask(app, wide)).status_code == 400


async def test_deterministic_requests_share_no_cache_where_only_decoding_skips(build_app) -> None:
    app = await started(build_app)
    asked = {"level": 0.5, "deterministic": True}

    async def salts() -> set[str]:
        bodies = [{**BODY, "expert_skipping": asked}] * 2
        return {handed_on(await ask(app, body))["cache_salt"] for body in bodies}

    assert len(await salts()) == 1
    async with app.client() as client:
        change = await client.put("/v1/expert_skipping", json={"phases": "decode"})
        assert change.status_code == 200
    assert len(await salts()) == 2


async def test_answers_that_a_budget_may_have_touched_say_so(build_app) -> None:
    app = await started(build_app)
    async with app.client() as client:
        await client.put("/v1/expert_skipping", json={"union_budget": 4})
    touched = [BODY, {**BODY, "expert_skipping": {"level": 0.5}}]
    kept = [{**BODY, "expert_skipping": w} for w in ("off", {"max_kld": 0.05})]
    assert [(await ask(app, one)).headers.get(BUDGET_HEADER) for one in touched] == ["4", "4"]
    assert [(await ask(app, one)).headers.get(BUDGET_HEADER) for one in kept] == [None, None]


async def test_an_exact_server_leaves_usage_as_it_is(build_app) -> None:
    app = await started(build_app)
    assert (await ask(app, BODY)).json()["usage"] == {"n": 1}
    exact = (await ask(app, {**BODY, "expert_skipping": "off"})).json()["usage"]
    assert exact == {"n": 1, "expert_skipping": {"level": 0.0, "skipped": 0}}


@pytest.mark.parametrize("stream", [False, True])
async def test_usage_tells_what_the_workers_counted(build_app, stream: bool) -> None:
    app = await started(build_app, target=Target(level=0.5))
    app.engine.requests = {"chatcmpl-1": RequestAssignments(routed=80, skipped=30)}
    text = (await ask(app, {**BODY, "stream": stream})).text
    told = [
        json.loads(line.removeprefix("data: ")) for line in text.splitlines() if "usage" in line
    ]
    expected = {"level": 0.5, "routed": 80, "skipped": 30}
    assert told[-1]["usage"]["expert_skipping"] == expected
    assert not app.engine.requests, "an account is closed once it was told"


async def test_an_answer_states_the_levels_it_was_made_at(build_app) -> None:
    app = await started(build_app)
    app.pause = anyio.Event()
    async with anyio.create_task_group() as group:
        answers = {}

        async def one(name: str, body) -> None:
            answers[name] = await ask(app, body)

        group.start_soon(one, "engine", BODY)
        group.start_soon(one, "own", {**BODY, "expert_skipping": {"level": 0.2}})
        await anyio.wait_all_tasks_blocked()
        for level in (1.0, 0.5):
            await app.service.control.change(
                PolicyChange(target=Target(level=level)), Origin(Cause.ADMIN, "test")
            )
        app.pause.set()
    assert answers["engine"].headers[LEVEL_HEADER] == "0"
    told = {name: answer.json()["usage"]["expert_skipping"] for name, answer in answers.items()}
    assert told == {"engine": {"level": 1.0, "from": 0.0, "to": 0.5}, "own": {"level": 0.2}}


async def test_questions_meanwhile_go_together_and_a_fault_leaves_the_counts_out(build_app) -> None:
    app = await started(build_app, target=Target(level=1.0))
    app.engine.requests = {f"r{i}": RequestAssignments(routed=i, skipped=0) for i in range(9)}
    asked: list[list[str]] = []
    stock = app.engine.request_counts

    async def counts(names):
        asked.append(list(names))
        await anyio.lowlevel.checkpoint()
        return await stock(names)

    app.engine.request_counts = counts
    found = {}

    async def one(name: str) -> None:
        found[name] = await app.service.counter.counts_of(name)

    async with anyio.create_task_group() as group:
        for i in range(10):
            group.start_soon(one, f"r{i}")
    assert [found[f"r{i}"] and found[f"r{i}"].routed for i in range(10)] == [*range(9), None]
    assert len(asked) < 10

    async def broken(names):
        raise RuntimeError("the engine is dead")

    app.engine.request_counts = broken
    usage = (await ask(app, BODY)).json()["usage"]
    assert usage["expert_skipping"] == {"level": 1.0}


@pytest.mark.parametrize(
    "body",
    [
        '{"expert_skipping": "off", "expert_skipping": {"level": 1}}',
        '{"expert_skipping": "off", "expert_skipping": null}',
        '{"expert_skipping": null, "expert_skipping": "off"}',
        '{"expert_skipping": "off", "expert\\u005fskipping": null}',
        '{"expert_skipping": {"level": 0, "level": 1}}',
        '{"expert_skipping": "off", "cache_salt": "a", "cache_salt": "b"}',
        '{"expert_skipping": "off", "vllm_xargs": {"a": 1, "a": 2}}',
    ],
)
async def test_a_key_named_twice_hides_no_wish(build_app, body: str) -> None:
    app = await started(build_app)
    answer = await ask(app, body.encode())
    assert answer.status_code == 400 and "names a key twice" in answer.json()["error"]["message"]


async def test_keys_named_twice_are_vllm_s_matter_where_nobody_wishes(build_app) -> None:
    app = await started(build_app)
    for body in ('{"a": 1, "a": 2, "b": "expert_skipping"}', '{"a": {"b": "\\u00e9", "b": 2}}'):
        assert (await ask(app, body.encode())).json()["seen"] == body


@pytest.mark.parametrize(
    "body",
    [
        b'{"stop": "\\ud83d"}',
        b'{"vllm_xargs": {"a": "\\udc00x"}}',
        b'{"messages": [{"\\uD800": 1}]}',
        b'{"stop": "\xed\xa0\x80"}',
        b'["\\ud83d"]',
        json.dumps({"expert_skipping": "off", "stop": "\ud83d"}).encode(),
    ],
)
async def test_half_a_surrogate_pair_is_no_text(build_app, body: bytes) -> None:
    app = await started(build_app)
    answer = await ask(app, body)
    assert answer.status_code == 400 and "surrogate pair" in answer.json()["error"]["message"]


async def test_whole_pairs_and_other_scripts_pass(build_app) -> None:
    app = await started(build_app)
    for body in (b'{"stop": "\\ud83d\\ude00"}', '{"stop": "한국어 😀"}'.encode()):
        assert (await ask(app, body)).json()["seen"] == body.decode()


@pytest.mark.parametrize("value", ["json", [], 5, True])
async def test_structured_outputs_are_an_object(build_app, value) -> None:
    app = await started(build_app)
    answer = await ask(app, {**BODY, "structured_outputs": value})
    assert answer.status_code == 400 and "structured_outputs" in answer.text
    assert (await ask(app, {**BODY, "structured_outputs": {"choice": ["a"]}})).status_code == 200
    assert (await ask(app, {**BODY, "structured_outputs": None})).status_code == 200


@pytest.mark.parametrize("opening", ["[", '{"a":', '{"messages": [', '{"expert_skipping":'])
async def test_what_is_nested_too_deeply_is_refused(build_app, opening: str) -> None:
    app = await started(build_app)
    for depth in (110, 990, 50_000):
        closing = "".join({"[": "]", "{": "}"}[one] for one in reversed(opening) if one in "[{")
        for body in (opening * depth, opening * depth + "1" + closing * depth):
            answer = await ask(app, body.encode())
            deep = answer.status_code == 400 and "nested deeper" in answer.text
            assert deep or answer.json().get("seen") == body, (depth, answer.text[:99])
            assert deep or not body.endswith(closing)


async def test_many_messages_are_no_deep_nest(build_app) -> None:
    app = await started(build_app)
    body = {"messages": [{"role": "user", "content": [{"type": "text", "text": "h"}]}] * 300}
    assert (await ask(app, body)).status_code == 200
