"""Carry out the Dockerfile without a container engine, and try what comes of it.

    python packaging/image/rehearse.py build WORK [--target cpu]
    python packaging/image/rehearse.py try WORK --model DIR

``build`` makes one directory tree per stage under WORK: debootstrap for the base, chroot for RUN,
the context less what .dockerignore names for COPY. ``try`` serves a model from the tree of the
target, root read-only, as a user without a name, asks its health check and for one answer, and
stops it. Needs root; the packages come from where apt and pip get them.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from docker.utils.build import exclude_paths

from recipe import (
    Copy,
    Stage,
    assignment,
    caches_and_command,
    copy_of,
    pairs,
    read_stages,
    substitute,
    words,
)
from tree import Mount, copy_into, copy_tree, enter, make_debian, remove_tree
from trial import try_image

ROOT = Path(__file__).resolve().parents[2]
MARK = ".rehearsal"
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass
class Image:
    """What a stage's instructions leave behind beside its files."""

    root: str
    env: dict[str, str] = field(default_factory=lambda: {"PATH": _PATH})
    labels: dict[str, str] = field(default_factory=dict)
    user: str = "0:0"
    folder: str = "/"
    entrypoint: list[str] = field(default_factory=list)
    command: list[str] = field(default_factory=list)
    health: list[str] = field(default_factory=list)


@dataclass
class Builder:
    """Makes stages one after another; a stage that nothing needs is not made."""

    work: Path
    stages: Mapping[str, Stage]
    arguments: Mapping[str, str]
    passed: Mapping[str, str]  # variables of this machine that RUN sees too
    mounts: list[Mount]
    images: dict[str, Image] = field(default_factory=dict)
    context_made: bool = False

    def make(self, name: str) -> Image:
        """The finished stage ``name``: kept from an earlier run if nothing of it has changed."""
        if name not in self.images:
            stage, note = self.stages[name], self.work / f"{name}.json"
            key = self.key(name)
            if note.exists() and (kept := json.loads(note.read_text()))["key"] == key:
                print(f"== {name}: as it was", flush=True)
                self.images[name] = Image(**kept["image"])
            else:
                note.unlink(missing_ok=True)
                remove_tree(self.work / name)
                self.images[name] = self._make(stage)
                note.write_text(json.dumps({"key": key, "image": asdict(self.images[name])}))
        return self.images[name]

    def key(self, name: str) -> str:
        """A digest of all that decides what a stage holds: steps, files, arguments, its base."""
        sha = hashlib.sha256(json.dumps(sorted(self.arguments.items())).encode())
        stage = self.stages[name]
        sha.update((self.key(stage.base) if stage.base in self.stages else stage.base).encode())
        for step in stage.steps:
            sha.update(f"{step.keyword} {step.value}\n".encode())
            if step.keyword == "COPY":
                self._add_copied(copy_of(step.value), sha)
        return sha.hexdigest()

    def _add_copied(self, copy: Copy, sha: hashlib._Hash) -> None:
        if copy.stage is not None:
            sha.update(self.key(copy.stage).encode())
            return
        for name in context_files():
            if any(Path(name).is_relative_to(source) for source in copy.sources):
                sha.update(name.encode() + (ROOT / name).read_bytes())

    def _make(self, stage: Stage) -> Image:
        root = self.work / stage.name
        if stage.base in self.stages:
            base = self.make(stage.base)
            copy_tree(Path(base.root), root)
            image = Image(**{**asdict(base), "root": str(root)})
        else:
            print(f"== {stage.name}: {stage.base} by debootstrap", flush=True)
            make_debian(stage.base, root)
            image = Image(str(root))
        values: dict[str, str] = {}
        for step in stage.steps:
            print(f"== {stage.name}: {step.keyword} {step.value[:100]}", flush=True)
            self._take(step.keyword, step.value, image, values)
        return image

    def _take(self, keyword: str, value: str, image: Image, values: dict[str, str]) -> None:
        match keyword:
            case "ARG":
                values |= assignment(value, self.arguments)
            case "ENV":
                image.env |= pairs(substitute(value, {**values, **image.env}))
            case "LABEL":
                image.labels |= pairs(substitute(value, values))
            case "COPY":
                self._copy(value, Path(image.root))
            case "RUN":
                self._run(value, image, values)
            case "WORKDIR":
                image.folder = value
                Path(f"{image.root}{value}").mkdir(parents=True, exist_ok=True)
            case "USER":
                image.user = value
            case "ENTRYPOINT":
                image.entrypoint = words(value)
            case "CMD":
                image.command = words(value)
            case "HEALTHCHECK":
                image.health = words(value)
            case "EXPOSE":
                pass
            case _:
                raise SystemExit(f"{keyword} is not known to the rehearsal; teach it in {__file__}")

    def _copy(self, value: str, root: Path) -> None:
        copy = copy_of(value)
        source = self._context() if copy.stage is None else Path(self.make(copy.stage).root)
        for name in copy.sources:
            place = source / name.lstrip("/")
            inside = copy.target.endswith("/") and not place.is_dir()
            copy_into(place, Path(f"{root}{copy.target}") / (place.name if inside else ""))

    def _context(self) -> Path:
        """The build context: a copy of the project less what .dockerignore leaves out."""
        folder = self.work / "context"
        if not self.context_made:
            remove_tree(folder)
            for name in context_files():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, folder / name)
            self.context_made = True
        return folder

    def _run(self, value: str, image: Image, values: Mapping[str, str]) -> None:
        caches, command = caches_and_command(value)
        mounts = [Mount(Path("/etc/resolv.conf"), "/etc/resolv.conf"), *self.mounts]
        for cache in caches:
            folder = self.work / "caches" / cache.strip("/").replace("/", "-")
            folder.mkdir(parents=True, exist_ok=True)
            mounts.append(Mount(folder, cache, writable=True))
        line = enter(
            Path(image.root),
            ["/bin/sh", "-c", command],
            environment={**image.env, "HOME": "/root", **values, **self.passed},
            mounts=mounts,
            folder=image.folder,
        )
        if code := subprocess.run(line, check=False).returncode:
            raise SystemExit(f"RUN {command} ended with exit code {code}; see above")


