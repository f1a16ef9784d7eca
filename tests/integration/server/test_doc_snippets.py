"""The blocks of the pages that speak to a server run against a live one."""

from __future__ import annotations

from urllib.parse import urlsplit

import pytest

from tests.docs.pages import PAGES, runnable
from tests.docs.running import Session

# Where the pages say that the server listens.
ADDRESSES = ("127.0.0.1:8000", "localhost:8000")


@pytest.mark.parametrize(
    "page", [p for p in PAGES if runnable(p, on_server=True)], ids=lambda page: page.stem
)
def test_the_blocks_for_a_server_run(page, exact_server, tmp_path, monkeypatch):
    monkeypatch.setenv("LEANMOE_ADMIN_KEY", exact_server.admin_key)
    session = Session(
        tmp_path, rewrites=dict.fromkeys(ADDRESSES, urlsplit(exact_server.url).netloc)
    )
    for fence in runnable(page, on_server=True):
        named = any(address in fence.text for address in ADDRESSES)
        assert named or fence.language == "python", fence.where
        session.run(fence)
