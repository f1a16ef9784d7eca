"""``leanmoe report``: a lean checkpoint's model card, and a page of what was measured of it."""

from __future__ import annotations

import argparse
from pathlib import Path

from leanmoe.command import Command, Result
from leanmoe.errors import InputError, OutputError
from leanmoe.files.output import atomic_write_text
from leanmoe.process.interrupts import stop_on_signals
from leanmoe_pruning.checkpoints.opening import open_model
from leanmoe_pruning.report.content import content_of
from leanmoe_pruning.report.evaluations import read_evaluation
from leanmoe_pruning.report.losses import read_losses


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", type=Path, metavar="OUT", help="lean checkpoint directory")
    parser.add_argument(
        "--eval",
        type=Path,
        nargs="+",
        default=[],
        metavar="JSON",
        help="what `leanmoe eval OUT --json` wrote: the tables before and after",
    )
    parser.add_argument(
        "--dump",
        type=Path,
        metavar="DIR",
        help="what `leanmoe prune --dump DIR` wrote: losses per layer, on the page",
    )
    parser.add_argument("--html", type=Path, metavar="PATH", help="also write the page, one file")
    parser.add_argument("--force", action="store_true", help="replace PATH if it exists")


def _check_page(args: argparse.Namespace) -> None:
    if args.html is None:
        if args.dump is not None:
            raise InputError("--dump is drawn on the page; give --html PATH too, or drop it")
        return
    target: Path = args.html
    if target.is_dir() or target.is_symlink():
        raise InputError(f"--html {target} is a folder or link; give a file, such as report.html")
    if args.model.resolve() in target.resolve().parents:
        raise InputError(
            f"--html {target} lies in the checkpoint, whose files are the model's; choose another "
            "path"
        )
    if target.exists() and not args.force:
        raise InputError(f"--html {target} exists already; choose another path or pass --force")
    if not target.parent.is_dir():
        raise InputError(f"--html {target} cannot be made: {target.parent} is no folder; make it")


def _run(args: argparse.Namespace) -> Result:
    _check_page(args)
    try:
        from leanmoe_pruning.report import model_card, rendering
    except ModuleNotFoundError as error:
        raise InputError(
            f"report needs the package {error.name}, which is not installed; run "
            "`pip install 'leanmoe[offline]'`"
        ) from None
    checkpoint = open_model(args.model)
    content = content_of(checkpoint, [])
    evaluations = [read_evaluation(path, content.weights_digest) for path in args.eval]
    content = content_of(checkpoint, evaluations)
    losses = None if args.dump is None else read_losses(args.dump, content.manifest.kept)
    inherited = model_card.inherited(model_card.source_card(args.model))
    card = rendering.render_card(content, inherited)
    page = None if args.html is None else rendering.render_page(content, losses)
    try:
        with stop_on_signals():
            if page is not None:
                atomic_write_text(args.html, page)
            manifest = model_card.put_card(args.model, content.manifest, card)
    except OSError as error:
        raise OutputError(
            f"could not write {error.filename or args.model}: {error.strerror}; the checkpoint is "
            "whole"
        ) from error
    return {
        "card": str(args.model / model_card.CARD),
        "html": None if args.html is None else str(args.html),
        "losses": losses is not None,
        "manifest_digest": manifest.digest(),
    }


def _show(result: Result) -> str:
    page = f" and {result['html']}" if result["html"] else ""
    return f"wrote {result['card']}{page}"


COMMAND = Command(
    name="report",
    help="Write a lean checkpoint's model card, and a page of what was measured of it.",
    example="leanmoe report ./lean --eval eval.json --dump ./dump --html report.html",
    add_arguments=_add_arguments,
    run=_run,
    show=_show,
)
