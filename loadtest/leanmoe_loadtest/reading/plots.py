"""Figures of a load test as SVG that a page takes in as it is."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullFormatter, PercentFormatter

from leanmoe.html.page import EMPTY, FIGURE_WIDTH, LINE, MAIN, SECOND, figure_style, figure_svg
from leanmoe_loadtest.reading.level_name import level_name
from leanmoe_loadtest.record import RequestRecord

# A hundred thousand points make a page that no browser likes.
_MOST_POINTS = 3000
_STYLES = ("-", "--", ":", "-.")
_LATENCIES: Mapping[str, Callable[[RequestRecord], Sequence[float | None]]] = {
    "time to first token": lambda record: [record.ttft_seconds],
    "gap between pieces of text": lambda record: record.itl_seconds,
    "time per output token": lambda record: [record.tpot_seconds],
    "whole request": lambda record: [record.e2e_seconds],
}
Drawn = Sequence[float | None]
# Inches: as wide as the column of a page on a phone, so that words keep their size.
_PHONE_WIDTH = 3.4


def _drawing(name: str, narrow: bool) -> str:
    """What a figure's ids begin with: both widths stand on one page."""
    return f"{name}-narrow" if narrow else name


def _width(narrow: bool) -> float:
    return _PHONE_WIDTH if narrow else FIGURE_WIDTH


def latencies_figure(records: Sequence[RequestRecord], narrow: bool = False) -> str:
    """For each latency, what share of the values lies below; a line per level."""
    groups: dict[str, list[RequestRecord]] = {}
    for record in records:
        if record.completed:
            groups.setdefault(level_name(record.level), []).append(record)
    name_of, count = _drawing("latencies", narrow), len(_LATENCIES)
    with style.context(figure_style(name_of)):
        figure = Figure(
            figsize=(_width(narrow), 1.9 * count if narrow else 2.7), layout="constrained"
        )
        panels = figure.subplots(*((count, 1) if narrow else (1, count)), sharey=True)
        for axes, (title, latency) in zip(panels, _LATENCIES.items(), strict=True):
            for place, name in enumerate(sorted(groups)):
                _distribution(axes, name, [latency(r) for r in groups[name]], place)
            axes.set_title(title, fontsize=9.5)
            axes.set_xlabel("ms")
            axes.xaxis.set_major_locator(MaxNLocator(4, min_n_ticks=2))
            axes.set_xlim(left=0)
        panels[0].yaxis.set_major_formatter(PercentFormatter(1.0))
        panels[0].set_ylim(0, 1.02)
        if len(groups) > 1:
            panels[-1].legend(fontsize=8, title="level", title_fontsize=8)
        return figure_svg(figure, name_of)


