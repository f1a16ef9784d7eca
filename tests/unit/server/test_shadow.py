"""Shadow quality: the estimator's bias, the budget, what a breach does, what is sampled."""

from __future__ import annotations

import math
import random
from types import SimpleNamespace

import numpy as np
import pytest

from leanmoe.messages import Phases
from leanmoe.policy import RequestLevel
from leanmoe_server.audit.entry import Cause, Origin
from leanmoe_server.metrics import Metrics
from leanmoe_server.policy import PolicyChange, Target
from leanmoe_server.shadow.estimate import Distance, distance
from leanmoe_server.shadow.ledger import BLOCK, Ledger
from leanmoe_server.shadow.replay import Shadow
from leanmoe_server.shadow.sampling import Answer, Sampler
from leanmoe_server.shadow.terms import ShadowTerms
from leanmoe_server.tenants.tenant_generation import for_tenants
from leanmoe_server.tenants.tenants import SESSION

pytestmark = pytest.mark.anyio
VOCABULARY = 200


def distributions(seed: int, spread: float, apart: float) -> tuple[np.ndarray, np.ndarray]:
    """Log probabilities [T, V] of two runs whose logits differ by ``apart``."""
    chance = np.random.default_rng(seed)
    exact_TV = chance.normal(0, spread, (40, VOCABULARY))
    served_TV = exact_TV + chance.normal(0, apart, exact_TV.shape)
    return tuple(x - np.log(np.exp(x).sum(1, keepdims=True)) for x in (exact_TV, served_TV))


def top(logprobs_TV: np.ndarray, k: int) -> list[dict[int, float]]:
    """The k most likely tokens, and token 0, which stands for the one that is there."""
    found = []
    for row in logprobs_TV:
        best = {int(i) for i in np.argsort(-row)[:k]} | {0}
        found.append({i: float(row[i]) for i in best})
    return found


def true_kld(p_TV: np.ndarray, q_TV: np.ndarray) -> float:
    return float((np.exp(p_TV) * (p_TV - q_TV)).sum(1).mean())


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("spread", [0.5, 2.0, 4.0])
def test_the_estimate_is_below_the_divergence_and_meets_it_as_more_tokens_are_known(
    seed: int, spread: float
) -> None:
    p, q = distributions(seed, spread, apart=0.4)
    estimates = [distance(top(p, k), top(q, k)).kld for k in (1, 5, 20, 100, VOCABULARY)]
    truth = true_kld(p, q)
    assert all(one <= truth + 1e-9 for one in estimates)
    assert estimates[-1] == pytest.approx(truth, rel=1e-6)
    # Distributions as sharp as a trained model's: most of the divergence is in the top tokens.
    if spread == 4.0:
        assert estimates[2] > 0.75 * truth


def test_a_run_beside_itself_has_no_distance() -> None:
    p, _ = distributions(0, 2.0, 0.0)
    found = distance(top(p, 20), top(p, 20))
    assert (found.kld, found.top1, found.tokens) == (0.0, 1.0, 40)
    assert 0.2 < found.covered < 1.0


def test_other_tokens_are_no_comparison() -> None:
    p, q = distributions(0, 2.0, 0.1)
    with pytest.raises(ValueError):
        distance(top(p, 5), top(q, 5)[:-1])
    with pytest.raises(ValueError):
        distance([], [])


def test_tokens_that_only_one_run_holds_likely_are_lumped() -> None:
    half = math.log(0.5)
    found = distance([{1: half, 2: half}], [{1: half, 3: half}])
    assert found.kld == pytest.approx(0.0) and found.top1 == 1.0 and found.covered == 0.5


def test_a_full_block_gives_a_bound_below_its_mean() -> None:
    ledger = Ledger(0.5)
    chance = random.Random(0)
    bounds = [
        ledger.add(Distance(chance.uniform(0.08, 0.12), 0.9, 0.9, 10)) for _ in range(3 * BLOCK)
    ]
    full = [one for one in bounds if one is not None]
    assert len(full) == 3 and all(0.08 < one < 0.1 for one in full)


def test_chance_is_rarely_taken_for_a_breach() -> None:
    """At the limit itself, skewed as divergences are: at most a few of a thousand blocks."""
    chance = random.Random(1)
    ledger, wrong = Ledger(0.5), 0
    for _ in range(2000 * BLOCK):
        bound = ledger.add(Distance(chance.expovariate(10.0), 0.9, 0.9, 10))
        wrong += bound is not None and bound > 0.1
    assert wrong <= 10


class Scores:
    """An engine whose served distributions lie ``apart`` from the exact ones."""

    def __init__(self, key: str, apart: float, has_priorities: bool = True) -> None:
        self.key, self.apart, self.has_priorities = key, apart, has_priorities
        self.asked: list[tuple[int, str]] = []

    async def score(self, tokens, extra, salt, top_tokens):
        packed = extra[self.key]
        self.asked.append((packed, salt))
        exact, served = distributions(len(tokens), 3.0, self.apart)
        rows = exact if RequestLevel.unpack(packed).hundredths == 0 else served
        return top(rows, top_tokens)[: len(tokens) - 1]


async def shadowed(build_app, apart: float, max_kld: float | None = 0.05, **more):
    given = {"target": Target(level=1.0), **more}
    app = build_app(**given)
    await app.service.control.start()
    control = app.service.control
    sampler = Sampler(1.0, control, random.Random(0))
    terms = ShadowTerms(1.0, 100_000, max_kld)
    scores = Scores(control.request_key, apart)
    metrics = Metrics.__new__(Metrics)
    metrics.__init__(registry := type(app.registry)())
    shadow = Shadow(terms, control, sampler, scores, metrics, idle=lambda: False)
    app.service.shadow = shadow
    return app, shadow, scores, registry


