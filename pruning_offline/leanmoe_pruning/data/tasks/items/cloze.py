"""Items out of text: which words come next?

The true continuation stands among runs of as many words from other windows of the same
domain (``cloze``) or of other languages (``language``), those nearest in length among some drawn
at random, so that neither length nor subject gives it away.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from leanmoe_pruning.data.builtin import Split, builtin_texts
from leanmoe_pruning.data.tasks.task import ChoiceItem

LANGUAGES = ("fr", "de", "es", "gen")
CHOICES = 4
_DRAWN = 12
# A chat's own marks are no text, and half a word at a window's edge is no word.
_MARKS = re.compile(r"<\|[^|]*\|>(?:system|user|assistant)?")
_WORD = re.compile(r"\s*\S+")


@dataclass(frozen=True)
class Cut:
    """How many words a prompt and a continuation have."""

    prompt: int
    span: int


CLOZE = Cut(prompt=16, span=4)
LANGUAGE = Cut(prompt=3, span=2)


@dataclass(frozen=True)
class Place:
    """One prompt with what follows it, in a window of a domain."""

    domain: str
    window: int
    prompt: str
    span: str


def places(domain: str, split: Split, cut: Cut) -> Iterator[Place]:
    """Prompts with continuations that do not overlap."""
    for window, text in enumerate(builtin_texts(domain, split)):
        for part in _MARKS.split(text):
            words = _WORD.findall(part)[1:-1]
            for start in range(cut.prompt, len(words) - cut.span + 1, cut.span):
                prompt = "".join(words[start - cut.prompt : start]).lstrip()
                yield Place(domain, window, prompt, "".join(words[start : start + cut.span]))


def _item(place: Place, others: Sequence[Place], draw: random.Random) -> ChoiceItem | None:
    """The place among ``CHOICES - 1`` spans of others; ``None`` where they are too alike."""
    drawn = {other.span for other in draw.sample(others, _DRAWN)} - {place.span}
    near = sorted(drawn, key=lambda span: (abs(len(span) - len(place.span)), span))
    wrong = near[: CHOICES - 1]
    if len({span.strip() for span in (*wrong, place.span)}) < CHOICES:
        return None
    answer = draw.randrange(CHOICES)
    return ChoiceItem(place.prompt, (*wrong[:answer], place.span, *wrong[answer:]), answer)


def cloze(domain: str, split: Split, count: int) -> list[ChoiceItem]:
    """Up to ``count`` items of one domain, drawn from all of its windows."""
    draw = random.Random(f"cloze-{domain} {split}")
    found = list(places(domain, split, CLOZE))
    items: dict[str, ChoiceItem] = {}
    for place in draw.sample(found, len(found)):
        others = [other for other in found if other.window != place.window]
        item = _item(place, others, draw)
        if item is not None and len(items) < count:
            items.setdefault(item.prompt, item)
    return list(items.values())


def language(split: Split, count: int) -> list[ChoiceItem]:
    """Items whose wrong continuations are of the other languages, one each."""
    draw = random.Random(f"language {split}")
    found = {domain: list(places(domain, split, LANGUAGE)) for domain in LANGUAGES}
    items: dict[str, ChoiceItem] = {}
    while len(items) < count:
        own = LANGUAGES[len(items) % len(LANGUAGES)]
        place = draw.choice(found[own])
        wrong = [_nearest(place, draw.sample(found[d], _DRAWN)) for d in LANGUAGES if d != own]
        draw.shuffle(wrong)
        answer = draw.randrange(CHOICES)
        choices = (*wrong[:answer], place.span, *wrong[answer:])
        if len(set(choices)) == CHOICES:
            items.setdefault(place.prompt, ChoiceItem(place.prompt, choices, answer))
    return list(items.values())


def _nearest(place: Place, others: Sequence[Place]) -> str:
    spans = {other.span for other in others}
    return min(spans, key=lambda span: (abs(len(span) - len(place.span)), span))
