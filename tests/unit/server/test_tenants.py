"""What a key's holder may have: rates, at once, levels, and cached prompts of their own."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field, replace
from enum import Enum
from types import SimpleNamespace

import anyio
import pytest

from leanmoe.errors import LevelError
from leanmoe.policy import RequestLevel
from leanmoe.wire import LEVEL_HEADER
from leanmoe_server.audit.entry import Cause, Origin
from leanmoe_server.keys.key_source import KeySource
from leanmoe_server.keys.keys import entry_of
from leanmoe_server.policy import PolicyChange, Target
from leanmoe_server.tenants.tenant_generation import for_tenants
from leanmoe_server.tenants.tenants import SESSION

pytestmark = pytest.mark.anyio
CHAT = "/v1/chat/completions"
ALICE, BOB = {"authorization": "Bearer a"}, {"authorization": "Bearer b"}


def keys(**limits: float) -> KeySource:
    """Alice with limits, Bob with none."""
    told = "".join(f"{name} = {value}\n" for name, value in limits.items())
    return KeySource(text=f"{entry_of('alice', 'a')}{told}{entry_of('bob', 'b')}")


async def started(build_app, source: KeySource, **options):
    app = build_app(keys=source, **options)
    await app.service.control.start()
    return app


async def ask(app, who: dict[str, str], **body):
    async with app.client(**who) as client:
        return await client.post(CHAT, json={"model": "m", **body})


def sample(app, name: str, **labels: str) -> float | None:
    return app.registry.get_sample_value(f"leanmoe_tenant_{name}", {"tenant": "alice", **labels})


async def test_requests_per_minute(build_app) -> None:
    app = await started(build_app, keys(requests_per_minute=3))
    statuses = [(await ask(app, ALICE)).status_code for _ in range(4)]
    assert statuses == [200, 200, 200, 429]
    refused = await ask(app, ALICE)
    assert 1 <= int(refused.headers["retry-after"]) <= 60
    error = refused.json()["error"]
    assert error["type"] == "rate_limit_error" and "3 requests of this minute" in error["message"]
    assert (await ask(app, BOB)).status_code == 200
    async with app.client(**ALICE) as client:  # reading is free
        assert (await client.get("/v1/models")).status_code == 200
    assert sample(app, "requests_total") == 3
    assert sample(app, "refused_total", reason="requests_per_minute") == 2


async def test_requests_at_once(build_app) -> None:
    app = await started(build_app, keys(concurrent_requests=2))
    app.pause = anyio.Event()
    async with anyio.create_task_group() as group:
        for _ in range(2):
            group.start_soon(ask, app, ALICE)
        while sample(app, "requests_running") != 2:
            await anyio.sleep(0)
        refused = await ask(app, ALICE)
        assert refused.status_code == 429 and refused.headers["retry-after"] == "1"
        app.pause.set()
    assert sample(app, "requests_running") == 0
    assert (await ask(app, ALICE)).status_code == 200


@dataclass
class Prompted:
    """What ``generate`` was called with, and what it gives."""

    calls: list[tuple] = field(default_factory=list)

    async def __call__(self, prompt, params, request_id, **options):
        self.calls.append((prompt, params))
        for number in range(1, 4):
            token_ids = [0] * (number if params.output_kind.name == "CUMULATIVE" else 1)
            output = SimpleNamespace(token_ids=token_ids)
            yield SimpleNamespace(outputs=[output], finished=number == 3)


Kind = Enum("Kind", ["CUMULATIVE", "DELTA"])


async def generate(app, who: str | None, salt: str | None = None, kind: Kind = Kind.DELTA, **extra):
    """A prompt of four tokens, as a route of vLLM would have it computed; what the engine saw."""
    tenants, inner = app.service.tenants, Prompted()
    key = next((key for key in tenants.keyring.keys if key.name == who), None)
    prompt = {
        "type": "token",
        "prompt_token_ids": [1] * 4,
        **({"cache_salt": salt} if salt else {}),
    }
    params = SimpleNamespace(extra_args=extra or None, output_kind=kind)
    token = SESSION.set(tenants.session(key))
    try:
        outputs = for_tenants(inner, app.service.control)(prompt, params, "id")
        assert len([one async for one in outputs]) == 3
    finally:
        SESSION.reset(token)
    [(seen, given)] = inner.calls
    return seen.get("cache_salt"), given.extra_args


@pytest.mark.parametrize("kind", list(Kind))
async def test_tokens_per_minute(build_app, kind: Kind) -> None:
    app = await started(build_app, keys(tokens_per_minute=7))
    assert (await ask(app, ALICE)).status_code == 200
    await generate(app, "alice", kind=kind)
    assert sample(app, "tokens_total", kind="prompt") == 4
    assert sample(app, "tokens_total", kind="generated") == 3
    refused = await ask(app, ALICE)
    assert refused.status_code == 429 and "7 tokens of this minute" in refused.text
    assert 1 <= int(refused.headers["retry-after"]) <= 60
    assert (await ask(app, BOB)).status_code == 200


async def test_what_was_given_up_still_counts(build_app) -> None:
    app = await started(build_app, keys(tokens_per_minute=100))
    tenants = app.service.tenants
    token = SESSION.set(tenants.session(tenants.keyring.find("a")))
    params = SimpleNamespace(extra_args=None, output_kind=Kind.DELTA)
    outputs = for_tenants(Prompted(), app.service.control)({"prompt_token_ids": [1]}, params, "id")
    async with contextlib.aclosing(outputs):
        await anext(outputs)
    SESSION.reset(token)
    assert sample(app, "tokens_total", kind="generated") == 1


async def _refused(prompt, params, request_id, **options):
    """As vLLM refuses parameters it cannot take: within the answer, before its first token."""
    raise ValueError("logprobs of 30, which is greater than max allowed")
    yield


async def _waiting(prompt, params, request_id, **options):
    await anyio.sleep_forever()
    yield


@pytest.mark.parametrize(("inner", "computed"), [(_refused, 0), (_waiting, 4)])
async def test_a_refused_prompt_was_not_computed_and_one_given_up_was(
    build_app, inner, computed: int
) -> None:
    app = await started(build_app, keys(tokens_per_minute=4))
    tenants = app.service.tenants
    token = SESSION.set(tenants.session(tenants.keyring.find("a")))
    params = SimpleNamespace(extra_args=None, output_kind=Kind.DELTA)
    prompt = {"prompt_token_ids": [1] * 4}
    outputs = for_tenants(inner, app.service.control)(prompt, params, "id")
    with anyio.move_on_after(0.01), contextlib.suppress(ValueError):
        async for _ in outputs:
            pass
    SESSION.reset(token)
    assert sample(app, "tokens_total", kind="prompt") == computed
    # Either way the limit knows of it, from before its turn came.
    assert (await ask(app, ALICE)).status_code == 429


async def test_holders_of_different_keys_share_no_cached_prompt(build_app) -> None:
    app = await started(build_app, keys())
    salts = {who: (await generate(app, who))[0] for who in ("alice", "bob", None)}
    assert len(set(salts.values())) == 3 and salts[None] is None
    assert (await generate(app, "alice"))[0] == salts["alice"]
    mine = [(await generate(app, who, "mine"))[0] for who in ("alice", "bob", "alice")]
    assert mine[0] == mine[2] != mine[1] and salts["alice"] not in mine
    shared = await started(build_app, keys(), share_prefix_cache=True)
    assert (await generate(shared, "alice"))[0] is None
    assert (await generate(shared, "alice", "mine"))[0] == "mine"


async def put(app, level: float) -> None:
    change = PolicyChange(Target(level=level))
    await app.service.control.change(change, Origin(Cause.ADMIN, "test"))


async def test_a_key_s_highest_level_holds_on_every_route(build_app) -> None:
    app = await started(build_app, keys(max_level=0.3))
    key = app.service.control.request_key

    async def level_of(who: str) -> int | None:
        extra = (await generate(app, who))[1]
        return None if extra is None else extra[key]

    assert [await level_of("alice"), await level_of("bob")] == [0, None]
    await put(app, 1.0)
    assert [await level_of("alice"), await level_of("bob")] == [30, None]
    # Its cached prompts are those of the level.
    high = (await generate(app, "alice"))[0]
    await put(app, 0.2)
    assert await level_of("alice") == 20 and (await generate(app, "alice"))[0] != high
    # What a request asked for was checked at its own route.
    assert (await generate(app, "alice", None, Kind.DELTA, **{key: 10}))[1] == {key: 10}


async def test_asking_for_more_than_the_key_s_level_is_forbidden(build_app) -> None:
    app = await started(build_app, keys(max_level=0.3), target=Target(level=0.5))
    default = await ask(app, ALICE)
    assert default.status_code == 200 and default.headers[LEVEL_HEADER] == "0.3"
    refused = await ask(app, ALICE, expert_skipping={"level": 0.31})
    assert refused.status_code == 403 and "this key's highest" in refused.text
    assert refused.json()["error"]["type"] == "permission_error"
    for asked, level in (({"level": 0.3}, "0.3"), ("off", "0"), ({"max_kld": 10}, "0.3")):
        answer = await ask(app, ALICE, expert_skipping=asked)
        assert (answer.status_code, answer.headers[LEVEL_HEADER]) == (200, level)
    assert (await ask(app, BOB, expert_skipping={"level": 1})).status_code == 200
    assert sample(app, "refused_total", reason="level") == 1


async def test_a_bounded_loss_is_kept_past_budgets(build_app) -> None:
    app = await started(build_app, keys(max_kld=0.05), target=Target(level=1.0))
    key = app.service.control.request_key
    extra = (await generate(app, "alice"))[1]
    assert RequestLevel.unpack(extra[key]) == RequestLevel(50, deterministic=True)


async def test_a_loss_needs_a_curve(build_app, skip_model) -> None:
    with pytest.raises(LevelError, match="leanmoe curve"):
        build_app(keys=keys(max_kld=0.05), model=replace(skip_model, curve=None))


async def test_where_requests_cannot_be_told_apart_a_high_level_shuts_a_key_out(build_app) -> None:
    app = await started(build_app, keys(max_level=0.3), request_levels_unavailable="two halves")
    assert (await ask(app, ALICE)).status_code == 200
    await put(app, 0.5)
    refused = await ask(app, ALICE)
    assert refused.status_code == 403 and "two halves" in refused.text
    assert (await ask(app, BOB)).status_code == 200


async def test_series_of_a_name_that_left_are_gone(build_app) -> None:
    app = await started(build_app, keys())
    await ask(app, ALICE)
    app.service.tenants._accept(())
    assert sample(app, "requests_total") is None
