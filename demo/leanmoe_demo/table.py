"""The demo's result as a table a person understands."""

from __future__ import annotations

from typing import Any

from leanmoe_demo.story import GIVEN_UP, SERVED, TITLES

Line = tuple[str, str, str, str]


def _megabytes(value: float) -> str:
    return f"{value / 1e6:,.0f} MB"


def _sizes(result: dict[str, Any]) -> list[Line]:
    stock, lean = result["stock"], result["lean"]
    rows = [("size on disk", "disk_bytes"), ("weights", "weight_bytes")]
    rows.append(("resident memory", "resident_bytes"))
    return [
        (title, _megabytes(stock[key]), _megabytes(lean[key]), f"{lean[key] / stock[key]:.2f}x")
        for title, key in rows
    ]


def _perplexities(result: dict[str, Any], domains: tuple[str, ...]) -> list[Line]:
    stock, lean = result["stock"]["perplexity"], result["lean"]["perplexity"]
    return [
        (
            f"  {TITLES[name]}",
            f"{stock[name]:.2f}",
            f"{lean[name]:.2f}",
            f"{lean[name] / stock[name] - 1:+.1%}",
        )
        for name in domains
    ]


def _speed(load: dict[str, Any]) -> Line:
    return (
        f"tokens per second, {load['users']} users",
        f"{load['stock_tokens_per_second']:.0f}",
        f"{load['lean_tokens_per_second']:.0f}",
        f"{load['ratio']:.2f}x ({load['ratio_low']:.2f} to {load['ratio_high']:.2f})",
    )


def render(result: dict[str, Any]) -> str:
    """The whole table with the chat answers below it."""
    skip = result["load"]["skip_rate"]
    lines: list[Line] = [
        ("", "stock", "lean", "lean to stock"),
        ("experts per layer", "8", "5", ""),
        *_sizes(result),
        ("perplexity, served", "", "", ""),
        *_perplexities(result, SERVED),
        ("perplexity, given up", "", "", ""),
        *_perplexities(result, GIVEN_UP),
        _speed(result["load"]),
        ("skip level", "-", f"{result['level']:g}", ""),
        ("assignments skipped", "0 %", f"{skip:.0%}", ""),
    ]
    table = "\n".join(f"{a:28}{b:>12}{c:>12}   {d}" for a, b, c, d in lines)
    return "\n".join([table, "", *_promise(result), *_answers(result)])


def _promise(result: dict[str, Any]) -> list[str]:
    point = result["promise"]
    return [
        f"At this level the lean checkpoint's KLD against itself without skipping is "
        f"{point['kld']:.4f} nats per token (95 % bound {point['kld_upper']:.4f}), "
        f"top-1 agreement {point['top1_agreement']:.1%}.",
        "",
    ]


def _answers(result: dict[str, Any]) -> list[str]:
    answers = [f"  {name}: {result[name]['answer']}" for name in ("stock", "lean")]
    return [f"Q: {result['question']}", *answers]
