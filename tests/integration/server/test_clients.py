"""What clients do against vLLM works here unchanged: the clients themselves, a live server."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import anthropic
import httpx
import openai
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from lm_eval.api.instance import Instance
from lm_eval.models.openai_completions import LocalChatCompletion, LocalCompletionsAPI

from leanmoe.process.environment import engine_environment
from tests.forked import Forked
from tests.integration.live_server import LiveServer

CHAT = [{"role": "user", "content": "the people and the water of a long day"}]
ANY_LENGTH = {"ignore_eos": True}
GREEDY = {"temperature": 0, "extra_body": ANY_LENGTH}


def test_openai_completions(exact_server: LiveServer) -> None:
    client, model = exact_server.client(), exact_server.model
    [only] = client.models.list().data
    assert only.id == model
    several = client.completions.create(
        model=model, prompt=["the day", "the water"], n=2, max_tokens=6, extra_body=ANY_LENGTH
    )
    assert len(several.choices) == 4 and several.usage.completion_tokens == 24
    answer = client.completions.create(
        model=model, prompt="the day", max_tokens=6, logprobs=2, **GREEDY
    )
    assert len(answer.choices[0].logprobs.token_logprobs) == 6
    echoed = client.completions.create(
        model=model, prompt="the day", max_tokens=1, echo=True, logprobs=1, temperature=0
    )
    assert echoed.choices[0].text.startswith("the day")
    stream = client.completions.create(
        model=model, prompt="the day", max_tokens=6, stream=True, **GREEDY
    )
    assert "".join(chunk.choices[0].text for chunk in stream) == answer.choices[0].text


def test_openai_chat(exact_server: LiveServer) -> None:
    client, model = exact_server.client(), exact_server.model
    whole = client.chat.completions.create(
        model=model, messages=CHAT, max_tokens=6, logprobs=True, top_logprobs=2, seed=1, **GREEDY
    )
    [choice] = whole.choices
    assert len(choice.logprobs.content) == 6 and choice.finish_reason == "length"
    stream = client.chat.completions.create(
        model=model, messages=CHAT, max_tokens=6, stream=True, **GREEDY
    )
    parts = [chunk.choices[0].delta.content or "" for chunk in stream]
    assert "".join(parts) == choice.message.content


def test_openai_responses_and_raw_headers(exact_server: LiveServer) -> None:
    client, model = exact_server.client(), exact_server.model
    response = client.responses.create(
        model=model, input="the day", max_output_tokens=6, temperature=0
    )
    assert response.usage.output_tokens > 0 and response.output
    with client.responses.stream(
        model=model, input="the day", max_output_tokens=6, temperature=0
    ) as stream:
        assert [event.type for event in stream][-1] in ("response.completed", "response.incomplete")
    raw = client.chat.completions.with_raw_response.create(
        model=model, messages=CHAT, max_tokens=1, extra_headers={"X-Request-Id": "mine"}
    )
    assert raw.status_code == 200 and raw.parse().choices


@pytest.mark.parametrize(
    ("options", "kind"),
    [
        ({"model": "nowhere"}, openai.NotFoundError),
        ({"temperature": -1}, openai.BadRequestError),
        ({"max_tokens": 5000}, openai.BadRequestError),
        ({"expert_skipping": {"level": -1}}, openai.BadRequestError),
        ({"expert_skipping": {"level": float("nan")}}, openai.BadRequestError),
        ({"messages": "x"}, openai.BadRequestError),
    ],
)
def test_openai_errors(exact_server: LiveServer, options: dict, kind: type) -> None:
    body = {"model": exact_server.model, "messages": CHAT, "max_tokens": 1, **options}
    # As bytes, since the client's own JSON has no NaN.
    with exact_server.client() as client, pytest.raises(kind) as refused:
        client.post("/chat/completions", content=json.dumps(body), cast_to=httpx.Response)
    assert refused.value.body["message"] and refused.value.body["code"] == refused.value.status_code


def test_anthropic_messages(exact_server: LiveServer) -> None:
    client = anthropic.Anthropic(base_url=exact_server.url, api_key="unused", max_retries=0)
    asked = {"model": exact_server.model, "messages": CHAT}
    greedy = {"max_tokens": 6, "extra_body": {"temperature": 0}}
    whole = client.messages.create(**greedy, **asked)
    assert whole.usage.output_tokens > 0
    with client.messages.stream(**greedy, **asked) as stream:
        assert stream.get_final_text() == whole.content[0].text
    assert client.messages.count_tokens(**asked).input_tokens == whole.usage.input_tokens
    with pytest.raises(anthropic.NotFoundError, match="does not exist"):
        client.messages.create(max_tokens=1, **{**asked, "model": "nowhere"})


def test_vllm_bench_serve(exact_server: LiveServer, forked: type[Forked], tmp_path: Path) -> None:
    out = ("--save-result", "--result-dir", str(tmp_path), "--result-filename", "r.json")
    command = [
        *(sys.executable, "-m", "vllm.entrypoints.cli.main", "bench", "serve", *out),
        *("--backend", "openai-chat", "--endpoint", "/v1/chat/completions"),
        *("--base-url", exact_server.url),
        *("--model", exact_server.model, "--dataset-name", "random", "--num-prompts", "6"),
        *("--random-input-len", "16", "--random-output-len", "5", "--ignore-eos"),
    ]
    log = tmp_path / "log"
    with log.open("wb") as said:
        environment = engine_environment(plugin=False)
        process = forked(command, stdout=said, stderr=subprocess.STDOUT, env=environment)
        assert process.wait(300) == 0, log.read_text()[-3000:]
    found = json.loads((tmp_path / "r.json").read_text())
    assert (found["completed"], found["total_output_tokens"]) == (6, 30)


def instance(kind: str, *arguments: object) -> Instance:
    return Instance(request_type=kind, doc={}, arguments=arguments, idx=0)


@pytest.mark.slow
def test_lm_eval(exact_server: LiveServer) -> None:
    until = {"until": ["\n\n"], "max_gen_toks": 4, "temperature": 0}
    told = {"model": exact_server.model, "tokenizer": exact_server.model, "max_length": 512}
    texts = LocalCompletionsAPI(
        base_url=f"{exact_server.url}/v1/completions", num_concurrent=2, **told
    )
    likely = texts.loglikelihood(
        [instance("loglikelihood", "the day of", " the water") for _ in range(3)]
    )
    assert len(likely) == 3 and all(value < 0 for value, _ in likely)
    assert len(texts.generate_until([instance("generate_until", "the day", until)])) == 1
    [rolled] = texts.loglikelihood_rolling([instance("loglikelihood_rolling", "the day of water")])
    assert rolled < 0
    chats = LocalChatCompletion(
        base_url=f"{exact_server.url}/v1/chat/completions", num_concurrent=1, **told
    )
    prompt = chats.apply_chat_template(CHAT)
    assert len(chats.generate_until([instance("generate_until", prompt, until)])) == 1


@pytest.mark.slow
def test_the_document_is_valid_and_requests_drawn_from_it_meet_no_fault(
    exact_server: LiveServer,
) -> None:
    """A few of each of our own routes and one of vLLM's; `schemathesis run` draws more."""
    document = exact_server.get("/openapi.json").json()
    schema = schemathesis.openapi.from_dict(document)
    schema.validate()
    requests = ("ChatCompletion", "Completion", "Responses", "AnthropicMessages")
    for name in requests:
        fields = document["components"]["schemas"][f"{name}Request"]["properties"]
        assert "expert_skipping" in fields, name
    admin = {"X-LeanMoE-Admin-Key": exact_server.admin_key}
    seen = set()
    with httpx.Client(base_url=exact_server.url, timeout=60, headers=admin) as client:
        for result in schema.get_all_operations():
            operation = result.ok()
            if "expert_skipping" in operation.path or operation.path in ("/ready", "/tokenize"):
                seen.add((operation.method.upper(), operation.path))
                _draw(operation, client)
    assert len(seen) >= 6


def _draw(operation: schemathesis.APIOperation, client: httpx.Client) -> None:
    slow = (HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large)

    @settings(
        max_examples=4,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(slow),
    )
    @given(case=operation.as_strategy())
    def drawn(case: schemathesis.Case) -> None:
        sent = case.as_transport_kwargs(base_url=str(client.base_url))
        body = {"content": json.dumps(sent["json"])} if "json" in sent else {}
        answer = client.request(
            sent["method"], sent["url"], params=sent.get("params"), timeout=60, **body
        )
        assert answer.status_code < 500, (sent, answer.text)

    drawn()
