"""Arguments that several offline commands share."""

from __future__ import annotations

import argparse
from pathlib import Path

from leanmoe_pruning.data import DEFAULT_WINDOW
from leanmoe_pruning.data.spec import HELP


def add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", type=Path, metavar="MODEL", help="checkpoint directory")


def add_data(parser: argparse.ArgumentParser, required: bool = True) -> None:
    parser.add_argument("--data", required=required, metavar="SPEC", help=HELP)
    parser.add_argument(
        "--window",
        type=int,
        default=DEFAULT_WINDOW,
        metavar="TOKENS",
        help=f"length text is cut into (default {DEFAULT_WINDOW})",
    )


def add_compute(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--compute",
        choices=("float32", "bfloat16"),
        help="dtype of matrix products (default: float32 for float32 weights, else bfloat16)",
    )


def add_output(parser: argparse.ArgumentParser, what: str) -> None:
    parser.add_argument("-o", "--out", type=Path, required=True, metavar="OUT", help=what)
    parser.add_argument("--force", action="store_true", help="replace OUT if it exists")
