"""Writes the chart's README from its commented values; with ``--check`` only compares.

Every setting has one comment line above it; ``# -- Title`` begins a section. What stands
above the settings is in helm/leanmoe/README.head.md.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import yaml

CHART = Path(__file__).parents[1] / "helm" / "leanmoe"
_SECTION = re.compile(r"# -- (.+)")


class Setting(NamedTuple):
    """One row of a table."""

    path: str
    default: str
    description: str


def _comment_above(lines: list[str], line: int) -> str:
    """The comment line right above ``line`` (from 0), or nothing."""
    above = lines[line - 1].strip() if line else ""
    is_comment = above.startswith("# ") and not _SECTION.match(above)
    return above.removeprefix("# ") if is_comment else ""


def _settings(node: yaml.Node, lines: list[str], path: str = "") -> Iterator[tuple[int, Setting]]:
    """Every leaf with its line; a commented mapping is a leaf, too."""
    if not isinstance(node, yaml.MappingNode):
        return
    for key, value in node.value:
        line = key.start_mark.line
        here, description = f"{path}.{key.value}".lstrip("."), _comment_above(lines, line)
        is_group = isinstance(value, yaml.MappingNode) and value.value
        if is_group and (not description or not _is_whole(here)):
            yield from _settings(value, lines, here)
        else:
            yield line, Setting(here, _shown(value), description)


def _is_whole(path: str) -> bool:
    """Kubernetes' own objects are one setting."""
    return path.rpartition(".")[2] in {
        *("resources", "podSecurityContext", "securityContext", "labels", "annotations"),
        *("podLabels", "podAnnotations"),
    }


def _shown(node: yaml.Node) -> str:
    value = yaml.safe_load(yaml.serialize(node))
    return f"`{json.dumps(value)}`"


def _rows(text: str) -> Iterator[str]:
    lines = text.splitlines()
    titles = {at: match[1] for at, line in enumerate(lines) if (match := _SECTION.match(line))}
    tree = yaml.compose(text)
    if tree is None:
        raise SystemExit("values.yaml is empty")
    last = ""
    for line, setting in _settings(tree, lines):
        if not setting.description:
            raise SystemExit(f"values.yaml:{line + 1}: {setting.path} has no comment above it")
        title = titles[max(at for at in titles if at < line)]
        if title != last:
            yield from ("", f"### {title}", "", "| setting | default | meaning |", "|---|---|---|")
            last = title
        cells = (f"`{setting.path}`", setting.default, setting.description)
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def readme() -> str:
    """The whole text of helm/leanmoe/README.md."""
    head = (CHART / "README.head.md").read_text()
    return head + "\n".join(_rows((CHART / "values.yaml").read_text())) + "\n"


def main() -> None:
    """Write, or say that what lies there is old."""
    target = CHART / "README.md"
    if "--check" not in sys.argv[1:]:
        target.write_text(readme())
    elif target.read_text() != readme():
        raise SystemExit(f"{target} is older than values.yaml: run `make chart-readme`")


if __name__ == "__main__":
    main()
