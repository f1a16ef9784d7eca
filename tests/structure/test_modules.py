"""The file list is the map: names that are addresses, rooms that somebody would look into."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

import grimp

ROOT = Path(__file__).parents[2]
PACKAGES = {path.name: path for path in ROOT.glob("*/leanmoe*") if (path / "__init__.py").exists()}
# Of a command there is one a folder; the others say what a folder is.
SHARED_NAMES = {"__init__", "command"}
# A room with one reader and a few lines is part of that reader.
SMALL_LINES, MOST_SMALL = 40, 30


def modules(package: Path) -> Iterator[Path]:
    return (path for path in package.rglob("*.py") if "__pycache__" not in path.parts)


def module_name(package: Path, path: Path) -> str:
    parts = path.relative_to(package.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def importers() -> dict[str, set[str]]:
    graph = grimp.build_graph(*PACKAGES, include_external_packages=False)
    found: dict[str, set[str]] = defaultdict(set)
    for name in graph.modules:
        for target in graph.find_modules_directly_imported_by(name):
            found[target].add(name)
    return found


def test_no_two_modules_of_a_package_share_a_name():
    for package in PACKAGES.values():
        names = Counter(path.stem for path in modules(package))
        shared = sorted(n for n, count in names.items() if count > 1 and n not in SHARED_NAMES)
        assert shared == [], f"{package.name}: {shared}"


def test_few_small_modules_have_a_single_reader():
    read_by = importers()
    small = []
    for package in PACKAGES.values():
        for path in modules(package):
            lines = len(path.read_text().splitlines())
            single = len(read_by[module_name(package, path)]) == 1
            if path.stem != "__init__" and single and lines < SMALL_LINES:
                small.append(str(path.relative_to(ROOT)))
    assert len(small) <= MOST_SMALL, "\n".join(sorted(small))


def test_no_module_imports_itself_in_a_circle():
    graph = grimp.build_graph(*PACKAGES, include_external_packages=False)
    for name in sorted(graph.modules):
        for target in graph.find_modules_directly_imported_by(name):
            chain = graph.find_shortest_chain(target, name)
            assert chain is None, f"{name} imports {target}, and back: {chain}"
