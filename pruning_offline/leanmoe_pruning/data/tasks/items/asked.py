"""Facts and sums asked as questions, each with an answer of one line: for models that chat.

Made of the built-in tasks with choices, so that both ask for the same things.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from leanmoe_pruning.data.tasks.task import ChoiceItem, OpenItem

# What a prompt that is to be continued becomes; the first pattern that fits.
_FORMS = (
    (r"Q: (.+)\nA: .+", r"\1"),
    (r"Solve (.+?): .+", r"If \1, what is x?"),
    (r"The (capital|opposite) of (.+) is", r"What is the \1 of \2?"),
    (r"A(n?) (.+) is a kind of", r"What kind of thing is a\1 \2?"),
    (r"(.+) is a kind of", r"What kind of thing is \1?"),
    (r"(\d+ [-+*/] \d+) =", r"What is \1?"),
)


def question(prompt: str) -> str:
    """A prompt that is to be continued, as a question."""
    found = ((re.fullmatch(pattern, prompt), form) for pattern, form in _FORMS)
    return next(match.expand(form) for match, form in found if match)


def asked(items: Sequence[ChoiceItem]) -> list[OpenItem]:
    """The same items, their right choice as the answer."""
    return [OpenItem(question(item.prompt), item.choices[item.answer].strip()) for item in items]