ANSWER = Answer(tuple(range(10)), tuple(range(20)), RequestLevel(100))


async def test_a_breach_forces_the_level_down_and_raises_the_alert(build_app) -> None:
    app, shadow, scores, registry = await shadowed(build_app, apart=1.0)
    for _ in range(BLOCK):
        await shadow.replay(ANSWER)
    control = app.service.control
    assert control.current.level < 1.0 and control.ceiling == control.current.level
    assert registry.get_sample_value("leanmoe_shadow_breach") == 1
    assert registry.get_sample_value("leanmoe_shadow_kld", {"pair": "served"}) > 0.05
    assert registry.get_sample_value("leanmoe_shadow_kld", {"pair": "exact"}) == 0.0
    [entry, _] = control.trail.latest()
    assert entry.cause is Cause.SHADOW and "past 0.05" in entry.reason
    # No salt is used twice, so that no prefill reads what another wrote.
    assert len({salt for _, salt in scores.asked}) == len(scores.asked)
    assert shadow.describe()["breach"]
    await control.change(PolicyChange(Target(level=0.0)), Origin(Cause.ADMIN, "admin"))
    assert shadow.describe()["breach"] is None and control.ceiling is None
    assert registry.get_sample_value("leanmoe_shadow_breach") == 0


async def test_within_the_limit_or_without_one_nothing_changes(build_app) -> None:
    for apart, limit in ((0.05, 0.05), (1.0, None)):
        app, shadow, _, registry = await shadowed(build_app, apart, limit)
        for _ in range(2 * BLOCK):
            await shadow.replay(ANSWER)
        assert app.service.control.current.level == 1.0
        assert registry.get_sample_value("leanmoe_shadow_breach") == 0


async def test_a_breach_takes_the_governor_down_too(build_app) -> None:
    app, shadow, *_ = await shadowed(build_app, apart=1.0, target=Target(level=0.0))
    control = app.service.control
    await control.govern(1.0, None, Origin(Cause.GOVERNOR, "governor"), control.changes)
    for _ in range(BLOCK):
        await shadow.replay(ANSWER)
    assert control.governed is None and control.current.level == 0.0
    assert control.ceiling is not None and control.ceiling < 1.0
    assert control.trail.latest()[0].cause is Cause.SHADOW


async def test_the_budget_bounds_what_is_computed(build_app) -> None:
    _, shadow, scores, registry = await shadowed(build_app, apart=0.1)
    shadow._terms = ShadowTerms(1.0, 60, None)  # a token a second
    shadow._left = 60.0
    for _ in range(600):
        shadow._sampler.held.append(ANSWER)
        await shadow.look(1.0)
    computed = registry.get_sample_value("leanmoe_shadow_tokens_total")
    # The last replay may go past the end of the budget; the next ones wait for it.
    assert computed <= 60 + 600 + 3 * len(ANSWER)
    assert computed == len(ANSWER) * len(scores.asked) > 300


async def test_without_priorities_it_waits_for_an_idle_server(build_app) -> None:
    _, shadow, scores, _ = await shadowed(build_app, apart=0.1)
    scores.has_priorities = False
    shadow._sampler.held.append(ANSWER)
    await shadow.look(1.0)
    assert scores.asked == []
    shadow._idle = lambda: True
    await shadow.look(1.0)
    assert len(scores.asked) == 3


async def test_where_a_replay_would_not_show_what_was_served_there_is_none(build_app) -> None:
    app, shadow, scores, _ = await shadowed(build_app, apart=0.1)
    origin = Origin(Cause.ADMIN, "admin")
    for change in (PolicyChange(phases=Phases.DECODE), PolicyChange(union_budget=4)):
        await app.service.control.change(change, origin)
        shadow._sampler.held.append(ANSWER)
        await shadow.look(1.0)
        assert scores.asked == [] and shadow.describe()["unavailable"]


async def answered(app, sampler: Sampler, name: str = "cmpl-1", own: int | None = None) -> None:
    async def generate(prompt, params, request_id):
        for number in range(1, 4):
            tokens = SimpleNamespace(token_ids=[number])
            yield SimpleNamespace(outputs=[tokens], finished=number == 3)

    control = app.service.control
    extra = None if own is None else {control.request_key: own}
    params = SimpleNamespace(extra_args=extra, output_kind=SimpleNamespace(name="DELTA"))
    wrapped = for_tenants(sampler.around(generate), control)
    token = SESSION.set(app.service.tenants.session(None))
    async for _ in wrapped({"type": "token", "prompt_token_ids": [7, 8]}, params, name):
        pass
    SESSION.reset(token)


async def test_answers_at_the_server_s_level_are_sampled_and_others_are_not(build_app) -> None:
    app = build_app(target=Target(level=0.5))
    await app.service.control.start()
    sampler = Sampler(1.0, app.service.control, random.Random(0))
    await answered(app, sampler)
    assert list(sampler.held) == [Answer((7, 8), (1, 2, 3), RequestLevel(50))]
    await answered(app, sampler, own=RequestLevel(20).pack())
    await answered(app, sampler, name="leanmoe-shadow-1")  # its own
    assert len(sampler.held) == 1
    await answered(app, Sampler(0.0, app.service.control, random.Random(0)))
    await app.service.control.change(PolicyChange(Target(level=0.0)), Origin(Cause.ADMIN, "admin"))
    await answered(app, sampler)  # exact answers tell nothing
    assert len(sampler.held) == 1
