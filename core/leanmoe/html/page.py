"""How LeanMoE's HTML pages look: one style sheet, and SVG figures in the page's own colours.

Standard library only: the parts draw with Matplotlib and hand their figures over.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from typing import Any, Protocol

STYLE = """\
:root {
  color-scheme: light dark;
  --font: system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif;
  --page: #f6f7f9; --card: #ffffff; --ink: #1c2430; --soft: #5a6675; --line: #dde2e8;
  --main: #1f6feb; --second: #c2570c; --empty: #d5dbe3; --warn: #fff4e0; --warn-line: #e0a030;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #0f141b; --card: #171e27; --ink: #e4e9f0; --soft: #9aa7b6; --line: #2c3745;
    --main: #6aa7ff; --second: #ff9a52; --empty: #323d4b; --warn: #33270f; --warn-line: #a87820;
  }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); font: 16px/1.55 var(--font); }
main { max-width: 62rem; margin: 0 auto; padding: 2.5rem 1.25rem 4rem; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 .4rem; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 0 0 .6rem; }
p { margin: .4rem 0; }
.soft, figcaption { color: var(--soft); font-size: .9rem; }
section { background: var(--card); border: 1px solid var(--line); border-radius: 10px;
  padding: 1.25rem 1.4rem; margin-top: 1.1rem; }
section.warn { background: var(--warn); border-color: var(--warn-line); }
dl.key { display: grid; grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr)); gap: .7rem;
  margin: 1.3rem 0 0; }
dl.key div { background: var(--card); border: 1px solid var(--line); border-radius: 10px;
  padding: .7rem .9rem; }
dl.key dt { color: var(--soft); font-size: .82rem; }
dl.key dd { margin: 0; font-size: 1.15rem; font-weight: 600; overflow-wrap: anywhere; }
figure { margin: 0; overflow-x: auto; }
figure svg { display: block; max-width: 100%; height: auto; }
figcaption { margin-top: .5rem; }
.scroll { overflow-x: auto; }
code { font: .92em ui-monospace, "DejaVu Sans Mono", monospace; background: var(--page);
  padding: .05em .3em; border-radius: 4px; }
table { border-collapse: collapse; width: 100%; font-size: .9rem;
  font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .4rem .8rem .4rem 0; border-bottom: 1px solid var(--line);
  vertical-align: top; }
th { color: var(--soft); font-weight: 600; }
td.num { white-space: nowrap; }
td.clear { font-weight: 600; }
table.recipe th { width: 12rem; }
table.recipe td { overflow-wrap: anywhere; }
details summary { cursor: pointer; font-weight: 600; }
ul { margin: .3rem 0; padding-left: 1.2rem; }
.narrow { display: none; }
@media (max-width: 40rem) {
  main { padding: 1.2rem .6rem 2.5rem; }
  h1 { font-size: 1.45rem; }
  section { padding: .9rem .8rem; }
  dl.key { grid-template-columns: repeat(auto-fit, minmax(7.5rem, 1fr)); }
  .wide { display: none; }
  .narrow { display: block; }
  table { font-size: .8rem; }
  th, td { padding: .35rem .45rem .35rem 0; }
  .scroll td:first-child, .scroll th:first-child { position: sticky; left: 0;
    background: var(--card); }
  table.recipe th, table.recipe td:first-child { width: auto; min-width: 4.2rem; }
}
"""

# Stand-ins that `figure_svg` turns into the page's colours.
INK, LINE, MAIN, SECOND, EMPTY = "#010101", "#020202", "#030303", "#040404", "#050505"
_VARIABLES = {INK: "ink", LINE: "line", MAIN: "main", SECOND: "second", EMPTY: "empty"}
_FIGURE_SETTINGS: dict[str, object] = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 10,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": LINE,
    "axes.titlecolor": INK,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": LINE,
    "grid.linewidth": 0.6,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "legend.frameon": False,
    "legend.labelcolor": INK,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
}
FIGURE_WIDTH = 9.3  # inches, as wide as the page's column


class Savable(Protocol):
    """A Matplotlib figure, of which no more is known here."""

    @property
    def savefig(self) -> Callable[..., None]: ...


def figure_style(name: str) -> list[Any]:
    """What Matplotlib's ``style.context`` takes to draw the figure ``name`` for a page."""
    return ["default", {**_FIGURE_SETTINGS, "svg.hashsalt": name}]


def figure_svg(figure: Savable, name: str) -> str:
    """The figure for a page, its colours by the page's theme; two runs give the same bytes."""
    out = io.StringIO()
    metadata = {"Date": None, "Creator": None, "Format": None, "Type": None}
    figure.savefig(out, format="svg", metadata=metadata, bbox_inches="tight", pad_inches=0.05)
    text = out.getvalue()
    return _themed(text[text.index("<svg") :], name)


def _themed(svg: str, name: str) -> str:
    """Page colours, ids of the figure's own, and no size but its proportions."""
    for stand_in, variable in _VARIABLES.items():
        svg = svg.replace(stand_in, f"var(--{variable})")
    svg = re.sub(r'\b(id="|href="#|url\(#)', rf"\g<1>{name}-", svg)
    svg = re.sub(r"'DejaVu Sans', sans-serif|'DejaVu Sans'", "inherit-font", svg)
    svg = svg.replace("inherit-font", "var(--font)")
    return re.sub(r'(<svg[^>]*?) width="([\d.]+)pt" height="[\d.]+pt"', _sized, svg, count=1)


def _sized(found: re.Match[str]) -> str:
    return f'{found[1]} style="width: {float(found[2]) * 4 / 3:.0f}px"'
