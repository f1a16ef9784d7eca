"""``leanmoe demo``: build, score, prune, measure, serve and load the embedded model."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from leanmoe.command import Command, Result
from leanmoe.errors import InputError
from leanmoe.files.digest import tool_versions
from leanmoe.files.output import atomic_write_json
from leanmoe.manifest import read_manifest
from leanmoe.process.interrupts import stop_on_signals
from leanmoe_demo.load import interleaved
from leanmoe_demo.memory import Memory
from leanmoe_demo.server import Server, lean_server, ready_servers, stock_server
from leanmoe_demo.shell import Shell
from leanmoe_demo.story import GIVEN_UP, KEEP, MAX_KLD, PATTERN, QUESTION, SERVED, mix
from leanmoe_demo.table import render
from leanmoe_pruning.data.builtin import text_path
from leanmoe_reference.gguf_base import find_base

_SCORE_WINDOWS, _CURVE_WINDOWS, _EVAL_WINDOWS = 4, 4, 4


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--output", type=Path, help="also write the result object to this file")
    parser.add_argument(
        "--work",
        type=Path,
        help="keep the checkpoints here (3.2 GB); what was cut short goes on where it stopped",
    )


def _run(args: argparse.Namespace) -> Result:
    _check_output(args.output)
    _check_installed()
    work = args.work or Path(tempfile.mkdtemp(prefix="leanmoe-demo-"))
    _make_folder(work)
    memory = Memory(work)
    try:
        with stop_on_signals():
            result = _story(Shell(args.seed, memory), work)
        memory.forget()
    finally:
        if args.work is None:
            shutil.rmtree(work, ignore_errors=True)
    if args.output:
        atomic_write_json(args.output, result)
    return result


def _check_installed() -> None:
    """Raise where the model's base weights or one of the texts are not installed."""
    find_base()
    for domain in SERVED + GIVEN_UP:
        text_path(domain)


def _check_output(output: Path | None) -> None:
    """Refuse before the work what could only be refused after it."""
    if output is None:
        return
    if not output.parent.is_dir() or not os.access(output.parent, os.W_OK):
        raise InputError(f"--output {output}: no folder there that can be written; make it first")
    if output.exists() and not output.is_file():
        raise InputError(f"--output {output} is no ordinary file; name another")


def _make_folder(work: Path) -> None:
    try:
        work.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--work {work}: {error.strerror}; name a folder") from error


def _story(shell: Shell, work: Path) -> Result:
    reference, lean, sparse = (work / name for name in ("reference", "lean", "sparse"))
    _say("1. Offline: build, score our traffic, keep 5 of 8 experts, measure what skipping costs;")
    _say("   and keep all experts with half of their weights")
    _offline(shell, work, reference, lean)
    _sparse(shell, work, reference, sparse)
    level = _level(lean)
    _say("2. Perplexity on the domains served and the ones given up")
    domains = mix(SERVED + GIVEN_UP, _EVAL_WINDOWS)
    stock_quality = shell.step("eval stock", "eval", str(reference), "--data", domains)
    lean_quality = shell.step(
        "eval lean", "eval", str(lean), "--data", domains, "--skip-level", str(level)
    )
    sparse_quality = shell.step("eval sparse", "eval", str(sparse), "--data", domains)
    _say("3. Serve all side by side, same flags, load them in turns")
    served = _serve(shell, work, {"stock": reference, "lean": lean, "sparse": sparse})
    return {
        "question": QUESTION,
        "level": level,
        "promise": _promise(lean, level),
        "stock": {**served["stock"], **_on_disk(reference), **_perplexity(stock_quality)},
        "lean": {**_on_disk(lean), **_perplexity(lean_quality), **served["lean"]},
        "sparse": {**_on_disk(sparse), **_perplexity(sparse_quality), **served["sparse"]},
        "load": served["load"],
        "seconds": shell.seconds,
        "tools": tool_versions(),
    }


def _offline(shell: Shell, work: Path, reference: Path, lean: Path) -> None:
    scores = work / "scores"
    shell.step("reference", "reference", str(reference), "--force", makes=reference)
    traffic = mix(SERVED, _SCORE_WINDOWS)
    shell.step(
        "score",
        *("score", str(reference), "--data", traffic, "-o", str(scores), "--force"),
        makes=scores,
    )
    shell.step(
        "prune",
        *("prune", str(reference), "--method", "naee", "--keep", str(KEEP)),
        *("--scores", str(scores), "-o", str(lean), "--force"),
        makes=lean,
    )
    shell.step("curve", "curve", str(lean), "--data", mix(SERVED, _CURVE_WINDOWS))


def _sparse(shell: Shell, work: Path, reference: Path, sparse: Path) -> None:
    """Chosen in one pass: distilling, or a search for orders of the inputs, takes minutes."""
    shell.step(
        "sparse",
        *("prune", str(reference), "--method", "moe-pruner", "--pattern", PATTERN),
        *("--no-permute", "--compress", "--scores", str(work / "scores")),
        *("-o", str(sparse), "--force"),
        makes=sparse,
    )


def _curve(lean: Path) -> Any:
    manifest = read_manifest(lean)
    assert manifest is not None and manifest.curve is not None
    return manifest.curve


def _level(lean: Path) -> float:
    return float(_curve(lean).level_for_max_kld(MAX_KLD))


def _promise(lean: Path, level: float) -> dict[str, Any]:
    return dict(_curve(lean).point_at(level).model_dump(mode="json", exclude={"betas"}))


def _serve(shell: Shell, work: Path, models: dict[str, Path]) -> dict[str, Any]:
    starts = (
        partial(stock_server, models["stock"], work),
        partial(lean_server, "lean", models["lean"], work, "--max-kld", str(MAX_KLD)),
        partial(lean_server, "sparse", models["sparse"], work),
    )
    with ready_servers(starts) as servers:
        facts = {server.name: _server_facts(server) for server in servers}
        return {**facts, "load": interleaved(shell, servers)}


def _server_facts(server: Server) -> dict[str, Any]:
    answer = server.chat(QUESTION)
    facts = {"resident_bytes": server.worker_resident_bytes(), "answer": answer}
    if server.name == "stock":
        return facts
    return {**facts, "weight_bytes": int(server.metric("leanmoe_weight_bytes"))}


def _on_disk(model: Path) -> dict[str, int]:
    """Bytes of the whole directory and of its tensors alone."""
    files = [file for file in model.iterdir() if file.is_file()]
    weights = sum(file.stat().st_size for file in files if file.suffix == ".safetensors")
    return {"disk_bytes": sum(f.stat().st_size for f in files), "weight_bytes": weights}


def _perplexity(quality: Result) -> dict[str, Any]:
    domains = quality["domains"]
    return {
        "perplexity": {
            name.removeprefix("builtin:"): values["perplexity"] for name, values in domains.items()
        }
    }


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


COMMAND = Command(
    name="demo",
    help="The whole main job on the embedded model: build, score, prune, curve, serve, load.",
    example="leanmoe demo --output demo.json",
    add_arguments=_add_arguments,
    run=_run,
    show=render,
)
