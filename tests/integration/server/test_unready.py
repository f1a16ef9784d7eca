"""A model whose layers the plugin cannot wrap: the server lives, says why, and never infers."""

from __future__ import annotations

from pathlib import Path

import openai
import pytest

from tests.forked import Forked
from tests.integration.live_server import live_server


def test_layers_that_cannot_be_wrapped_keep_the_server_unready(
    tiny_model: Path, forked: type[Forked], tmp_path: Path
) -> None:
    """vLLM's Transformers backend builds expert classes of its own, which no plugin replaces."""
    log = tmp_path / "log"
    with live_server(tiny_model, log, "--model-impl", "transformers", popen=forked) as server:
        assert server.get("/health").status_code == 200
        ready = server.get("/ready")
        assert ready.status_code == 503
        assert len(ready.json()["reasons"]) == 4
        for layer, reason in enumerate(ready.json()["reasons"]):
            assert f"layer {layer} " in reason and "TransformersRoutedExperts" in reason
        with pytest.raises(openai.InternalServerError) as refused:
            server.answer()
        assert refused.value.status_code == 503 and "layer 0" in str(refused.value)
        for path in ("/v1/models", "/tokenize", "/inference/v1/generate", "/invocations", "/"):
            assert server.get(path).status_code == 503, path
        assert server.put_level({"level": 0}).status_code == 503
        assert server.metrics()["leanmoe_handshake_complete", ""] == 0.0
        said = server.log.read_text()
    assert "ERROR leanmoe_server.readiness: not ready: worker rank0: layer 0" in said
    assert server.process.returncode == 0
