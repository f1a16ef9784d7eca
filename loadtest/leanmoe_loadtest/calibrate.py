"""How many tokens the server's own tokeniser makes of made-up words, where it tells (vLLM's does).

Without it a word counts as one token and a chat's template as none.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from typing import Any

import urllib3

from leanmoe_loadtest.plan import Plan
from leanmoe_loadtest.words import Words

_TIMEOUT_SECONDS = 10.0
_WORDS = 1000


def calibrated(plan: Plan, headers: Mapping[str, str]) -> Plan:
    """``plan`` with made-up prompts as long as the server counts; as it was where it cannot be."""
    if plan.prompts:
        return plan
    words, source = Words(plan.seed), random.Random(plan.seed)
    many = _count(plan, words.text(_WORDS, source), headers)
    one = _count(plan, words.text(1, source), headers)
    if many is None or one is None or many <= one:
        return plan
    each = (many - one) / (_WORDS - 1)
    extra = max(round(one - each), 0)
    return plan.model_copy(update={"tokens_per_word": each, "extra_tokens": extra})


def _count(plan: Plan, text: str, headers: Mapping[str, str]) -> int | None:
    chat = {"messages": [{"role": "user", "content": text}]}
    body = {"model": plan.model, **(chat if plan.endpoint == "chat" else {"prompt": text})}
    try:
        answer = urllib3.request(
            "POST",
            f"{plan.url}/tokenize",
            json=body,
            headers={**headers, "Content-Type": "application/json"},
            timeout=_TIMEOUT_SECONDS,
            retries=False,
        )
        found: Any = json.loads(answer.data)["count"] if answer.status == 200 else None
    except (urllib3.exceptions.HTTPError, ValueError, LookupError, TypeError):
        return None
    return found if type(found) is int else None
