"""Sums, in the forms that the arithmetic text is written in."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

from leanmoe_pruning.data.builtin import builtin_texts
from leanmoe_pruning.data.tasks.task import ChoiceItem, OpenItem

CHOICES = 4
_NAMES = ("Ann", "Bob", "Carl", "Dora", "Emma", "Gus", "Jane", "Karl")
_THINGS = ("apples", "books", "eggs", "pens", "stamps", "coins")

# A question ends where its number comes; the number is the answer.
Question = tuple[str, int]


def _sum(draw: random.Random) -> Question:
    a, b = draw.randint(2, 999), draw.randint(2, 999)
    return f"{a} + {b} =", a + b


def _difference(draw: random.Random) -> Question:
    a, b = sorted((draw.randint(2, 999), draw.randint(2, 999)), reverse=True)
    return f"{a} - {b} =", a - b


def _product(draw: random.Random) -> Question:
    a, b = draw.randint(2, 20), draw.randint(2, 99)
    return f"{a} * {b} =", a * b


def _quotient(draw: random.Random) -> Question:
    a, b = draw.randint(2, 15), draw.randint(2, 99)
    return f"{a * b} / {a} =", b


def _equation(draw: random.Random) -> Question:
    a, x, b = draw.randint(2, 9), draw.randint(2, 20), draw.randint(2, 20)
    c = a * x + b
    return f"Solve {a}x + {b} = {c}: {a}x = {c} - {b} = {c - b}, so x =", x


def _gift(draw: random.Random) -> Question:
    (giver, taker), thing = draw.sample(_NAMES, 2), draw.choice(_THINGS)
    a = draw.randint(10, 99)
    b = draw.randint(2, a - 1)
    asked = f"How many {thing} does {giver} have left?"
    return f"Q: {giver} has {a} {thing} and gives {b} to {taker}. {asked}\nA: {a} - {b} =", a - b


_FORMS: tuple[Callable[[random.Random], Question], ...] = (
    _sum,
    _difference,
    _product,
    _quotient,
    _equation,
    _gift,
)


def questions(
    name: str, forms: tuple[Callable[[random.Random], Question], ...] = _FORMS
) -> Iterator[Question]:
    """Questions without end, none twice and none of the calibration text's, forms in turn."""
    draw = random.Random(name)
    known = "\n".join(builtin_texts("math", "calibration"))
    seen: set[str] = set()
    while True:
        for form in forms:
            question, number = form(draw)
            if question not in seen and f"\n{question}" not in known:
                seen.add(question)
                yield question, number


def choices(items: Iterator[Question], count: int) -> list[ChoiceItem]:
    """Questions with the right number among near misses."""
    draw = random.Random("near misses")
    return [_with_misses(*next(items), draw) for _ in range(count)]


def _with_misses(question: str, number: int, draw: random.Random) -> ChoiceItem:
    steps = [step for step in (1, 2, 9, 10, 11, 100) if step < max(number, 12)]
    near = {number + sign * step for step in steps for sign in (1, -1)} - {number}
    wrong = draw.sample(sorted(one for one in near if one >= 0), CHOICES - 1)
    answer = draw.randrange(CHOICES)
    numbers = (*wrong[:answer], number, *wrong[answer:])
    return ChoiceItem(question, tuple(f" {one}" for one in numbers), answer)


def _small_sum(draw: random.Random) -> Question:
    a, b = draw.randint(2, 99), draw.randint(2, 99)
    return f"{a} + {b} =", a + b


def written(count: int) -> list[OpenItem]:
    """Sums of two numbers whose result must be written."""
    items = questions("sums", (_small_sum,))
    return [
        OpenItem(question, str(number)) for question, number in (next(items) for _ in range(count))
    ]
