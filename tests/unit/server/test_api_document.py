"""The document of the API is valid, and says what our layers add to vLLM's routes."""

from __future__ import annotations

import json

import httpx
import pytest
import schemathesis
from jsonschema import Draft202012Validator

from leanmoe.wire import ADMIN_HEADER, REQUEST_KEY
from leanmoe_server.request_level import ROUTES
from tests.unit.server.conftest import ADMIN_KEY

pytestmark = pytest.mark.anyio
PATH = "/v1/expert_skipping"


async def document_of(app) -> dict:
    await app.service.control.start()
    async with app.client() as client:
        answer = await client.get("/openapi.json", headers={"authorization": "Bearer user"})
    assert answer.status_code == 200
    return answer.json()


async def test_it_is_a_valid_document(build_app) -> None:
    document = await document_of(build_app(user_key="user"))
    schemathesis.openapi.from_dict(document).validate()
    for name, schema in document["components"]["schemas"].items():
        Draft202012Validator.check_schema(schema)
        assert name.startswith(("LeanMoE", "ExpertSkipping", "HTTPV", "Validation")), name


async def test_keys_and_errors_of_every_route(build_app) -> None:
    document = await document_of(build_app(user_key="user"))
    schemes = document["components"]["securitySchemes"]
    assert schemes["adminKeyHeader"]["name"] == ADMIN_HEADER
    paths = document["paths"]
    assert paths["/ready"]["get"]["security"] == []
    users = [{"userKey": []}, {"userKeyHeader": []}]
    admins = [{"adminKey": []}, {"adminKeyHeader": []}]
    assert paths["/v1/models"]["get"]["security"] == users
    assert paths[PATH]["get"]["security"] == [*users, *admins]
    assert paths[PATH]["put"]["security"] == paths[f"{PATH}/rollback"]["post"]["security"] == admins
    assert paths[f"{PATH}/history"]["get"]["security"] == admins
    for path in ROUTES:
        responses = paths[path]["post"]["responses"]
        assert {"200", "400", "401", "403", "413", "429", "503"} <= set(responses)
        assert "422" not in responses and "Retry-After" in responses["429"]["headers"]
        shape = "LeanMoEMessagesError" if path == "/v1/messages" else "LeanMoEError"
        [content] = responses["429"]["content"].values()
        assert content["schema"]["$ref"].endswith(shape)
    assert {"200", "400", "401", "403", "413", "503"} <= set(paths[PATH]["put"]["responses"])


async def test_without_user_keys_none_is_wanted(build_app) -> None:
    document = await document_of(build_app())
    assert {} in document["paths"]["/v1/models"]["get"]["security"]


async def test_answers_are_what_the_document_says(build_app) -> None:
    app = build_app()
    document = await document_of(app)
    async with app.client() as client:
        asked = [
            ("GET", "/ready", None),
            ("GET", PATH, None),
            ("PUT", PATH, {"level": 1}),
            ("PUT", PATH, {"level": 7}),
            ("GET", f"{PATH}/history", None),
            ("GET", f"{PATH}/history?limit=x", None),
            ("POST", f"{PATH}/rollback", {}),
            ("POST", f"{PATH}/rollback", {"version": 0}),
            ("POST", "/v1/messages", {REQUEST_KEY: {"level": 7}}),
            ("POST", "/v1/completions", {REQUEST_KEY: {"level": 7}}),
        ]
        for method, path, body in asked:
            answer = await client.request(method, path, json=body)
            operation = document["paths"][path.partition("?")[0]][method.lower()]
            told = operation["responses"][str(answer.status_code)]["content"]["application/json"]
            check(answer, told["schema"], document)
        told = document["paths"]["/v1/completions"]["post"]["responses"]["200"]["headers"]
        answer = await client.post("/v1/completions", json={REQUEST_KEY: {"level": 0.5}})
        assert set(told) - {"x-leanmoe-union-budget"} <= set(answer.headers)
        usage = answer.json()["usage"][REQUEST_KEY]
        [one] = [s for n, s in document["components"]["schemas"].items() if n.endswith("Usage")]
        Draft202012Validator(one).validate(usage)


def check(answer: httpx.Response, schema: dict, document: dict) -> None:
    held = {**schema, "components": document["components"]}
    Draft202012Validator(held).validate(answer.json())


@pytest.mark.parametrize(
    ("wish", "good"),
    [
        ("off", True),
        ({"level": 0.5}, True),
        ({"max_kld": 0.1, "deterministic": True}, True),
        ("on", False),
        ({"level": 0.5, "max_kld": 0.1}, False),
        ({"level": 2}, False),
        ({"deterministic": True}, False),
        ({"level": 0.5, "beta": 1}, False),
    ],
)
async def test_the_document_and_the_server_agree_on_wishes(build_app, wish, good: bool) -> None:
    app = build_app()
    wanted = (await document_of(app))["components"]["schemas"]["ExpertSkipping"]
    assert Draft202012Validator(wanted).is_valid(wish) is good
    async with app.client() as client:
        answer = await client.post("/v1/completions", content=json.dumps({REQUEST_KEY: wish}))
        assert (answer.status_code == 200) is good
    assert ADMIN_KEY not in answer.text
