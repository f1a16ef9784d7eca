"""What `helm test` asks a deployed server; standard library only.

python check.py ready|answer|metrics
"""

from __future__ import annotations

import json
import os
import sys
import urllib.error
import urllib.request
from collections.abc import Mapping
from email.message import Message

URL = os.environ["LEANMOE_URL"]
TIMEOUT = float(os.environ.get("TIMEOUT_SECONDS", "60"))
# Straight to the Service: proxies of the environment are for what lies outside.
DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))
SERIES = ("leanmoe_handshake_complete 1.0", "leanmoe_skip_level", "vllm:num_requests_waiting")


def ask(path: str, content: Mapping[str, object] | None = None) -> tuple[str, Message]:
    """The answer to one request, with the user's key where there is one."""
    key = os.environ.get("LEANMOE_API_KEY", "")
    headers = {"Content-Type": "application/json"}
    headers |= {"Authorization": f"Bearer {key}"} if key else {}
    body = None if content is None else json.dumps(content).encode()
    request = urllib.request.Request(URL + path, data=body, headers=headers)
    try:
        with DIRECT.open(request, timeout=TIMEOUT) as answer:
            return answer.read().decode(), answer.headers
    except urllib.error.HTTPError as error:
        sys.exit(f"{path} answered {error.code}: {error.read().decode()[:2000]}")
    except OSError as error:
        sys.exit(f"{path} cannot be reached at {URL}: {error}")


def ready() -> None:
    ask("/health")
    print(ask("/ready")[0])


def answer() -> None:
    model = json.loads(ask("/v1/models")[0])["data"][0]["id"]
    body = {"model": model, "prompt": "The capital of France is", "max_tokens": 8}
    text, headers = ask("/v1/completions", {**body, "temperature": 0})
    level = headers.get("X-LeanMoE-Skip-Level")
    if level is None:
        sys.exit("the answer has no X-LeanMoE-Skip-Level: what answers is not leanmoe serve")
    print(f"{model} at level {level}: {json.loads(text)['choices'][0]['text']!r}")


def metrics() -> None:
    text = ask("/metrics")[0]
    missing = [name for name in SERIES if name not in text]
    if missing:
        sys.exit(f"/metrics has no {', '.join(missing)}")
    print("every series is there")


if __name__ == "__main__":
    {"ready": ready, "answer": answer, "metrics": metrics}[sys.argv[1]]()
