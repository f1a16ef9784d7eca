"""The version that a release is of, or what changed in it: release_version.py [--changes].

Ends with 1 and one sentence where the changelog has no section of it: a release that nobody
described is not made.
"""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def version() -> str:
    """As ``pyproject.toml`` says."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return str(project["version"])


def changes(changelog: str, wanted: str) -> str:
    """The section of a version; ``SystemExit`` where there is none."""
    heading = rf"^## \[{re.escape(wanted)}\][^\n]*\n(.*?)(?=^## \[|\Z)"
    found = re.search(heading, changelog, re.MULTILINE | re.DOTALL)
    if found is None or not found[1].strip():
        raise SystemExit(f"CHANGELOG.md has no section of {wanted}; move Unreleased under it")
    return found[1].strip() + "\n"


def main() -> None:
    """The version on a line, or its changes."""
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    said = changes(changelog, version())
    print(said if "--changes" in sys.argv[1:] else version())


if __name__ == "__main__":
    main()
