"""The demo's result as a table a person understands."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from leanmoe_demo.story import GIVEN_UP, PATTERN, SERVED, TITLES

Line = tuple[str, ...]
Show = Callable[[float], str]
# Columns beside stock.
_OURS = ("lean", "sparse")
_NAMES = ("stock", *_OURS)


def _megabytes(value: float) -> str:
    return f"{value / 1e6:,.0f} MB"


def _times(value: float, stock: float) -> str:
    return f"{value / stock:.2f}x"


def _change(value: float, stock: float) -> str:
    return f"{value / stock - 1:+.1%}"


def _line(
    title: str, values: Sequence[float], show: Show, beside: Callable[[float, float], str]
) -> Line:
    """Each value, and what it is beside stock's, the first."""
    stock = values[0]
    pairs = [(show(value), beside(value, stock)) for value in values[1:]]
    return (title, show(stock), *(cell for pair in pairs for cell in pair))


def _sizes(result: dict[str, Any]) -> list[Line]:
    rows = [("size on disk", "disk_bytes"), ("weights", "weight_bytes")]
    rows.append(("resident memory", "resident_bytes"))
    return [
        _line(title, [result[name][key] for name in _NAMES], _megabytes, _times)
        for title, key in rows
    ]


def _perplexities(result: dict[str, Any], domains: tuple[str, ...]) -> list[Line]:
    return [
        _line(
            f"  {TITLES[domain]}",
            [result[name]["perplexity"][domain] for name in _NAMES],
            lambda value: f"{value:.2f}",
            _change,
        )
        for domain in domains
    ]


def _speed(load: dict[str, Any]) -> Line:
    cells = [f"{load['stock']['tokens_per_second']:.0f}"]
    for name in _OURS:
        found = load[name]
        cells += [f"{found['tokens_per_second']:.0f}", f"{found['ratio']:.2f}x"]
    return (f"tokens per second, {load['users']} users", *cells)


def _spread(load: dict[str, Any]) -> Line:
    ends = [f"{load[name]['ratio_low']:.2f} to {load[name]['ratio_high']:.2f}" for name in _OURS]
    return (f"  of {load['rounds']} rounds", "", "", ends[0], "", ends[1])


def render(result: dict[str, Any]) -> str:
    """The whole table with the chat answers below it."""
    load = result["load"]
    lines: list[Line] = [
        ("", "stock", "lean", "to stock", PATTERN, "to stock"),
        ("experts per layer", "8", "5", "", "8", ""),
        ("weights kept of an expert", "all", "all", "", "half", ""),
        *_sizes(result),
        ("perplexity, served",),
        *_perplexities(result, SERVED),
        ("perplexity, given up",),
        *_perplexities(result, GIVEN_UP),
        _speed(load),
        _spread(load),
        ("skip level", "-", f"{result['level']:g}", "", "0", ""),
        ("assignments skipped", "0 %", _share(load["lean"]), "", _share(load["sparse"])),
    ]
    table = "\n".join(map(_shown, lines))
    return "\n".join([table, "", *_promise(result), *_sparse_note(), *_answers(result)])


def _share(found: dict[str, float]) -> str:
    return f"{found['skip_rate']:.0%}"


def _shown(cells: Line) -> str:
    title, *rest = cells
    return f"{title:28}{''.join(f'{cell:>12}' for cell in rest)}".rstrip()


def _promise(result: dict[str, Any]) -> list[str]:
    point = result["promise"]
    return [
        f"At this level the lean checkpoint's KLD against itself without skipping is "
        f"{point['kld']:.4f} nats per token (95 % bound {point['kld_upper']:.4f}), "
        f"top-1 agreement {point['top1_agreement']:.1%}.",
        "",
    ]


def _sparse_note() -> list[str]:
    return [
        f"{PATTERN}: the whole model with 16 of every 32 weights of each expert, chosen in one "
        "pass over the same text and stored without the others; not distilled.",
        "",
    ]


def _answers(result: dict[str, Any]) -> list[str]:
    answers = [f"  {name}: {result[name]['answer']}" for name in _NAMES]
    return [f"Q: {result['question']}", *answers]
