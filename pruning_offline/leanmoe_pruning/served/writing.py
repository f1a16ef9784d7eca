"""Long answers of a server: every prompt a chat of one turn, some on their way together."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

from leanmoe.errors import InputError
from leanmoe_pruning.data.tasks.open_prompts import OpenPrompt
from leanmoe_pruning.evaluation.long_answers import LongAnswer, LongQuestions
from leanmoe_pruning.progress import progress
from leanmoe_pruning.served.chat_server import AT_ONCE, ChatServer
from leanmoe_pruning.served.recorded import Recorded


class AskedAtLength:
    """The same questions to servers."""

    def __init__(self, questions: LongQuestions) -> None:
        self._questions = questions

    def check(self, other: Recorded) -> None:
        """``InputError`` where ``other`` was asked something else."""
        other.check_long(self._questions.asked)

    def judge(self, server: ChatServer, other: ChatServer | Recorded | None) -> dict[str, Any]:
        """What the answers are like, and the answers."""
        mine, theirs = self._ask(server), None
        if isinstance(other, ChatServer):
            theirs = self._ask(other)
        elif other is not None:
            theirs = other.long_answers()
        return self._questions.report(mine, theirs)

    def _ask(self, server: ChatServer) -> list[LongAnswer]:
        """One answer to each prompt; ``LeanMoEError`` at the first that is none."""
        prompts, limit = self._questions.prompts, self._questions.limit
        fields = {"max_tokens": limit, "temperature": self._questions.temperature, "logprobs": True}

        def answer(number: int, prompt: OpenPrompt) -> LongAnswer:
            turn = [{"role": "user", "content": prompt.prompt}]
            # Not one seed for all, which would draw the same numbers for each.
            found = server.chat(turn, **fields, seed=self._questions.seed + number)
            tick()
            return _answer(server, prompt, found)

        pool = ThreadPoolExecutor(AT_ONCE)
        with progress(f"{server.url}: long answers", len(prompts)) as tick:
            try:
                return list(pool.map(answer, range(len(prompts)), prompts))
            finally:
                pool.shutdown(cancel_futures=True)


def _answer(server: ChatServer, prompt: OpenPrompt, choice: dict[str, Any]) -> LongAnswer:
    text = choice["message"]["content"] or ""
    tokens = _tokens(choice)
    if tokens is None:
        raise InputError(
            f"{server.url} gives no log probabilities, by which the tokens of an answer are "
            "counted; start it so that it gives them"
        )
    ended = choice.get("finish_reason") != "length"
    return LongAnswer.of(prompt.prompt, prompt.group, text, tokens, ended)


def _tokens(choice: dict[str, Any]) -> list[str] | None:
    """The answer's tokens, by their bytes where these are given: two may look alike as text."""
    entries = (choice.get("logprobs") or {}).get("content")
    if not isinstance(entries, list):
        return None
    return [str(one.get("bytes") or one.get("token")) for one in entries]
