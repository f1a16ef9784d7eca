"""What must hold of the answers: exact at level 0, each request at its level, true counters."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from leanmoe.errors import LeanMoEError
from leanmoe.messages import LayerCounts, LevelTable
from leanmoe_bench.engines.cases import Case
from leanmoe_bench.engines.control import Betas
from leanmoe_bench.gpu.models import GpuModel
from leanmoe_bench.gpu.session import NO_PYTHON, Engines, Row, Session

_PROMPTS, _PROMPT_TOKENS = 9, 6
_EXACT_TOKENS, _MIXED_TOKENS = 24, 16
_KEY = "gpu-check"
# More tokens than any captured graph holds: Python, which the recount listens to, runs there.
_RECOUNTED_TOKENS, _RECOUNTED_PROMPTS = 256, 3
_EXACT = Case("level0")

Ids = list[list[int]]


def check(engines: Engines, model: GpuModel) -> Iterator[Row]:
    """One row for each check; ``passed`` says whether it holds.

    A check that failed by an error leaves no engine to the next one that does not compute any more.
    """
    for name, one in (
        ("level0_tokens_equal_stock", _exact),
        ("requests_keep_their_level", _mixed),
        ("counters_equal_recount", _recounted),
        ("levels_change_quietly", _quiet),
    ):
        session = engines.session(model)
        try:
            found = one(session)
        except LeanMoEError as error:
            found = {"passed": False, "reason": str(error)}
            engines.close_if_broken()
        yield {"row": "check", "check": name, **found}


def _prompts(session: Session) -> Ids:
    random = np.random.default_rng(session.settings.seed)
    shape = (_PROMPTS, _PROMPT_TOKENS)
    ids: Ids = random.integers(3, session.model.shape.vocabulary, size=shape).tolist()
    return ids


def _generate(session: Session, plugin: bool, **arguments: Any) -> Ids:
    arm = session.pair.ours if plugin else session.pair.stock
    ids: Ids = session.pair.alone(arm, "generate", **arguments)["ids"]
    return ids


def _exact(session: Session) -> Row:
    """Greedy tokens at level 0 are stock's."""
    session.policy(_EXACT)
    wanted = {"prompts": _prompts(session), "tokens": _EXACT_TOKENS}
    stock, ours = (_generate(session, plugin, **wanted) for plugin in (False, True))
    equal = sum(a == b for a, b in zip(stock, ours, strict=True))
    return {"equal": equal, "of": len(stock), "passed": equal == len(stock)}


def _mixed(session: Session) -> Row:
    """Requests of three levels in one batch give what each gives where all have its level.

    ``equal_alone`` compares with each request by itself: there kernels of another batch size run,
    whose last bits may differ. ``other_tokens`` says that levels are told apart at all.
    """
    reason = session.control.report.request_levels_unavailable
    if reason is not None:
        return {"status": "cannot run", "reason": reason}
    levels = _levels(session)
    table = LevelTable(key=_KEY, betas=levels)
    session.control.tell("leanmoe_set_levels", table.model_dump_json())
    prompts, codes = _prompts(session), [list(levels)[i % len(levels)] for i in range(_PROMPTS)]
    session.policy(_EXACT)
    extras = [{_KEY: code} for code in codes]
    mixed = _generate(session, True, prompts=prompts, tokens=_MIXED_TOKENS, extras=extras)
    together: dict[int, Ids] = {}
    alone: dict[int, list[int]] = {}
    for code, betas in levels.items():
        session.control.set_policy(betas)
        together[code] = _generate(session, True, prompts=prompts, tokens=_MIXED_TOKENS)
        for i in (i for i in range(_PROMPTS) if codes[i] == code):
            alone[i] = _generate(session, True, prompts=[prompts[i]], tokens=_MIXED_TOKENS)[0]
    equal = sum(mixed[i] == together[code][i] for i, code in enumerate(codes))
    others = sum(together[codes[i]][i] != together[0][i] for i in range(_PROMPTS))
    return {
        "equal": equal,
        "of": _PROMPTS,
        "equal_alone": sum(mixed[i] == alone[i] for i in range(_PROMPTS)),
        "other_tokens": others,
        "passed": equal == _PROMPTS and others > 0,
    }


def _quiet(session: Session) -> Row:
    """A change of level compiles nothing and waits for nothing that the device still runs."""
    compiled = []
    for case in (_EXACT, session.model.skipping, Case("top1", beta=1.0), _EXACT):
        update = session.control.update(session.policy(case))
        arm = session.pair.ours
        answer = session.pair.alone(arm, "quiet_change", update=update.model_dump_json())
        compiled.append(answer["compiled"])
        _generate(session, True, prompts=_prompts(session), tokens=_MIXED_TOKENS)
    if None in compiled:
        return {"status": "cannot run", "reason": "there is no Triton to compile anything"}
    # Before the first change anything may compile, as at any first run of a size.
    return {"compiled": compiled[-1] - compiled[1], "passed": compiled[-1] == compiled[1]}


def _levels(session: Session) -> dict[int, Betas]:
    """Hundredths of a level -> betas: exact, between, top-1 only."""
    cases = (_EXACT, session.model.skipping, Case("top1", beta=1.0))
    return {code: session.policy(case) for code, case in zip((0, 50, 100), cases, strict=True)}


def _recounted(session: Session) -> Row:
    """What the counters gained is what follows from the routers' logits, layer by layer."""
    differences: list[str] = []
    listened = 0
    for case in (_EXACT, session.model.skipping, Case("top1", beta=1.0)):
        betas = session.policy(case)
        before = {c.layer: c for c in session.control.counts()}
        again = _listen(session, betas)
        listened += sum(one["tokens"] for one in again.values())
        for after in session.control.counts():
            found = difference(before[after.layer], after, again[after.layer])
            differences += [f"{case.name}, layer {after.layer}: {found}"] if found else []
    if not listened:
        return {"status": "cannot run", "reason": NO_PYTHON}
    tokens = listened // len(session.control.layers)
    return {"tokens": tokens, "differences": differences[:5], "passed": not differences}


def _listen(session: Session, betas: Betas) -> dict[int, dict[str, int]]:
    arm = session.pair.ours
    session.pair.alone(arm, "listen", top_k=session.model.shape.top_k)
    for turn in range(_RECOUNTED_PROMPTS):
        session.pair.alone(arm, "prefill", length=_RECOUNTED_TOKENS, turn=100 + turn)
    answer = session.pair.alone(arm, "recount", betas={str(n): b for n, b in betas.items()})
    return {int(layer): counts for layer, counts in answer.items()}


def difference(before: LayerCounts, after: LayerCounts, again: dict[str, int]) -> str | None:
    """In words what a layer counted otherwise than the recount; ``None`` where nothing.

    Assignments at the threshold itself may fall to either side, and a device that was given nothing
    to skip counts neither steps nor experts.
    """
    names = again.keys() - {"near"}
    gained = {name: getattr(after, name) - getattr(before, name) for name in names}
    compared = ["tokens", "routed", "skipped"]
    if gained["distinct_experts"] and not again["near"]:
        compared += ["steps", "distinct_experts"]
    wrong = [
        f"{name} {gained[name]}, recounted {again[name]}"
        for name in compared
        if abs(gained[name] - again[name]) > (again["near"] if name == "skipped" else 0)
    ]
    return "; ".join(wrong) or None
