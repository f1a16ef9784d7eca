"""Locust users for Locust's own command line and web page; ``leanmoe loadtest`` has its own.

Each asks one prompt of the built-in mix after another. Importing this module patches the standard
library for gevent.
"""

from __future__ import annotations

import os
from itertools import count
from typing import Any

from locust import User, constant, events, task

from leanmoe_loadtest.ask import Asker
from leanmoe_loadtest.messages import API_KEY_VARIABLE
from leanmoe_loadtest.plan import Plan
from leanmoe_loadtest.record import RequestRecord
from leanmoe_loadtest.source import BUILTIN, load_prompts
from leanmoe_loadtest.stream import Streamer

_numbers = count()


@events.init_command_line_parser.add_listener  # type: ignore[untyped-decorator]
def _add_arguments(parser: Any) -> None:
    group = parser.add_argument_group("streamed answers")
    group.add_argument("--chat-model", required=True, help="model name as the server lists it")
    group.add_argument("--max-tokens", type=int, default=64, help="longest answer, in tokens")
    group.add_argument("--request-seconds", type=float, default=120.0, help="limit per request")
    group.add_argument("--ignore-eos", action="store_true", help="answers of exactly --max-tokens")
    group.add_argument("--prompt-seed", type=int, default=0, help="seed of the order of prompts")


class ChatUser(User):  # type: ignore[misc]
    """Streams chat completions, each as soon as the last answer ended."""

    wait_time = constant(0)
    endpoint = "chat"

    def on_start(self) -> None:
        options = self.environment.parsed_options
        plan = Plan(
            url=self.host.rstrip("/").removesuffix("/v1"),
            model=options.chat_model,
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

    @task  # type: ignore[untyped-decorator]
    def stream(self) -> None:
        """One request; the end of the run cuts it without a trace."""
        record = RequestRecord(sent=0.0, endpoint=self.endpoint)
        self.streamer.run(self.asker.ask(next(_numbers)), record)
        self._fire(self.endpoint, record.e2e_seconds, record)
        self._fire(f"{self.endpoint}: first token", record.ttft_seconds, record)

    def _fire(self, name: str, seconds: float | None, record: RequestRecord) -> None:
        self.environment.events.request.fire(
            request_type="SSE",
            name=name,
            response_time=None if seconds is None else seconds * 1e3,
            response_length=record.output_tokens,
            exception=RuntimeError(record.error) if record.error else None,
            context={},
        )


class CompletionsUser(ChatUser):
    """Streams plain completions."""

    endpoint = "completions"
