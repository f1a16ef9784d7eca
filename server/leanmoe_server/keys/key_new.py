"""``leanmoe key new``: a random key, shown once, and its hash for a key file."""

from __future__ import annotations

import argparse
from pathlib import Path

from leanmoe.command import Command, Result
from leanmoe.errors import InputError
from leanmoe.files.output import atomic_write_text
from leanmoe.files.text import user_text
from leanmoe_server.keys.keys import entry_of, new_key, parse_keys


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", help="whose key: an entry, a label of metrics")
    parser.add_argument(
        "--admin", action="store_true", help="for changes of the server, not for requests"
    )
    parser.add_argument("--file", type=Path, help="add the entry to this key file")


def _add_entry(file: Path, name: str, entry: str) -> None:
    """The file with one entry more, in place as a whole or not at all."""
    before = ""
    if file.exists():
        try:
            before = user_text(file)
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"--file {file} cannot be read: {error}") from None
    if any(key.name == name for key in parse_keys(before, str(file))):
        raise InputError(
            f"{file} has an entry for {name!r} already: leave --file out and put the new hash "
            'beside the old one (hash = ["sha256:…", "sha256:…"]) until the old key is gone'
        )
    gap = "\n" if before.strip() else ""
    mode = file.stat().st_mode if file.exists() else 0o600
    atomic_write_text(file, f"{before}{gap}{entry}", mode=0o600)
    file.chmod(mode & 0o777)


def _run(args: argparse.Namespace) -> Result:
    key = new_key()
    entry = entry_of(args.name, key, admin=args.admin)
    if args.file is not None:
        _add_entry(args.file, args.name, entry)
    file = None if args.file is None else str(args.file)
    return {"name": args.name, "admin": args.admin, "key": key, "entry": entry, "file": file}


def _show(result: Result) -> str:
    kept = (
        f"# {result['file']} holds the entry."
        if result["file"]
        else f"# For the key file:\n{result['entry'].rstrip()}"
    )
    return f"{result['key']}\n# That is the key of {result['name']}, shown only now.\n{kept}"


COMMAND = Command(
    name="key new",
    help="Make a random key. It is printed once; only its hash is kept.",
    example="leanmoe key new alice --file keys.toml",
    add_arguments=_add_arguments,
    run=_run,
    show=_show,
)