def _distribution(axes: Axes, name: str, rows: Sequence[Drawn], place: int) -> None:
    values = np.sort([1e3 * value for row in rows for value in row if value is not None])
    if not values.size:
        return
    shares = np.linspace(0, 1, min(values.size, 500) + 1)[1:]
    colour = (MAIN, SECOND)[place % 2]
    points = np.quantile(values, shares, method="inverted_cdf")
    axes.plot(points, shares, color=colour, linestyle=_STYLES[place // 2 % 4], label=name)


def timeline_figure(
    axis: Mapping[str, Any], records: Sequence[RequestRecord], narrow: bool = False
) -> str:
    """Client and server on one time axis: a row per subject, those without figures left out."""
    server = axis["server"]
    rows = [_load_row, _first_row, _gap_row, _tokens_row]
    if "skip_rate" in server or "skip_level" in server:
        rows.append(_skip_row)
    if "waiting" in server or "kv_use" in server:
        rows.append(_queue_row)
    if "resident_bytes" in server or "device_bytes" in server:
        rows.append(_memory_row)
    name, height = _drawing("timeline", narrow), 1.9 if narrow else 1.45
    # Beside the title where there is room.
    place = {"loc": "best"} if narrow else {"loc": "lower right", "bbox_to_anchor": (1.0, 0.98)}
    with style.context(figure_style(name)):
        figure = Figure(figsize=(_width(narrow), height * len(rows)), layout="constrained")
        panels = figure.subplots(len(rows), 1, sharex=True)
        for axes, row in zip(panels, rows, strict=True):
            row(axes, axis, records)
            axes.yaxis.set_major_locator(MaxNLocator(4))
            axes.set_ylim(bottom=0)
            if axes.get_legend_handles_labels()[0]:
                axes.legend(fontsize=8, ncols=1 if narrow else 3, **place)
        panels[-1].set_xlabel("seconds since the first request")
        panels[-1].set_xlim(0, axis["seconds"][-1] + axis["window_seconds"] / 2)
        return figure_svg(figure, name)


def _line(axes: Axes, axis: Mapping[str, Any], values: Drawn, colour: str, label: str) -> None:
    drawn = [np.nan if value is None else value for value in values]
    axes.plot(
        axis["seconds"], drawn, "o-", color=colour, markersize=2.5, linewidth=1.2, label=label
    )


def _load_row(axes: Axes, axis: Mapping[str, Any], _: Sequence[RequestRecord]) -> None:
    axes.set_title("load", fontsize=9.5)
    _line(axes, axis, axis["client"]["in_flight"], MAIN, "requests under way")
    _line(axes, axis, axis["client"]["requests_per_second"], SECOND, "sent per second")


def _first_row(axes: Axes, axis: Mapping[str, Any], records: Sequence[RequestRecord]) -> None:
    axes.set_title("time to first token, ms", fontsize=9.5)
    points = [
        (r.chunks[0] - axis["started"], 1e3 * r.ttft_seconds)
        for r in records
        if r.completed and r.ttft_seconds is not None
    ]
    if points:
        step = -(-len(points) // _MOST_POINTS)
        axes.plot(*zip(*points[::step], strict=True), "o", color=EMPTY, markersize=2.5, zorder=1)
    _line(axes, axis, axis["client"]["ttft_p50_ms"], MAIN, "p50")
    _line(axes, axis, axis["client"]["ttft_p95_ms"], SECOND, "p95")


def _gap_row(axes: Axes, axis: Mapping[str, Any], _: Sequence[RequestRecord]) -> None:
    axes.set_title("gap between pieces of text, ms", fontsize=9.5)
    _line(axes, axis, axis["client"]["itl_p50_ms"], MAIN, "p50")
    _line(axes, axis, axis["client"]["itl_p95_ms"], SECOND, "p95")


def _tokens_row(axes: Axes, axis: Mapping[str, Any], _: Sequence[RequestRecord]) -> None:
    axes.set_title("answer tokens per second", fontsize=9.5)
    _line(axes, axis, axis["client"]["output_tokens_per_second"], MAIN, "received")
    _server_line(axes, axis, "answer_tokens_per_second", SECOND, "generated, by the server")


def _server_line(
    axes: Axes, axis: Mapping[str, Any], name: str, colour: str, label: str, scale: float = 1.0
) -> None:
    if name not in axis["server"]:
        return
    # Readings may be further apart than windows: a window without one is no gap in the curve.
    pairs = zip(axis["seconds"], axis["server"][name], strict=True)
    points = [(at, scale * value) for at, value in pairs if value is not None]
    if points:
        axes.plot(
            *zip(*points, strict=True),
            "o-",
            color=colour,
            markersize=2.5,
            linewidth=1.2,
            label=label,
        )


def _skip_row(axes: Axes, axis: Mapping[str, Any], _: Sequence[RequestRecord]) -> None:
    axes.set_title("expert calls skipped, and the server's level", fontsize=9.5)
    _server_line(axes, axis, "skip_rate", MAIN, "share skipped")
    _server_line(axes, axis, "skip_level", SECOND, "level")


def _queue_row(axes: Axes, axis: Mapping[str, Any], _: Sequence[RequestRecord]) -> None:
    axes.set_title("requests waiting, and KV cache in use (right)", fontsize=9.5)
    _server_line(axes, axis, "waiting", MAIN, "waiting")
    if "kv_use" in axis["server"]:
        right = axes.twinx()
        _server_line(right, axis, "kv_use", SECOND, "KV cache")
        right.yaxis.set_major_formatter(PercentFormatter(1.0))
        right.set_ylim(bottom=0)
        right.grid(visible=False)


def _memory_row(axes: Axes, axis: Mapping[str, Any], _: Sequence[RequestRecord]) -> None:
    axes.set_title("memory, GiB", fontsize=9.5)
    _server_line(axes, axis, "resident_bytes", MAIN, "resident, all processes", 2.0**-30)
    _server_line(axes, axis, "device_bytes", SECOND, "on devices", 2.0**-30)


def tradeoff_figure(rows: Sequence[Mapping[str, Any]], narrow: bool = False) -> str:
    """Quality beside speed: a point per level."""
    name = _drawing("tradeoff", narrow)
    with style.context(figure_style(name)):
        figure = Figure(figsize=(_width(narrow), 5.0 if narrow else 3.0), layout="constrained")
        panels = figure.subplots(*((2, 1) if narrow else (1, 2)), sharey=True)
        for axes, key, title in zip(
            panels,
            ("itl_ms", "ttft_ms"),
            ("gap between pieces of text, p50, ms", "time to first token, p50, ms"),
            strict=True,
        ):
            for row in rows:
                if row[key] is not None:
                    _point(axes, row, row[key])
            axes.set_xlabel(title)
            axes.margins(x=0.25)
        panels[0].set_ylabel("agreement with exact")
        panels[0].yaxis.set_major_formatter(PercentFormatter(1.0))
        panels[0].set_ylim(0, 1.08)
        return figure_svg(figure, name)


def _point(axes: Axes, row: Mapping[str, Any], at: float) -> None:
    low, high = row["low"], row["high"]
    if low is not None and high is not None:
        axes.plot([at, at], [low, high], color=MAIN, linewidth=1.2)
    axes.plot([at], [row["agreement"]], "o", color=MAIN, markersize=5)
    axes.annotate(
        row["name"], (at, row["agreement"]), xytext=(6, 4), textcoords="offset points", fontsize=9
    )


def saturation_figure(found: Mapping[str, Any], narrow: bool = False) -> str:
    """Goodput of every step against its rate."""
    name = _drawing("saturation", narrow)
    with style.context(figure_style(name)):
        figure = Figure(figsize=(_width(narrow), 3.0), layout="constrained")
        axes = figure.add_subplot()
        for holds, colour, label in ((True, MAIN, "held"), (False, SECOND, "did not")):
            steps = [s for s in found["steps"] if s["holds"] is holds and s["share"] is not None]
            rates, shares = [s["rate"] for s in steps], [s["share"] for s in steps]
            axes.plot(rates, shares, "o", color=colour, label=label)
            axes.vlines(
                rates,
                [s["share_low"] for s in steps],
                [s["share_high"] for s in steps],
                color=colour,
            )
        axes.axhline(found["target"], color=LINE, linewidth=1.5, label="target")
        axes.set_xscale("log")
        rates = sorted({step["rate"] for step in found["steps"]})
        axes.set_xticks(rates, [f"{rate:.3g}" for rate in rates], fontsize=8, rotation=45)
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_ylim(0, 1.05)
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
        axes.set_xlabel("requests per second")
        axes.set_ylabel("requests that met every goal")
        axes.legend(fontsize=9, ncols=3, loc="lower right", bbox_to_anchor=(1.0, 1.0))
        return figure_svg(figure, name)


def ratios_figure(rows: Sequence[Mapping[str, Any]], narrow: bool = False) -> str:
    """Ratios with their intervals, one below the other."""
    drawn = [row for row in rows if row["ratio"] is not None]
    name = _drawing("ratios", narrow)
    with style.context(figure_style(name)):
        height = 0.24 * len(drawn) + 0.8
        figure = Figure(figsize=(_width(narrow), height), layout="constrained")
        axes = figure.add_subplot()
        for place, row in enumerate(drawn):
            colour = MAIN if row["clear"] else EMPTY
            if row["low"] is not None:
                axes.plot([row["low"], row["high"]], [place, place], color=colour, linewidth=3)
            axes.plot([row["ratio"]], [place], "o", color=SECOND, markersize=4)
        axes.axvline(1.0, color=LINE, linewidth=1.5)
        axes.set_yticks(range(len(drawn)), [row["figure"] for row in drawn], fontsize=8.5)
        axes.set_ylim(len(drawn) - 0.5, -0.5)
        axes.set_xlabel("B over A")
        axes.grid(axis="y", visible=False)
        return figure_svg(figure, name)


def sweep_figure(found: Mapping[str, Any], narrow: bool = False) -> str:
    """What got done and how long it took, at every rate; the knee as a line."""
    name, steps = _drawing("sweep", narrow), found["steps"]
    with style.context(figure_style(name)):
        figure = Figure(figsize=(_width(narrow), 5.2 if narrow else 2.9), layout="constrained")
        done, took = figure.subplots(*((2, 1) if narrow else (1, 2)))
        done.set_title("requests completed per second", fontsize=9.5)
        _curve(done, steps, lambda step: step["requests_per_second"], MAIN, "completed")
        took.set_title("latency, ms", fontsize=9.5)
        _curve(took, steps, lambda step: (step["ttft_ms"] or {}).get("p95"), MAIN, "TTFT p95")
        _curve(took, steps, lambda step: (step["e2e_ms"] or {}).get("mean"), SECOND, "E2E mean")
        took.set_yscale("log")
        took.legend(fontsize=8)
        for axes in (done, took):
            _mark_rates(axes, steps, found["knee"])
        return figure_svg(figure, name)


def _curve(
    axes: Axes,
    steps: Sequence[Mapping[str, Any]],
    value: Callable[[Mapping[str, Any]], float | None],
    colour: str,
    label: str,
) -> None:
    points = [(step["rate"], value(step)) for step in steps]
    known = sorted((rate, found) for rate, found in points if found)
    if known:
        axes.plot(*zip(*known, strict=True), "o-", color=colour, markersize=4, label=label)


def _mark_rates(
    axes: Axes, steps: Sequence[Mapping[str, Any]], knee: Mapping[str, Any] | None
) -> None:
    rates = sorted({step["rate"] for step in steps if step["rate"]})
    axes.set_xscale("log")
    axes.set_xticks(rates, [f"{rate:.3g}" for rate in rates], fontsize=8, rotation=45)
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("requests per second sent")
    if knee is not None and not knee["above"]:
        axes.axvline(knee["rate"], color=LINE, linewidth=2, zorder=0)
