"""The pages people read, and the fenced blocks in them.

A block of ``bash`` or ``python`` is run by the tests unless the line before it says otherwise:

- ``<!-- not run: REASON -->``: not run at all, and why;
- ``<!-- runs against a server -->``: run where a server is up (tests/integration/server);
- ``<!-- starts a server -->``: run where engines are (tests/integration/server);
- ``title="PATH"`` after the language: an excerpt of that file, compared with it.

Blocks whose first command is one of ``ELSEWHERE`` are not run either.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]
RUNNABLE = ("bash", "python")
ELSEWHERE = {
    **dict.fromkeys(("kubectl", "helm", "kind", "minikube"), "there is no cluster"),
    **dict.fromkeys(("docker", "podman", "buildah"), "there is no container engine"),
    "make": "make runs all checks, of which this is a part",
}
SERVER = "runs against a server"
STARTING = "starts a server"

_FENCE = re.compile(r"^(?P<indent> *)```(?P<info>\S.*)?$")
_COMMENT = re.compile(r"^ *<!-- (?P<said>.*) -->$")


@dataclass(frozen=True)
class Fence:
    """One fenced block: where it begins, what stands after its fence and in the comment above."""

    page: Path
    line: int
    info: str
    comment: str
    text: str

    @property
    def where(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    @property
    def language(self) -> str:
        return self.info.split()[0] if self.info else ""

    @property
    def excerpt_of(self) -> str | None:
        found = re.search(r'title="([^"]+)"', self.info)
        return found[1] if found else None

    @property
    def not_run(self) -> str | None:
        """Why it is not run, or ``None``."""
        if self.comment.startswith("not run: "):
            return self.comment.removeprefix("not run: ")
        first = self.commands[0].split()[0] if self.language == "bash" and self.commands else ""
        return ELSEWHERE.get(first)

    @property
    def on_server(self) -> bool:
        return self.comment == SERVER

    @property
    def starts_server(self) -> bool:
        return self.comment == STARTING

    @cached_property
    def commands(self) -> list[str]:
        """Lines of a shell block that are neither empty nor comments, continued ones joined."""
        lines = self.text.replace("\\\n", " ").splitlines()
        return [line.strip() for line in lines if line.strip() and not line.strip().startswith("#")]


def fences(page: Path) -> Iterator[Fence]:
    """The blocks of a page in order; ``ValueError`` for one that is not closed."""
    lines = page.read_text(encoding="utf-8").splitlines()
    at = 0
    while at < len(lines):
        opened = _FENCE.match(lines[at])
        if opened is None:
            at += 1
            continue
        closing = opened["indent"] + "```"
        end = next((n for n in range(at + 1, len(lines)) if lines[n].rstrip() == closing), None)
        if end is None:
            raise ValueError(f"{page}:{at + 1}: the block is not closed")
        indent = len(opened["indent"])
        text = "\n".join(line[indent:] for line in lines[at + 1 : end])
        comment = _COMMENT.match(lines[at - 1]) if at else None
        said = comment["said"] if comment else ""
        yield Fence(page, at + 1, opened["info"] or "", said, text + "\n")
        at = end + 1


def runnable(page: Path, *, on_server: bool) -> list[Fence]:
    """The blocks of a page that are run, on a server or without one; none that starts one."""
    return [
        fence
        for fence in fences(page)
        if fence.language in RUNNABLE
        and fence.not_run is None
        and fence.excerpt_of is None
        and fence.on_server == on_server
        and not fence.starts_server
    ]


def prose(page: Path) -> str:
    """A page without its blocks."""
    text = page.read_text(encoding="utf-8")
    return re.sub(r"^ *```.*?^ *```$", "", text, flags=re.DOTALL | re.MULTILINE)
