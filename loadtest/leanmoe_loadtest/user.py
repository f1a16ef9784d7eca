"""Locust users for Locust's own command line and web page; ``leanmoe loadtest`` has its own.

Each asks one prompt of the built-in mix after another. Locust's table gets a row per request, one
of the times to its first token and one of the gaps between its pieces of text. Importing this
module patches the standard library for gevent.
"""

from __future__ import annotations

import os
import sys
from functools import cache
from itertools import count
from typing import Any, NoReturn

import gevent
from gevent.lock import BoundedSemaphore
from locust import User, constant, events, task

from leanmoe.errors import InputError
from leanmoe_loadtest.ask import Asker
from leanmoe_loadtest.messages import API_KEY_VARIABLE
from leanmoe_loadtest.plan import Plan
from leanmoe_loadtest.record import RequestRecord
from leanmoe_loadtest.source import BUILTIN, load_prompts
from leanmoe_loadtest.stream import Streamer
from leanmoe_loadtest.target import target

_numbers = count()


@events.init_command_line_parser.add_listener  # type: ignore[untyped-decorator]
def _add_arguments(parser: Any) -> None:
    group = parser.add_argument_group("streamed answers")
    group.add_argument("--chat-model", help="model name (default: the first the server lists)")
    group.add_argument("--max-tokens", type=int, default=64, help="longest answer, in tokens")
    group.add_argument("--request-seconds", type=float, default=120.0, help="limit per request")
    group.add_argument("--ignore-eos", action="store_true", help="answers of exactly --max-tokens")
    group.add_argument("--prompt-seed", type=int, default=0, help="seed of the order of prompts")


_asking = BoundedSemaphore()


def _model(url: str, wanted: str | None) -> str:
    """Asked for once, however many users begin at a time."""
    with _asking:
        return _found_model(url, wanted)


@cache
def _found_model(url: str, wanted: str | None) -> str:
    return target(url).model(wanted)


class ChatUser(User):  # type: ignore[misc]
    """Streams chat completions, each as soon as the last answer ended."""

    wait_time = constant(0)
    endpoint = "chat"

    def on_start(self) -> None:
        options = self.environment.parsed_options
        try:
            server = target(self.host)
            model = _model(server.url, options.chat_model)
        except InputError as error:
            self._give_up(error)
        plan = Plan(
            url=server.url,
            model=model,
            endpoint=self.endpoint,
            seed=options.prompt_seed,
            max_tokens=options.max_tokens,
            ignore_eos=options.ignore_eos,
            request_seconds=options.request_seconds,
            duration=0.0,
            users=1,
            prompts=load_prompts(BUILTIN, self.endpoint),
        )
        self.asker = Asker(plan)
        self.streamer = Streamer(plan, os.environ.get(API_KEY_VARIABLE))

    def _give_up(self, error: InputError) -> NoReturn:
        """End the run with one sentence, as no request could be sent."""
        if self.environment.process_exit_code is None:
            print(error, file=sys.stderr, flush=True)
            self.environment.process_exit_code = error.exit_code
        # Not from here: it ends this user, and with it itself.
        gevent.spawn(self.environment.runner.quit)
        raise gevent.GreenletExit

    @task  # type: ignore[untyped-decorator]
    def stream(self) -> None:
        """One request; the end of the run cuts it without a trace."""
        record = RequestRecord(sent=0.0, endpoint=self.endpoint)
        self.streamer.run(self.asker.ask(next(_numbers)), record)
        failure = RuntimeError(record.error) if record.error else None
        self._fire(self.endpoint, record.e2e_seconds, record.output_tokens, failure)
        if record.ttft_seconds is not None:
            self._fire(f"{self.endpoint}: first token", record.ttft_seconds)
        for gap in record.itl_seconds:
            self._fire(f"{self.endpoint}: between tokens", gap)

    def _fire(
        self, name: str, seconds: float | None, tokens: int = 0, failure: Exception | None = None
    ) -> None:
        self.environment.events.request.fire(
            request_type="SSE",
            name=name,
            response_time=None if seconds is None else seconds * 1e3,
            response_length=tokens,
            exception=failure,
            context={},
        )


class CompletionsUser(ChatUser):
    """Streams plain completions."""

    endpoint = "completions"
