"""A plan as people read it."""

from __future__ import annotations

from io import StringIO
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from leanmoe_pruning.amounts import show_bytes, show_numbers, show_seconds
from leanmoe_pruning.planning.preview import preview_lines

_WIDTH = 140
Facts = dict[str, Any]


def render(result: Facts) -> str:
    """Header, table and footnotes."""
    written = StringIO()
    console = Console(file=written, width=_WIDTH, no_color=True, highlight=False)
    console.print(_head(result), markup=False)
    console.print(_table(result["rows"]))
    console.print(_foot(result), markup=False)
    return "\n".join(line.rstrip() for line in written.getvalue().splitlines())


def _head(result: Facts) -> str:
    return (
        f"{result['model']}: {result['family']}, {result['moe_layers']} layers of "
        f"{result['n_routed_experts']} experts, top-{result['top_k']}, "
        f"{show_bytes(result['weight_bytes'])} of weights"
    )


def _table(rows: list[Facts]) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for title in ("methods", "budget", "file", "of it", "RAM*", "disk*", "time*"):
        table.add_column(title, justify="left" if title in ("methods", "budget") else "right")
    for title in ("serve*", "top-k", "loads in", "EP"):
        table.add_column(title, justify="right" if title == "serve*" else "left")
    for row in rows:
        table.add_row(*_cells(row))
    return table


def _cells(row: Facts) -> tuple[str, ...]:
    make = row.get("make")
    making = (
        (
            show_bytes(make["ram_bytes"]),
            show_bytes(make["disk_bytes"]),
            "?" if make["seconds"] is None else show_seconds(make["seconds"]),
        )
        if make
        else ("", "", "")
    )
    return (
        ", ".join(row["methods"]) or row["kind"],
        _budget(row),
        show_bytes(row["weight_bytes"]),
        f"{row['share_of_source']:.0%}",
        *making,
        show_bytes(row["serve"]["total_bytes"]),
        _span(row["reachable_top_k"]),
        row["loads_in"],
        show_numbers(row["expert_parallel"]),
    )


def _budget(row: Facts) -> str:
    budget = row["budget"]
    if "condensed_layers" in budget:
        return f"{budget['condensed_layers']} layers"
    if "pattern" in budget:
        return f"{budget['pattern']} packed"
    packed = " packed" if "packed" in budget else ""
    return f"keep {budget['keep']}{packed}" if budget else ""


def _span(numbers: list[int]) -> str:
    if not numbers:
        return "none"
    return str(numbers[0]) if len(numbers) == 1 else f"{numbers[0]} to {numbers[-1]}"


def _rate(result: Facts) -> str:
    known = result["tflops"] is not None
    return f" at {result['tflops']:.3g} TFLOP/s ({result['tflops_from']})" if known else ""


def _tensor_parallel(result: Facts) -> str:
    """Those of the model, and of rows that are packed where these are fewer."""
    own = result["tensor_parallel"]
    fewer = [row["tensor_parallel"] for row in result["rows"] if row["tensor_parallel"] < own]
    packed = f" (packed: {show_numbers(fewer[0])})" if fewer else ""
    return f"{show_numbers(own)}{packed}"


def _foot(result: Facts) -> str:
    lines = [
        f"* estimates. RAM, disk, time: to make it from {result['tokens']} tokens{_rate(result)}; "
        "files are read and written beside that.",
        f"  serve: weights, {show_bytes(result['kv_bytes_per_1k_tokens'])} of KV per 1,000 tokens "
        f"of a sequence, for {result['kv_tokens']} tokens in all, and room to work in.",
        f"tensor-parallel sizes: {_tensor_parallel(result)}. EP: expert-parallel "
        "sizes that divide every layer's experts. top-k: what a plan may lower it to.",
        *result["notes"],
        *(preview_lines(result["preview"]) if "preview" in result else ()),
    ]
    return "\n".join(lines)
