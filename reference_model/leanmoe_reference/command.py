"""``leanmoe reference OUT``: write an embedded reference MoE checkpoint, or train one."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from leanmoe.command import Command, Result
from leanmoe.errors import InputError
from leanmoe.files.output import atomic_directory, check_output
from leanmoe.process.interrupts import stop_on_signals
from leanmoe_pruning.progress import progress
from leanmoe_reference.artefact import FOLDER, check_artefacts
from leanmoe_reference.build import check_written, tensors_digest, write_reference
from leanmoe_reference.gguf_base import GGUFBase, find_base
from leanmoe_reference.models import DEFAULT, MODELS
from leanmoe_reference.training.plans import PLANS


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("out", type=Path, metavar="OUT", help="directory to write (0.3 to 1.4 GB)")
    add("--force", action="store_true", help="replace OUT if it exists")
    add("--model", choices=sorted(MODELS), help=f"which model to write (default: {DEFAULT})")
    add(
        "--artefact",
        type=Path,
        metavar="FOLDER",
        help="write the model from a training's folder, not from the parts that ship",
    )
    training = parser.add_argument_group("training")
    train = training.add_argument
    train("--train", choices=sorted(PLANS), help="train this model; OUT is where the run is kept")
    train("--steps", type=int, help="training steps of 1024 tokens (default: the recipe's)")
    train("--layers", type=int, help="cut the parent down to its first layers, to try things")
    train("--threads", type=int, default=1, help="of the training (default 1); decides last bits")
    train("--texts", type=Path, metavar="FOLDER", help="token ids that --fetch-texts made")
    train(
        "--fetch-texts",
        type=Path,
        metavar="FOLDER",
        help="download the packages the text comes from and make the token ids there first",
    )


def _run(args: argparse.Namespace) -> Result:
    started = time.monotonic()
    _check(args)
    with stop_on_signals():
        result = _train(args) if args.train else _write(args)
    return {"out": str(args.out), **result, "seconds": round(time.monotonic() - started, 1)}


def _check(args: argparse.Namespace) -> None:
    if args.train and (args.model or args.artefact or args.force):
        raise InputError("--train takes none of --model, --artefact and --force")
    if args.artefact and (args.model or DEFAULT) not in PLANS:
        raise InputError("--artefact needs --model: one of " + ", ".join(sorted(PLANS)))
    for name in ("steps", "layers", "texts", "fetch_texts"):
        if getattr(args, name) is not None and not args.train:
            raise InputError(f"--{name.replace('_', '-')} needs --train: it shapes a training")
    if args.train and min(args.threads, args.steps or 1) < 1:
        raise InputError("--steps and --threads must be 1 or more")


def _write(args: argparse.Namespace) -> Result:
    check_output(args.out, args.force)
    name = args.model or DEFAULT
    published = MODELS[name]
    if args.artefact is None:
        check_artefacts(published.files)
    model = published.make(GGUFBase(find_base()), args.artefact or FOLDER)
    with atomic_directory(args.out, args.force) as directory:
        with progress("reference model", model.n_layers) as tick:
            write_reference(model, directory, tick)
        if args.artefact is None:
            digest = check_written(directory, published.tensors)
        else:
            digest = tensors_digest(directory)
    return {"model": name, "tensors_digest": digest, "verified": args.artefact is None}


def _train(args: argparse.Namespace) -> Result:
    # Training needs libraries that writing a model does not.
    from leanmoe_reference.training.run import Training, run, threads

    base = GGUFBase(find_base())
    texts = _texts(args, base)
    training = Training.of(args.train, args.out, args.seed, args.steps, texts, args.layers)
    with threads(args.threads):
        figures = run(training, base)
    return {"model": args.train, "artefact": figures["artefact"], "figures": figures}


def _texts(args: argparse.Namespace, base: GGUFBase) -> Path | None:
    folder: Path | None = args.fetch_texts
    if folder is None:
        texts: Path | None = args.texts
        return texts
    from leanmoe_reference.training.mix import build, save
    from leanmoe_reference.training.parent import base_tokenizer
    from leanmoe_reference.training.sources import fetch

    fetch(folder)
    save(build(folder, base_tokenizer(base)), folder)
    return folder


def _show(result: Result) -> str:
    if "figures" in result:
        changes = result["figures"]["against_moe"]
        worse = ", ".join(
            f"{name} {one['trained']['percent']:+.1f} %" for name, one in changes.items()
        )
        return (
            f"{result['model']} trained in {result['out']} ({result['seconds']} s); "
            f"held-out perplexity against it: {worse}; see figures.json and MODEL_CARD.md"
        )
    how = "digest verified" if result["verified"] else result["tensors_digest"]
    return f"reference MoE written to {result['out']} in {result['seconds']} s, {how}"


COMMAND = Command(
    name="reference",
    help="Write an embedded reference MoE (Mixtral's or Qwen2-MoE's shape), or train one.",
    example="leanmoe reference ./reference",
    add_arguments=_add_arguments,
    run=_run,
    show=_show,
)
