"""One process with vLLM imported, for all snippets that need a fresh interpreter."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.warm import Warm, warm


@pytest.fixture(scope="package")
def warm_vllm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Warm]:
    with warm(tmp_path_factory.mktemp("warm")) as running:
        yield running
