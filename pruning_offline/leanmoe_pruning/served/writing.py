"""Long answers of a server: every prompt a chat of one turn, some on their way together."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from leanmoe.errors import InputError
from leanmoe_pruning.data.tasks.open_prompts import OpenPrompt, digest_of
from leanmoe_pruning.evaluation.long_answers import LongAnswer, long_report
from leanmoe_pruning.progress import progress
from leanmoe_pruning.served.chat_server import AT_ONCE, ChatServer
from leanmoe_pruning.served.recorded import Recorded


@dataclass(frozen=True)
class AskedAtLength:
    """Answers of up to ``limit`` tokens; ``seed`` and a prompt's number seed sampling."""

    prompts: Sequence[OpenPrompt]
    limit: int
    temperature: float
    seed: int

    @property
    def asked(self) -> dict[str, Any]:
        """What must be the same for two models to be compared."""
        told = {"limit": self.limit, "temperature": self.temperature, "seed": self.seed}
        return {"prompts": digest_of(list(self.prompts)), **told}

    def check(self, other: Recorded) -> None:
        """``InputError`` where ``other`` was asked something else."""
        other.check_long(self.asked)

    def judge(self, server: ChatServer, other: ChatServer | Recorded | None) -> dict[str, Any]:
        """What the answers are like, and the answers."""
        mine, theirs = self._ask(server), None
        if isinstance(other, ChatServer):
            theirs = self._ask(other)
        elif other is not None:
            theirs = other.long_answers()
        return {"long": {**self.asked, **long_report(mine, theirs)}}

    def _ask(self, server: ChatServer) -> list[LongAnswer]:
        """One answer to each prompt; ``LeanMoEError`` at the first that is none."""
        fields = {"max_tokens": self.limit, "temperature": self.temperature, "logprobs": True}

        def answer(number: int, prompt: OpenPrompt) -> LongAnswer:
            turn = [{"role": "user", "content": prompt.prompt}]
            found = server.chat(turn, **fields, seed=self.seed + number)
            tick()
            return _answer(server, prompt, found)

        pool = ThreadPoolExecutor(AT_ONCE)
        with progress(f"{server.url}: long answers", len(self.prompts)) as tick:
            try:
                return list(pool.map(answer, range(len(self.prompts)), self.prompts))
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
