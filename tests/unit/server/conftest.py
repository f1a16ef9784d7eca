"""The real app parts around a ``FakeEngine``: the door, admission, the routes."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path

import anyio
import httpx
import pytest
from fastapi import FastAPI
from prometheus_client import CollectorRegistry
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from leanmoe.manifest import read_manifest
from leanmoe.wire import ADMIN_HEADER
from leanmoe_server.admission import Admission
from leanmoe_server.assembly import build_service
from leanmoe_server.door import Door
from leanmoe_server.endpoint import LeanMoEEndpoint
from leanmoe_server.fake_engine import FakeEngine
from leanmoe_server.governor.aims import Aims
from leanmoe_server.keys.key_source import KeySource, key_source
from leanmoe_server.metrics import Metrics
from leanmoe_server.model import SkipModel
from leanmoe_server.policy import Policy, Target
from leanmoe_server.request_level import ROUTES as INFERENCE
from leanmoe_server.service import Service, keep_service
from leanmoe_server.settings import ServeSettings
from leanmoe_server.tenants.tenant_metrics import TenantMetrics
from tests.tiny import write_tiny_curve, write_tiny_mixtral

EXACT = Target()
ADMIN_KEY = "s3cret-admin-of-the-tests"


@pytest.fixture(scope="session")
def skip_model(tmp_path_factory: pytest.TempPathFactory) -> SkipModel:
    """Four MoE layers and the tiny model's made-up curve."""
    path = tmp_path_factory.mktemp("unit") / "tiny"
    manifest = read_manifest(write_tiny_curve(write_tiny_mixtral(path, hidden=32, ffn=32)))
    assert manifest is not None
    return SkipModel((0, 1, 2, 3), manifest.curve)


async def _events(seen: bytes) -> AsyncIterator[bytes]:
    end = {"id": "chatcmpl-1", "choices": [], "usage": {"n": 1}}
    for content in ({"seen": seen.decode(), "usage": None}, end):
        yield b"data: " + json.dumps(content).encode() + b"\n\n"
    yield b"data: [DONE]\n\n"


@dataclass
class App:
    """One app, its engine and a way to speak to it as a client from somewhere."""

    asgi: FastAPI
    engine: FakeEngine
    service: Service
    registry: CollectorRegistry
    sent: dict[str, str]
    # Where a test wants answers to wait.
    pause: anyio.Event | None = None

    def client(self, host: str = "127.0.0.1", **headers: str) -> httpx.AsyncClient:
        transport = httpx.ASGITransport(self.asgi, client=(host, 50000))
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        sent = {**self.sent, **named}
        return httpx.AsyncClient(transport=transport, base_url="http://leanmoe", headers=sent)


@pytest.fixture
def build_app(skip_model: SkipModel) -> Callable[..., App]:
    """Middleware in vLLM's order: last added, the door stands outermost."""

    def build(
        engine: FakeEngine | None = None,
        *,
        user_key: str | None = None,
        admin_key: str | None = ADMIN_KEY,
        keys: KeySource | None = None,
        share_prefix_cache: bool = False,
        target: Target = EXACT,
        request_levels_unavailable: str | None = None,
        model: SkipModel = skip_model,
        least_union: int = 0,
        audit_file: Path | None = None,
        governor: Aims | None = None,
    ) -> App:
        app, registry = FastAPI(), CollectorRegistry()
        built: list[App] = []
        LeanMoEEndpoint().attach_router(app)

        @app.get("/v1/models")
        async def models() -> dict[str, str]:
            return {"object": "list"}

        async def infer(request: Request) -> Response:
            """Give back what vLLM would have been given, in the shape of an answer."""
            seen = await request.body()
            if built[0].pause is not None:
                await built[0].pause.wait()
            if b'"stream":true' in seen.replace(b" ", b""):
                return StreamingResponse(_events(seen), media_type="text/event-stream")
            told = {"id": "chatcmpl-1", "seen": seen.decode(errors="replace"), "usage": {"n": 1}}
            return JSONResponse(told)

        for path in (*INFERENCE, "/v1/embeddings"):
            app.add_api_route(path, infer, methods=["POST"])

        app.add_middleware(Admission)
        app.add_middleware(Door)
        environment = {} if admin_key is None else {"LEANMOE_ADMIN_KEY": admin_key}
        given = key_source(None, None, environment).with_users([user_key] if user_key else [])
        settings = ServeSettings(
            model=model,
            policy=Policy(target),
            keys=keys or given,
            share_prefix_cache=share_prefix_cache,
            request_levels_unavailable=request_levels_unavailable,
            least_union=least_union,
            audit_file=audit_file,
            governor=governor,
        )
        engine = engine or FakeEngine()
        service = build_service(engine, settings, Metrics(registry), TenantMetrics(registry))
        keep_service(app.state, service)
        # Where a test says nothing of keys, its client is an administrator.
        alone = admin_key is ADMIN_KEY and user_key is None and keys is None
        sent = {ADMIN_HEADER: ADMIN_KEY} if alone else {}
        built.append(App(app, engine, service, registry, sent))
        return built[0]

    return build


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(autouse=True)
def _no_keys_from_outside(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("LEANMOE_ADMIN_KEY", raising=False)
