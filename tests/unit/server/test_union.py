"""The budget on distinct experts and the phases: what may be asked, what then holds."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from leanmoe.errors import InputError
from leanmoe.layout import LayerLayout
from leanmoe.messages import Phases, UnionBudget, UnionMode
from leanmoe_server.policy import Policy, Target
from leanmoe_server.settings import ServeSettings

pytestmark = pytest.mark.anyio
PATH = "/v1/expert_skipping"


async def put(client, content):
    body = content if isinstance(content, str) else json.dumps(content)
    return await client.put(PATH, content=body)


async def test_what_a_change_does_not_name_stays(build_app) -> None:
    app = build_app()
    await app.service.control.start()
    policy = lambda: app.engine.workers[0].policy  # noqa: E731
    async with app.client() as client:
        assert (await put(client, {"level": 0.5, "union_budget": 4})).status_code == 200
        assert policy().union == UnionBudget(experts=4)
        shown = (await put(client, {"phases": "decode"})).json()
        assert (shown["level"], shown["phases"], shown["union_budget"]) == (0.5, "decode", 4)
        assert (policy().phases, policy().level) == (Phases.DECODE, 0.5)
        shown = (await put(client, {"union_mode": "redirect"})).json()
        assert (shown["union_budget"], shown["union_mode"]) == (4, "redirect")
        shown = (await put(client, {"union_budget": None})).json()
        assert (shown["union_budget"], shown["union_mode"], shown["level"]) == (None, None, 0.5)
        assert policy().union is None
        assert app.engine.cache_resets == 5


async def test_a_budget_takes_the_measured_promise_away(build_app) -> None:
    app = build_app(target=Target(level=0.5))
    await app.service.control.start()
    async with app.client() as client:
        assert (await client.get(PATH)).json()["promise"]["kld_upper"] == 0.04
        assert (await put(client, {"union_budget": 4})).json()["promise"] is None
        refused = await put(client, {"max_kld": 0.1})
        assert refused.status_code == 400
        assert "turn the budget off" in refused.json()["error"]["message"]
        assert (await put(client, {"max_kld": 0.1, "union_budget": None})).status_code == 200
        refused = await put(client, {"union_budget": 4})
        assert refused.status_code == 400
        assert (await client.get(PATH)).json()["union_budget"] is None


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({}, "has no key of a policy"),
        ({"union_budget": 0}, "union_budget is 0.0"),
        ({"union_budget": 1.5}, "union_budget is 1.5"),
        ({"union_budget": True}, "union_budget is True"),
        ({"union_budget": "8"}, "union_budget is '8'"),
        ('{"union_budget": 1e400}', "union_budget is inf"),
        ('{"union_budget": NaN}', "union_budget is nan"),
        ({"union_mode": "redirect"}, "give both"),
        ({"union_budget": 8, "union_mode": "drop"}, "expected 'vanish' or 'redirect'"),
        ({"phases": "prefill"}, "expected 'all' or 'decode'"),
        ({"phases": []}, "expected 'all' or 'decode'"),
        ({"level": 0.5, "max_kld": 0.1}, "both level and max_kld"),
        ({"deterministic": True}, "unknown keys ['deterministic']"),
    ],
)
async def test_bad_changes_change_nothing(build_app, body, words: str) -> None:
    app = build_app()
    await app.service.control.start()
    async with app.client() as client:
        refused = await put(client, body)
        assert refused.status_code == 400
        message = refused.json()["error"]["message"]
        assert words in message and "\n" not in message
    assert app.service.control.version == 1


def test_where_a_budget_or_phases_cannot_be(skip_model) -> None:
    settings = ServeSettings(skip_model, union_unavailable="the server was started so")
    with pytest.raises(InputError, match="no budget on distinct experts here: the server"):
        settings.resolve(Policy(union=UnionBudget(experts=2, mode=UnionMode.REDIRECT)))
    settings = ServeSettings(skip_model, request_levels_unavailable="tokens lie in another order")
    with pytest.raises(InputError, match="leave phases at 'all'"):
        settings.resolve(Policy(phases=Phases.DECODE))


@pytest.mark.parametrize(("experts", "fits"), [(1, False), (2, True), (8, True), (9, False)])
def test_a_budget_lies_between_a_token_s_experts_and_a_layer_s(skip_model, experts, fits):
    model = replace(skip_model, n_experts=8, top_k=2)
    union = UnionBudget(experts=experts)
    policy = Policy(Target(level=0.5), union=union)
    if fits:
        assert model.resolve(policy).union == union
        return
    with pytest.raises(InputError, match=f"union_budget is {experts}, expected from 2.*the 8"):
        model.resolve(policy)


def test_layers_with_their_own_counts_bound_a_budget_by_the_largest(skip_model):
    own = {i: LayerLayout(n_experts=4 + i, top_k=2) for i in skip_model.moe_layers}
    model = replace(skip_model, n_experts=64, top_k=2, layers=own)
    assert model.resolve(Policy(union=UnionBudget(experts=7)))
    with pytest.raises(InputError, match="up to the 7 experts"):
        model.resolve(Policy(union=UnionBudget(experts=8)))


def test_a_model_with_stand_ins_takes_no_budget(skip_model):
    own = LayerLayout(n_experts=8, top_k=2, stand_ins=(1, 5), rank=0)
    layers = dict.fromkeys(skip_model.moe_layers, own)
    model = replace(skip_model, n_experts=8, top_k=2, layers=layers)
    assert model.resolve(Policy())
    with pytest.raises(InputError, match="stand-ins in the place of removed experts"):
        model.resolve(Policy(union=UnionBudget(experts=4)))


async def test_a_smaller_budget_than_the_graphs_hold_is_refused_and_a_larger_one_is_not(build_app):
    app = build_app(least_union=6)
    await app.service.control.start()
    async with app.client() as client:
        refused = await put(client, {"union_budget": 5})
        assert refused.status_code == 400
        assert "start the server with --union-budget 5" in refused.json()["error"]["message"]
        assert (await put(client, {"union_budget": 7})).status_code == 200
        assert (await put(client, {"union_budget": None})).status_code == 200
