"""The blocks of the pages for a server run against a live one, those that start one start it."""

from __future__ import annotations

from urllib.parse import urlsplit

import pytest

from leanmoe.process import local_server
from leanmoe.process.group import ProcessGroup
from tests.docs.pages import PAGES, fences, runnable
from tests.docs.running import Session

# Where the pages say that the server listens.
ADDRESSES = ("127.0.0.1:8000", "localhost:8000")
# A start in seconds: nothing is compiled, little memory is taken.
SMALL = {"log=": '"--enforce-eager", "--kv-cache-memory-bytes", "100000000", log='}


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


@pytest.fixture
def started(forked, monkeypatch):
    """The processes of ``LocalServer``s, which fork off one that imported vLLM."""
    found = []

    class ForkedGroup(ProcessGroup):
        def __init__(self, command, *, env, output) -> None:
            self.process = forked(
                command, env=env, stdout=output, stderr=output, start_new_session=True
            )
            found.append(self.process)

    monkeypatch.setattr(local_server, "ProcessGroup", ForkedGroup)
    return found


@pytest.mark.parametrize(
    "fence",
    [fence for page in PAGES for fence in fences(page) if fence.starts_server],
    ids=lambda fence: fence.page.stem,
)
def test_the_blocks_that_start_a_server_run_and_end_it(
    fence, tiny_model, started, tmp_path, capsys
):
    """``leanmoe_server.local.serve``: ready when the block begins, gone when it is left."""
    (tmp_path / "lean-by-python").symlink_to(tiny_model)
    Session(tmp_path, rewrites=SMALL).run(fence)
    assert "Completion(" in capsys.readouterr().out
    (process,) = started
    assert process.poll() == 0, (tmp_path / "serve.log").read_text()[-4000:]
