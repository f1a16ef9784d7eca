"""The report: one HTML file that loads nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from leanmoe.html.page import STYLE
from leanmoe_loadtest.reading import plots, tables
from leanmoe_loadtest.reading.tables import Table
from leanmoe_loadtest.record import RequestRecord

Section = dict[str, Any]
# Draws a figure for a page's column, or narrow for a phone's.
Draw = Callable[[bool], str]


@lru_cache
def _environment() -> Environment:
    return Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )


def _render(
    title: str,
    subtitle: str,
    keys: Sequence[tuple[str, str]],
    notes: Sequence[str],
    sections: Sequence[Section | None],
) -> str:
    template = _environment().get_template("page.html.jinja")
    return template.render(
        title=title,
        subtitle=subtitle,
        keys=keys,
        notes=notes,
        sections=[section for section in sections if section is not None],
        style=Markup(STYLE),
    )


def _both(draw: Draw | None) -> Markup | None:
    """A figure in both widths; the style sheet shows the one that fits the screen."""
    if draw is None:
        return None
    shown = zip(("wide", "narrow"), (draw(False), draw(True)), strict=True)
    return Markup("").join(Markup(f'<div class="{name}">{svg}</div>') for name, svg in shown)


def _section(table: Table | None, draw: Draw | None = None) -> Section | None:
    if table is None:
        return None
    return {
        "title": table.title,
        "head": table.head,
        "rows": table.rows,
        "caption": table.caption,
        "figure": _both(draw),
        "wraps": table.wraps,
    }


def _drawn(title: str, draw: Draw, caption: str) -> Section:
    empty = {"rows": [], "head": [], "wraps": False}
    return {"title": title, "figure": _both(draw), "caption": caption, **empty}


def run_page(summary: Mapping[str, Any], records: Sequence[RequestRecord]) -> str:
    """The page of one run."""
    return _render(
        f"Load test of {summary['model']}",
        f"{tables.load_words(summary)}, at {summary['url']}",
        _keys(summary),
        summary["notes"],
        _run_sections(summary, records),
    )


def _keys(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    met, counts = summary["goodput"], summary["requests"]
    ended = counts["completed"] + counts["failed"]
    shown = [
        ("completed requests", f"{counts['completed']} of {ended + counts['unfinished']}"),
        ("answer tokens per second", tables.number(summary["output_tokens_per_second"])),
        ("requests per second", tables.number(summary["requests_per_second"], ".2f")),
        ("TTFT p95", f"{tables.number((summary['ttft_ms'] or {}).get('p95'))} ms"),
        ("ITL p95", f"{tables.number((summary['itl_ms'] or {}).get('p95'))} ms"),
    ]
    if met is not None:
        shown.append(("goodput", tables.percent(met["share"])))
    knee = (summary["sweep"] or {}).get("knee")
    if knee is not None:
        shown.append(("knee", f"{'above ' * knee['above']}{knee['rate']:g} requests/s"))
    server = summary["server"]
    if server is not None and server["skip_rate"] is not None:
        shown.append(("expert calls skipped", tables.percent(server["skip_rate"])))
    return shown


def _run_sections(
    summary: Mapping[str, Any], records: Sequence[RequestRecord]
) -> list[Section | None]:
    axis = summary["timeline"]
    return [
        _section(tables.latencies(summary), partial(plots.latencies_figure, records)),
        _section(tables.sweep(summary), partial(plots.sweep_figure, summary["sweep"])),
        _section(tables.goodput(summary)),
        _drawn(
            "On the time axis", partial(plots.timeline_figure, axis, records), _axis_words(axis)
        ),
        _section(tables.groups(summary, "by_level", "Level")),
        _section(tables.groups(summary, "by_endpoint", "Endpoint")),
        _section(tables.quality(summary), _tradeoff(summary)),
        _section(tables.server(summary)),
        _section(tables.errors(summary)),
        _section(tables.recipe(summary)),
    ]


def _axis_words(axis: Mapping[str, Any]) -> str:
    return (
        f"Points are windows of {axis['window_seconds']:.3g} s; grey points are single requests. "
        "Client and server figures share the clock of the machine that ran the load."
    )


def _tradeoff(summary: Mapping[str, Any]) -> Draw | None:
    """A point per level that was both loaded and compared."""
    quality = summary["quality"]
    if quality is None or not quality["skipping"]:
        return None
    compared = {"off": quality["noise"], **quality["levels"]}
    rows = [
        {
            "name": name,
            "agreement": row["agreement"],
            "low": row["agreement_low"],
            "high": row["agreement_high"],
            **{
                key: (summary["by_level"][name][key] or {}).get("p50")
                for key in ("itl_ms", "ttft_ms")
            },
        }
        for name, row in compared.items()
        if row is not None and row["agreement"] is not None and name in summary["by_level"]
    ]
    return partial(plots.tradeoff_figure, rows) if len(rows) > 1 else None


def comparison_page(found: Mapping[str, Any]) -> str:
    """The page of two loads side by side."""
    sides = Table(
        "The sides",
        ["", "A", "B"],
        [[name, *(_side_words(found[side][name]) for side in "ab")] for name in found["a"]],
        wraps=True,
    )
    models = sorted({*found["a"]["models"], *found["b"]["models"]})
    return _render(
        "Two loads compared",
        f"B over A, of {', '.join(models)}",
        [],
        found["notes"],
        [
            _section(tables.ratios(found), partial(plots.ratios_figure, found["rows"])),
            _section(sides),
        ],
    )


def _side_words(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def saturation_page(
    found: Mapping[str, Any], best: Mapping[str, Any] | None, records: Sequence[RequestRecord]
) -> str:
    """The page of a search, with the run at the rate it found."""
    rate, fails = found["rate"], found["fails_at"]
    keys = [
        ("highest rate that holds", f"{tables.number(rate, '.4g')} requests/s"),
        ("fails at", f"{tables.number(fails, '.4g')} requests/s"),
        ("goodput there", f"{tables.number(found['goodput_per_second'], '.4g')} requests/s"),
        ("held again", "yes" if found["confirmed"] else "no"),
    ]
    search = _section(tables.steps(found), partial(plots.saturation_figure, found))
    return _render(
        f"Saturation of {found['model']}",
        f"{found['slo']}, at {found['url']}",
        keys,
        [*found["notes"], *(best["notes"] if best else [])],
        [search, *(_run_sections(best, records) if best else [])],
    )
