"""Where prompts come from: the built-in mix, a ShareGPT-like file, JSON lines, made-up text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from leanmoe.errors import InputError
from leanmoe.files.digest import parse_json
from leanmoe_loadtest.jsonl import read_lines, read_text

BUILTIN, SYNTHETIC = "builtin", "synthetic"
_PERSONS = ("human", "user")
_LINE = 'a line is {"prompt": "…"} or {"messages": […]}, and may have "max_tokens"'
# Load that looks like chat: short questions, longer tasks, varied lengths.
_PROMPTS: tuple[str, ...] = (
    "What is the capital of France, and what is it known for?",
    "Explain in two sentences why the sky is blue.",
    "Write a short thank-you note to a neighbour who watered my plants.",
    "List five things to check before a long drive.",
    "How does a heat pump work? Keep it simple.",
    "Summarise the plot of a story about a lighthouse keeper who finds a letter in a bottle.",
    "What is the difference between a virus and a bacterium?",
    "Give me a recipe for tomato soup that takes half an hour.",
    "A train leaves at 9:40 and arrives at 13:05. How long does the journey take?",
    "Write a function in C that returns the larger of two integers.",
    "Which is heavier, a kilogram of feathers or a kilogram of iron? Explain your answer.",
    "Describe a quiet morning in a small harbour town in about one hundred words.",
    "My meeting runs over every week. Suggest three ways to end it on time, with one sentence on "
    "why each of them works and one on what could go wrong with it.",
    "Rewrite this so that it sounds friendlier: The report is late again. Send it today. I do not "
    "want to ask a third time, and neither does the customer.",
    "I have two hours on Saturday to teach a ten-year-old how to play chess. Plan the lesson, "
    "with the time for each part and one small exercise at the end of every part.",
    "Compare renting a flat with buying one for somebody who may move to another city within the "
    "next three years. Name the costs that people forget.",
)


class Prompt(BaseModel):
    """What one request asks: a text, or the messages of a chat."""

    model_config = ConfigDict(extra="forbid")

    index: int
    text: str | None = None
    messages: list[dict[str, Any]] | None = None
    max_tokens: int | None = None


def load_prompts(source: str, endpoint: str) -> list[Prompt]:
    """The prompts of ``source``; none where texts are made up as requests are sent."""
    if source == SYNTHETIC:
        return []
    if source == BUILTIN:
        return [Prompt(index=i, text=text) for i, text in enumerate(_PROMPTS)]
    path = Path(source)
    prompts = list(_share_gpt(path) if path.suffix.lower() == ".json" else _json_lines(path))
    if not prompts:
        raise InputError(f"{path} holds no prompt: {_LINE}, a .json file is a list as ShareGPT's")
    if endpoint == "completions":
        _refuse_messages(prompts, path)
    return prompts


def _refuse_messages(prompts: Sequence[Prompt], path: Path) -> None:
    for prompt in prompts:
        if prompt.messages is not None:
            raise InputError(
                f"{path}: prompt {prompt.index} is a chat of messages, which the completions "
                "endpoint does not take; use --endpoint chat"
            )


def _json_lines(path: Path) -> Iterator[Prompt]:
    for index, (where, row) in enumerate(read_lines(path)):
        text, messages, longest = row.get("prompt"), row.get("messages"), row.get("max_tokens")
        if (text is None) == (messages is None):
            raise InputError(f"{where} has not just one of prompt and messages; {_LINE}")
        if text is not None and not (isinstance(text, str) and text.strip()):
            raise InputError(f"{where}: the prompt is not a text with something in it")
        if messages is not None and not _are_messages(messages):
            raise InputError(f"{where}: messages are not a list of objects with role and content")
        if longest is not None and (type(longest) is not int or longest < 1):
            raise InputError(f"{where}: max_tokens is {longest!r}, expected a number from 1 up")
        yield Prompt(index=index, text=text, messages=messages, max_tokens=longest)


def _are_messages(value: Any) -> bool:
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(one, dict) and {"role", "content"} <= one.keys() for one in value)
    )


def _share_gpt(path: Path) -> Iterator[Prompt]:
    """The first thing a person says in each conversation."""
    try:
        rows = parse_json(read_text(path))
    except ValueError as error:
        raise InputError(
            f"{path} cannot be read as JSON ({error}); name JSON lines .jsonl"
        ) from None
    if not isinstance(rows, list):
        raise InputError(f"{path} is not a list of conversations as ShareGPT has them")
    for index, row in enumerate(rows):
        text = _first_question(row)
        if text:
            yield Prompt(index=index, text=text)


def _first_question(row: Any) -> str | None:
    turns = row.get("conversations") if isinstance(row, dict) else None
    for turn in turns if isinstance(turns, list) else ():
        if not isinstance(turn, dict):
            continue
        role, text = turn.get("from", turn.get("role")), turn.get("value", turn.get("content"))
        if role in _PERSONS and isinstance(text, str) and text.strip():
            return text
    return None
