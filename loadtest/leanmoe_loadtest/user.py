"""A Locust user that streams chat completions; a locustfile in its own right.

Importing this module patches the standard library for gevent, so only the Locust
process does.
"""

from __future__ import annotations

import os
import random
from itertools import count
from pathlib import Path
from typing import Any

import gevent
import urllib3
from locust import User, constant, events, task
from locust.exception import StopUser

from leanmoe_loadtest.prompts import PROMPTS
from leanmoe_loadtest.record import RequestRecord
from leanmoe_loadtest.stream import ChatRequest, run_request

API_KEY_VARIABLE = "OPENAI_API_KEY"
_user_numbers = count()
_request_numbers = count(1)


@events.init_command_line_parser.add_listener  # type: ignore[untyped-decorator]
def _add_arguments(parser: Any) -> None:
    group = parser.add_argument_group("chat completions")
    group.add_argument("--chat-model", required=True, help="model name as the server lists it")
    group.add_argument("--max-tokens", type=int, default=64, help="longest answer, in tokens")
    group.add_argument("--max-requests", type=int, default=10_000, help="stop after this many")
    group.add_argument("--request-seconds", type=float, default=120.0, help="limit per request")
    group.add_argument("--ignore-eos", action="store_true", help="answers of exactly --max-tokens")
    group.add_argument("--records", default="", help="file to append one JSON line per request to")
    group.add_argument("--prompt-seed", type=int, default=0, help="seed of the choice of prompts")


class ChatUser(User):  # type: ignore[misc]
    """Asks one prompt after another, each as soon as the last answer ended."""

    wait_time = constant(0)

    def on_start(self) -> None:
        self.options = self.environment.parsed_options
        self.pool = urllib3.PoolManager(num_pools=1, maxsize=1)
        self.random = random.Random(f"{self.options.prompt_seed}:{next(_user_numbers)}")

    @task  # type: ignore[untyped-decorator]
    def chat(self) -> None:
        """One request; its record is kept whatever becomes of it."""
        if next(_request_numbers) > self.options.max_requests:
            # From a greenlet of its own: quitting waits for the users, this one among them.
            gevent.spawn(self.environment.runner.quit)
            raise StopUser
        record = RequestRecord(sent=0.0)
        try:
            run_request(self.pool, self._request(), record)
        except gevent.GreenletExit:
            record.unfinished = True
            raise
        except Exception as error:  # an answer of a shape nobody foresaw is a failed request
            record.error = f"{type(error).__name__}: {error}"
        finally:
            self._keep(record)

    def _request(self) -> ChatRequest:
        payload: dict[str, Any] = {
            "model": self.options.chat_model,
            "messages": [{"role": "user", "content": self.random.choice(PROMPTS)}],
            "max_tokens": self.options.max_tokens,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if self.options.ignore_eos:
            payload["ignore_eos"] = True
        key = os.environ.get(API_KEY_VARIABLE)
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        url = f"{self.host.rstrip('/')}/v1/chat/completions"
        return ChatRequest(url, payload, headers, self.options.request_seconds)

    def _keep(self, record: RequestRecord) -> None:
        if self.options.records:
            with Path(self.options.records).open("a", encoding="utf-8") as file:
                file.write(record.model_dump_json() + "\n")
        if record.unfinished:
            return
        self._fire("chat", record.e2e_seconds, record)
        self._fire("chat: first token", record.ttft_seconds, record)

    def _fire(self, name: str, seconds: float | None, record: RequestRecord) -> None:
        self.environment.events.request.fire(
            request_type="SSE",
            name=name,
            response_time=None if seconds is None else seconds * 1e3,
            response_length=record.output_tokens,
            exception=RuntimeError(record.error) if record.error else None,
            context={},
        )
