"""The rows of a run as tables for people."""

from __future__ import annotations

from collections.abc import Sequence

from leanmoe_bench.gpu.session import Row

_SPEED = f"{'measure':14}{'case':12}{'ratio':>7}  {'spread':16}{'target':>7}{'':5}{'skipped':>8}"
_HEAD = _SPEED + f"{'experts':>9}{'GPU busy':>15}{'of bandwidth':>15}{'ours':>11}{'stock':>11}"


def show(rows: Sequence[Row]) -> str:
    """How each part ended, what was checked, and one table of ratios for each part."""
    lines = [_ended(row) for row in rows if row["row"] == "part"]
    lines += [_checked(row) for row in rows if row["row"] in ("kernels", "layers", "check")]
    lines += [_launched(row) for row in rows if row["row"] == "launches"]
    lines += [_packed(row) for row in rows if row["row"] == "packed_kernel"]
    timed = [row for row in rows if row["row"] == "speed"]
    for part in dict.fromkeys(row["part"] for row in timed):
        lines += ["", part, _HEAD]
        lines += [_speed(row) for row in timed if row["part"] == part]
    return "\n".join(lines)


def _ended(row: Row) -> str:
    reason = f": {_first_line(row['reason'])}" if "reason" in row else ""
    return f"{row['part']:28}{row['status']} in {row['seconds']:.0f} s{reason}"


def _checked(row: Row) -> str:
    verdict = {True: "passed", False: "FAILED", None: row.get("status", "")}[row.get("passed")]
    name = row.get("check") or row.get("cell") or row["row"]
    reason = f": {_first_line(row['reason'])}" if "reason" in row else ""
    return f"{row['part']:28}{name:32}{verdict}{reason}"


def _launched(row: Row) -> str:
    more = row["more_per_layer"]
    return f"{row['part']:28}{row['measure']:14}{more:+.2f} launches a layer over stock at level 0"


def _packed(row: Row) -> str:
    spread = f"{row['low']:.2f} to {row['high']:.2f}"
    met = {True: " met", False: " NO", None: ""}[row["met"]]
    return (
        f"{row['shape']:10}{row['rows']:>4} tokens  {row['pattern']:8}{row['way']:8}"
        f"{row['ratio']:6.2f}x  {spread:14}{met:5}{row['of_copy']:6.2f} of a copy's speed"
        f"  dense {1e3 * row['dense_ms']:8.1f} us  error {row['error']:.4f}"
    )


def _speed(row: Row) -> str:
    if "ratio" not in row:
        return f"{'':14}{row['case']:12}{row['status']}: {_first_line(row['reason'])}"
    spread = f"{row['low']:.3f} to {row['high']:.3f}"
    met = {True: " met", False: " NO", None: ""}[row.get("met")]
    return (
        f"{row['measure']:14}{row['case']:12}{row['ratio']:7.3f}  {spread:16}"
        f"{_number(row, 'target', '.2f'):>7}{met:5}{_number(row, 'skip_rate', '.1%'):>8}"
        f"{_number(row, 'distinct', '.1f'):>9}{_both(row, 'gpu_busy'):>15}"
        f"{_both(row, 'of_bandwidth'):>15}{row['ours']:11.1f}{row['stock']:11.1f}"
    )


def _both(row: Row, what: str) -> str:
    """Ours and stock."""
    ours, stock = (_number(row, f"{arm}_{what}", ".0%") for arm in ("ours", "stock"))
    return f"{ours}, {stock}" if ours or stock else ""


def _number(row: Row, name: str, layout: str) -> str:
    return format(row[name], layout) if name in row else ""


def _first_line(text: str) -> str:
    return text.splitlines()[0][:160] if text else ""