def context_files() -> list[str]:
    """The files that ``docker build`` would send, by .dockerignore."""
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    patterns = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    return sorted(name for name in exclude_paths(str(ROOT), patterns) if (ROOT / name).is_file())


def build(args: argparse.Namespace) -> None:
    """Make the target's tree, and whatever stages it needs."""
    arguments = dict(one.split("=", 1) for one in args.build_arg)
    stages = {stage.name: stage for stage in read_stages(ROOT / "Dockerfile", arguments)}
    if args.target not in stages:
        raise SystemExit(f"the Dockerfile has no stage {args.target}; it has {', '.join(stages)}")
    if args.work.exists() and any(args.work.iterdir()) and not (args.work / MARK).exists():
        raise SystemExit(f"{args.work} is not empty and not of a rehearsal; give a new folder")
    args.work.mkdir(parents=True, exist_ok=True)
    (args.work / MARK).touch()
    passed = {name: os.environ[name] for name in args.env if name in os.environ}
    mounts = [Mount(Path(source), target) for source, _, target in map(_split, args.bind)]
    image = Builder(args.work.resolve(), stages, arguments, passed, mounts).make(args.target)
    print(f"{image.root} is made")


def _split(bind: str) -> tuple[str, str, str]:
    source, colon, target = bind.partition(":")
    return source, colon, target or source


def attempt(args: argparse.Namespace) -> None:
    """Serve ``--model`` from the tree and print what it answered."""
    note = args.work / f"{args.target}.json"
    if not note.exists():
        raise SystemExit(
            f"{args.work} holds no finished {args.target}; run `rehearse.py build` first"
        )
    image = Image(**json.loads(note.read_text())["image"])
    print(json.dumps(try_image(image, args.model.resolve(), args.work / "serve.log"), indent=2))


def main() -> None:
    """Build or try."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    actions = parser.add_subparsers(required=True)
    making = actions.add_parser("build", help="carry out the Dockerfile under WORK")
    making.add_argument("--build-arg", action="append", default=[], metavar="NAME=VALUE")
    making.add_argument("--bind", action="append", default=[], metavar="PATH[:INSIDE]")
    making.add_argument("--env", action="append", default=[], metavar="NAME")
    making.set_defaults(run=build)
    trying = actions.add_parser("try", help="serve a model from what was built")
    trying.add_argument("--model", type=Path, required=True)
    trying.set_defaults(run=attempt)
    for action in (making, trying):
        action.add_argument("work", type=Path, metavar="WORK")
        action.add_argument("--target", default="cpu")
    args = parser.parse_args()
    if os.geteuid() != 0:
        raise SystemExit("rehearse.py mounts and changes root, so it needs to be run by root")
    args.run(args)


if __name__ == "__main__":
    main()
