"""Hold a vLLM that nobody installed against everything LeanMoE builds on: vllm_check.py PATH.

PATH is a wheel, a source distribution, or a folder that ``vllm/`` lies in. Nothing of it is run.
Read are the tables that the plugin and the server check at start (``seams.py`` of each part), what
our files import, and the classes that device/modes.py names. Exit code 0: all of it is there;
1: something is not; 2: PATH cannot be used.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import leanmoe_bench.seams
import leanmoe_runtime.seams
import leanmoe_runtime.source_seams
import leanmoe_server.seams
from leanmoe.engine_versions import Installed, version_problem
from leanmoe.seams import (
    Passage,
    Seam,
    base_difference,
    member_difference,
    parameter_difference,
)
from leanmoe_runtime.device.modes import MODES, PASSES_IDS
from vllm_sources import PACKAGE, Found, Sources, imported, open_sources, parameters

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("runtime_patches", "server", "benchmarks", "demo")
SEAMS: tuple[Seam, ...] = (
    *leanmoe_runtime.seams.AT_START,
    *leanmoe_runtime.seams.FIRST_RUNNER,
    *leanmoe_runtime.seams.SECOND_RUNNER,
    *leanmoe_runtime.seams.CPU_RANKS,
    *leanmoe_runtime.seams.TRITON_CALLS,
    *leanmoe_runtime.source_seams.FROM_SOURCES,
    *leanmoe_server.seams.AT_START,
    *leanmoe_server.seams.SEVERAL_API_PROCESSES,
    *leanmoe_server.seams.FROM_SOURCES,
    *leanmoe_bench.seams.FROM_SOURCES,
)
PASSAGES: tuple[Passage, ...] = (
    *leanmoe_runtime.source_seams.PASSAGES,
    *leanmoe_server.seams.PASSAGES,
)
_MOE = f"{PACKAGE}/model_executor/layers/fused_moe"
FOUND, MOVED, CHANGED, MISSING = "found", "moved", "changed", "missing"


class Line(NamedTuple):
    """One thing that was looked for, and what became of it."""

    verdict: str
    name: str
    said: str


def _absent(sources: Sources, name: str, modules: tuple[str, ...]) -> Line:
    """Not where it was looked for: elsewhere, or nowhere."""
    from_where = " or ".join(modules)
    if places := sources.elsewhere(name):
        more = f" and {len(places) - 3} more" if len(places) > 3 else ""
        return Line(MOVED, name, f"from {from_where} to {', '.join(places[:3])}{more}")
    return Line(MISSING, name, f"from {from_where}, and nothing of that name is left")


def check_seam(sources: Sources, seam: Seam) -> Line:
    """A symbol of the tables."""
    places = (sources.find(module, seam.name) for module in seam.modules)
    found = next((place for place in places if place is not None), None)
    if found is None:
        owner = seam.name.partition(".")[0]
        held = [at for module in seam.modules if (at := sources.find(module, owner))]
        if held and owner != seam.name:
            return Line(MISSING, seam.name, f"{held[0].place} has it no more")
        return _absent(sources, seam.name, seam.modules)
    problem = _difference(sources, seam, found)
    return Line(FOUND if problem is None else CHANGED, seam.name, _said(found, problem))


def _said(found: Found, problem: str | None) -> str:
    return found.place if problem is None else f"{found.place} {problem}"


def _difference(sources: Sources, seam: Seam, found: Found) -> str | None:
    taken = parameters(found.node)
    if (seam.leading or seam.takes) and taken is None:
        return f"{seam.name} is no function"
    held = [name for name in seam.members if sources.member(found, name)]
    bases = [getattr(one.node, "name", "") for one in sources.bases(found)]
    unset = [name for name in seam.attributes if not sources.sets(found, name)]
    return (
        parameter_difference(seam, taken or ())
        or base_difference(seam, bases)
        or member_difference(seam, held)
        or (f"{seam.name} sets no {unset[0]!r}" if unset else None)
    )


def check_import(sources: Sources, place: str, module: str, name: str) -> Line:
    """What a file of ours imports."""
    found = sources.find(module, name)
    if found is None:
        line = _absent(sources, name, (module,))
        return Line(line.verdict, line.name, f"{line.said}; {place} imports it")
    return Line(FOUND, name, found.place)


def check_passage(sources: Sources, passage: Passage) -> Line:
    """Words that a file has to hold, or may not."""
    path = f"{PACKAGE}/{passage.path}"
    files = [
        name
        for name in sources.texts
        if name == path or (path.endswith("/") and name.startswith(path))
    ]
    wanted = ["".join(text.split()) for text in passage.texts]
    holding = [
        name
        for name in files
        if any(text in "".join(sources.texts[name].split()) for text in wanted)
    ]
    short = passage.texts[0] if len(passage.texts[0]) < 60 else f"{passage.texts[0][:57]}..."
    if files and bool(holding) is passage.present:
        return Line(FOUND, short, holding[0] if holding else f"{path} rightly holds it nowhere")
    where = holding[0] if holding else path
    verdict = CHANGED if files else MISSING
    return Line(verdict, short, f"{where}: we rely on it that {passage.why}")


def check_class(sources: Sources, name: str) -> Line:
    """A class that device/modes.py knows by its name, wherever vLLM keeps it."""
    pattern = re.compile(rf"^class {re.escape(name)}\b", re.M)
    for path, text in sources.texts.items():
        if path.startswith(f"{_MOE}/") and (match := pattern.search(text)):
            return Line(FOUND, name, f"{path}:{text.count(chr(10), 0, match.start()) + 1}")
    return _absent(sources, name, (_MOE.replace("/", "."),))


def check_sources(sources: Sources) -> Iterator[Line]:
    """Every line of the report."""
    yield from (check_seam(sources, seam) for seam in SEAMS)
    for folder in FOLDERS:
        for file in sorted((ROOT / folder).rglob("*.py")):
            for line, module, name in imported(file):
                place = f"{file.relative_to(ROOT)}:{line}"
                yield check_import(sources, place, module, name)
    yield from (check_class(sources, name) for name in (*MODES, *sorted(PASSES_IDS)))
    yield from (check_passage(sources, passage) for passage in PASSAGES)


def _head(path: Path, version: str | None) -> str:
    if version is None:
        return f"{path}: vLLM, no version stated"
    known = version_problem(Installed("vllm", version)) is None
    return f"{path}: vLLM {version}, {'supported' if known else 'not supported so far'}"


def main() -> int:
    """Print the report; the exit code says whether anything is amiss."""
    parser = argparse.ArgumentParser(
        description="Hold vLLM's sources against what LeanMoE builds on, without running them.",
        epilog="example: make check-vllm WHEEL=vllm-0.33.0.tar.gz",
    )
    parser.add_argument("path", type=Path, help="wheel, source distribution, or folder of vllm/")
    parser.add_argument("--all", action="store_true", help="print what was found, too")
    args = parser.parse_args()
    try:
        sources = open_sources(args.path)
    except ValueError as error:
        print(f"vllm_check: {error}", file=sys.stderr)
        return 2
    lines = list(dict.fromkeys(check_sources(sources)))
    print(_head(args.path, sources.version()))
    for line in lines:
        if args.all or line.verdict != FOUND:
            print(f"{line.verdict:<8} {line.name}: {line.said}")
    counts = Counter(line.verdict for line in lines)
    print(", ".join(f"{counts[one]} {one}" for one in (FOUND, MOVED, CHANGED, MISSING)))
    return 0 if counts[FOUND] == len(lines) else 1


if __name__ == "__main__":
    raise SystemExit(main())
