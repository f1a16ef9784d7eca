"""``leanmoe report``: a lean checkpoint's model card, and a page of what was measured of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from leanmoe.command import Result
from leanmoe.errors import InputError, OutputError
from leanmoe.extras import install_hint
from leanmoe.files.output import atomic_write_text, check_name, check_writable
from leanmoe.process.interrupts import stop_on_signals
from leanmoe_pruning.checkpoints.opening import open_model
from leanmoe_pruning.options import argument, command_of, option
from leanmoe_pruning.report.content import content_of
from leanmoe_pruning.report.evaluations import read_evaluation
from leanmoe_pruning.report.losses import read_losses


@dataclass(frozen=True, kw_only=True)
class ReportOptions:
    """What ``leanmoe report`` takes."""

    model: Path = argument("lean checkpoint directory", metavar="OUT")
    eval: tuple[Path, ...] = option(
        "what `leanmoe eval OUT --json` wrote: the tables before and after",
        default=(),
        nargs="+",
        metavar="JSON",
    )
    dump: Path | None = option(
        "what `leanmoe prune --dump DIR` wrote: losses per layer, on the page", metavar="DIR"
    )
    html: Path | None = option("also write the page, one file", metavar="PATH")
    force: bool = option("replace PATH if it exists", default=False)


def _check_page(options: ReportOptions) -> None:
    if options.html is None:
        if options.dump is not None:
            raise InputError("--dump is drawn on the page; give --html PATH too, or drop it")
        return
    target: Path = options.html
    check_name(target)
    if target.is_symlink() or (target.exists() and not target.is_file()):
        raise InputError(f"--html {target} is no plain file; give a file, such as report.html")
    if options.model.resolve() in target.resolve().parents:
        raise InputError(
            f"--html {target} lies in the checkpoint, whose files are the model's; choose another "
            "path"
        )
    if target.exists() and not options.force:
        raise InputError(f"--html {target} exists already; choose another path or pass --force")
    if not target.parent.is_dir():
        raise InputError(f"--html {target} cannot be made: {target.parent} is no folder; make it")
    check_writable(target)


def _run(options: ReportOptions) -> Result:
    _check_page(options)
    try:
        from leanmoe_pruning.report import model_card, rendering
    except ModuleNotFoundError as error:
        raise InputError(
            f"report needs the package {error.name}, which is not installed; run "
            f"{install_hint('offline')}"
        ) from None
    checkpoint = open_model(options.model)
    content = content_of(checkpoint, [])
    evaluations = [read_evaluation(path, content.weights_digest) for path in options.eval]
    content = content_of(checkpoint, evaluations)
    losses = None if options.dump is None else read_losses(options.dump, content.manifest.kept)
    inherited = model_card.inherited(model_card.source_card(options.model))
    card = rendering.render_card(content, inherited)
    page = None if options.html is None else rendering.render_page(content, losses)
    try:
        with stop_on_signals():
            if page is not None and options.html is not None:
                atomic_write_text(options.html, page)
            manifest = model_card.put_card(options.model, content.manifest, card)
    except OSError as error:
        raise OutputError(
            f"could not write {error.filename or options.model}: {error.strerror}; the checkpoint "
            "is whole"
        ) from error
    return {
        "card": str(options.model / model_card.CARD),
        "html": None if options.html is None else str(options.html),
        "losses": losses is not None,
        "method": None if content.unknown else content.manifest.method,
        "unknown": content.unknown,
        "manifest_digest": manifest.digest(),
    }


def _show(result: Result) -> str:
    page = f" and {result['html']}" if result["html"] else ""
    wrote = f"wrote {result['card']}{page}"
    return f"{wrote}\n{result['unknown']}" if result["unknown"] else wrote


COMMAND = command_of(
    ReportOptions,
    _run,
    name="report",
    summary="Write a lean checkpoint's model card, and a page of what was measured of it.",
    example="leanmoe report ./lean --eval eval.json --dump ./dump --html report.html",
    show=_show,
)
