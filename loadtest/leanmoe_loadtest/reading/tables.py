"""Tables of a load test's figures, for a terminal and for the page."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from leanmoe_loadtest.reading.checks import shown
from leanmoe_loadtest.stats import LATENCIES, PERCENTILES

_POINTS = ("mean", *(f"p{p}" for p in PERCENTILES), "max")
_NAMES = {
    "ttft_ms": "TTFT",
    "itl_ms": "ITL",
    "tpot_ms": "TPOT",
    "e2e_ms": "E2E",
    "late_ms": "late",
}
NONE = "-"


@dataclass(frozen=True)
class Table:
    """``head`` names the columns; the first one is text, the others are figures."""

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""
    wraps: bool = False  # cells are texts that may break, no figures

    def text(self) -> str:
        """Aligned columns for a terminal."""
        lines = [list(self.head), *map(list, self.rows)]
        widths = [max(len(line[column]) for line in lines) for column in range(len(self.head))]
        return "\n".join(
            "  ".join(
                cell.rjust(width) if column else cell.ljust(width)
                for column, (cell, width) in enumerate(zip(line, widths, strict=True))
            ).rstrip()
            for line in lines
        )


def number(value: float | None, form: str = ".1f") -> str:
    return NONE if value is None else format(value, form)


def percent(value: float | None) -> str:
    return NONE if value is None else f"{value:.1%}"


def interval(values: Mapping[str, Any], name: str) -> str:
    """A share with its 95 % interval."""
    if values[name] is None:
        return NONE
    low, high = values[f"{name}_low"], values[f"{name}_high"]
    return percent(values[name]) + (f" [{low:.1%}, {high:.1%}]" if low is not None else "")


def latencies(summary: Mapping[str, Any]) -> Table:
    """Percentiles of every latency, and of lateness in an open loop."""
    names = [*LATENCIES, *(["late_ms"] if summary.get("late_ms") else [])]
    rows = [
        [_NAMES[name], *(number((summary[name] or {}).get(point)) for point in _POINTS)]
        for name in names
    ]
    return Table("Latencies", ["ms", *_POINTS], rows, _latency_words(summary))


def _latency_words(summary: Mapping[str, Any]) -> str:
    count = summary["requests"]["completed"]
    late = " late: sent after its time." if summary.get("late_ms") else ""
    return (
        f"Of {count} completed requests. TTFT: from sending to the first piece of text. ITL: each "
        "gap between two pieces. TPOT: what came after the first token, by the tokens after the "
        f"first. E2E: to the end of the stream.{late}"
    )


def groups(summary: Mapping[str, Any], key: str, title: str) -> Table | None:
    """A row per level or endpoint; ``None`` where there is but one."""
    found = summary[key]
    if len(found) < 2:
        return None
    met = summary["goodput"] is not None
    head = [
        title.lower(),
        "completed",
        "failed",
        "tokens/s",
        *(f"{_NAMES[name]} {point}" for name in ("ttft_ms", "itl_ms", "e2e_ms") for point in _PAIR),
        *(["goodput"] if met else []),
    ]
    rows = [[name, *_group_cells(values, met)] for name, values in found.items()]
    return Table(f"By {title.lower()}", head, rows, "Latencies in ms.")


_PAIR = ("p50", "p95")


def _group_cells(values: Mapping[str, Any], met: bool) -> list[str]:
    return [
        str(values["requests"]["completed"]),
        str(values["requests"]["failed"]),
        number(values["output_tokens_per_second"]),
        *(
            number((values[name] or {}).get(point))
            for name in ("ttft_ms", "itl_ms", "e2e_ms")
            for point in _PAIR
        ),
        *([interval(values["goodput"], "share") if values["goodput"] else NONE] if met else []),
    ]


def sweep(summary: Mapping[str, Any]) -> Table | None:
    """A row per rate of a load that stepped through several."""
    found = summary["sweep"]
    if found is None or not found["steps"]:
        return None
    met = summary["goodput"] is not None
    head = ["requests/s", "completed/s", "tokens/s", "TTFT p50", "TTFT p95", "ITL p95", "E2E mean"]
    rows = [_step_cells(step, found["knee"], met) for step in found["steps"]]
    return Table("By rate", [*head, *(["goodput"] if met else [])], rows, _knee_words(found))


def _step_cells(step: Mapping[str, Any], knee: Mapping[str, Any] | None, met: bool) -> list[str]:
    at_knee = knee is not None and not knee["above"] and knee["rate"] == step["rate"]
    points = (("ttft_ms", "p50"), ("ttft_ms", "p95"), ("itl_ms", "p95"), ("e2e_ms", "mean"))
    return [
        f"{step['rate']:g}{' (knee)' if at_knee else ''}",
        number(step["requests_per_second"], ".2f"),
        number(step["output_tokens_per_second"]),
        *(number((step[name] or {}).get(point)) for name, point in points),
        *([percent(step["goodput"]["share"]) if step["goodput"] else NONE] if met else []),
    ]


def _knee_words(found: Mapping[str, Any]) -> str:
    return (
        f"Each rate for {found['step_seconds']:g} s; latencies in ms. Knee: the rate with the most "
        "requests completed per second for their mean time (Kleinrock's power)."
    )


def goodput(summary: Mapping[str, Any]) -> Table | None:
    """Who met the goals, and which goal the others broke."""
    met = summary["goodput"]
    if met is None:
        return None
    rows = [
        ["met every goal", f"{met['met']} of {met['met'] + met['missed']}"],
        ["share", interval(met, "share")],
        ["per second", number(met["requests_per_second"], ".3f")],
        *([f"broke {name}", str(count)] for name, count in met["broken"].items()),
        *([["cut off, undecided", str(met["undecided"])]] if met["undecided"] else []),
    ]
    return Table(f"Goodput: {met['slo']}", ["", "requests"], rows)


def server(summary: Mapping[str, Any]) -> Table | None:
    """What the server said of itself."""
    found = summary["server"]
    if found is None:
        return None
    gib = 2.0**-30
    rows = [
        _extremes("skip level", found["skip_level"], 1.0, ".2f"),
        _extremes("requests running", found["running"], 1.0, ".1f"),
        _extremes("requests waiting", found["waiting"], 1.0, ".1f"),
        _extremes("KV cache in use, %", found["kv_use"], 100.0, ".1f"),
        _extremes("resident memory, GiB", found["resident_bytes"], gib, ".2f"),
        _extremes("device memory, GiB", found["device_bytes"], gib, ".2f"),
        _total("expert calls skipped", percent(found["skip_rate"])),
        _total("distinct experts per step", number(found["distinct_experts_per_step"], ".2f")),
        _total("answer tokens generated", number(found["answer_tokens"], ".0f")),
        _total("preemptions", number(found["preemptions"], ".0f")),
        _total("level changes", number(found["level_changes"], ".0f")),
    ]
    kept = [row for row in rows if any(cell != NONE for cell in row[1:])]
    caption = f"From {found['readings']} readings of /metrics during the run."
    return Table("The server", ["", "min", "mean", "max", "in all"], kept, caption)


def _extremes(name: str, values: Mapping[str, float] | None, scale: float, form: str) -> list[str]:
    cells = [NONE if values is None else format(scale * values[key], form) for key in _MIN_MAX]
    return [name, *cells, NONE]


_MIN_MAX = ("min", "mean", "max")


def _total(name: str, text: str) -> list[str]:
    return [name, NONE, NONE, NONE, text]


def quality(summary: Mapping[str, Any]) -> Table | None:
    """Agreement of every level with the exact answers."""
    found = summary["quality"]
    if found is None:
        return None
    named = {"exact, again (noise)": found["noise"], **found["levels"]}
    rows = [
        [
            name,
            str(row["compared"]),
            interval(row, "exact_match"),
            interval(row, "agreement"),
            ", ".join(f"{level:g}" for level in row["applied_levels"]) or NONE,
        ]
        for name, row in named.items()
        if row is not None
    ]
    unit = next((row["unit"] for row in named.values() if row), "tokens")
    head = ["level", "prompts", "same answer", "agreement", "level applied"]
    caption = (
        f"Against the exact answers to {found['prompts']} fixed prompts ({found['prompt_set']}) at "
        f"temperature 0, {found['answer_tokens']} tokens each, asked after the load. Agreement: "
        f"share of the answer's {unit} before the first difference. In brackets 95 % intervals."
    )
    return Table("Quality", head, rows, caption)


def errors(summary: Mapping[str, Any]) -> Table | None:
    rows = [[name, str(count)] for name, count in summary["errors"].items()]
    return Table("Errors", ["", "requests"], rows) if rows else None


def recipe(summary: Mapping[str, Any]) -> Table:
    """What was run."""
    started = datetime.fromtimestamp(summary["started"], UTC).isoformat(timespec="seconds")
    named = {
        "server": summary["url"],
        "model": summary["model"],
        "load": load_words(summary),
        "endpoint": summary["endpoint"],
        "prompts": f"{summary['prompts']}, {summary['prompt_count']} of them",
        "levels": json.dumps(summary["levels"]) if summary["levels"] else "the server's",
        "settings": json.dumps(summary["settings"]),
        "seed": str(summary["seed"]),
        "workers": ", ".join(summary["workers"]) or NONE,
        "started": started,
        "versions": ", ".join(f"{name} {v}" for name, v in summary["versions"].items()),
    }
    return Table("What was run", ["", ""], list(map(list, named.items())), wraps=True)


def load_words(summary: Mapping[str, Any]) -> str:
    load = summary["arrivals"] or f"{summary['users']} users"
    return f"{summary['loop']} loop, {load}, {summary['duration_seconds']:g} s"


def ratios(found: Mapping[str, Any]) -> Table:
    """A comparison's rows."""
    rows = [
        [
            row["figure"],
            shown(row["figure"], row["a"]),
            shown(row["figure"], row["b"]),
            number(row["ratio"], ".3f"),
            f"[{row['low']:.3f}, {row['high']:.3f}]" if row["low"] is not None else NONE,
            "*" if row["clear"] else "",
        ]
        for row in found["rows"]
    ]
    caption = (
        f"Ratio: B over A. In brackets 95 % bootstrap intervals, {_pairing(found)}. "
        "*: the interval leaves out 1."
    )
    return Table("Ratios", ["figure", "A", "B", "B/A", "95 %", ""], rows, caption)


def _pairing(found: Mapping[str, Any]) -> str:
    return "paired by prompt" if found["paired"] else "of unpaired requests"


def steps(found: Mapping[str, Any]) -> Table:
    """A search's steps in the order they ran."""
    rows = [
        [
            f"{step['rate']:.4g}",
            interval(step, "share"),
            str(step["completed"]),
            str(step["failed"]),
            number(step["late_p95_ms"]),
            "yes" if step["holds"] else "no",
        ]
        for step in found["steps"]
    ]
    head = ["requests/s", "goodput", "completed", "failed", "late p95, ms", "holds"]
    return Table("Steps", head, rows, f"A step holds at a share of {found['target']:.0%} or more.")
