"""Chromium, Prometheus and nginx for tests: from PATH, or where ``make install`` put them."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Browser, sync_playwright

_TOOLS = Path(sys.prefix) / "tools"


def tool(name: str, folder: str) -> str:
    """The path of a program; a test without one fails and says what brings it."""
    # Servers lie where only root looks.
    places = (os.environ.get("PATH", os.defpath), "/usr/sbin", str(_TOOLS / folder))
    found = shutil.which(name, path=os.pathsep.join(places))
    assert found, f"no {name} on PATH and none in {_TOOLS / folder}: make install brings it"
    return found


@contextmanager
def chromium() -> Iterator[Browser]:
    """A headless Chromium, closed at the end."""
    path = tool("chromium", "chromium")
    libraries = Path(path).parent / "lib"
    environment: dict[str, str | float | bool] = dict(os.environ)
    if _TOOLS in libraries.parents:
        environment["LD_LIBRARY_PATH"] = str(libraries)
    flags = ["--no-sandbox", "--disable-gpu"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=flags, env=environment)
        try:
            yield browser
        finally:
            browser.close()
