"""Figures as SVG that a page takes in as it is: its own text, its colours by the page's theme.

Two runs give the same bytes: ids are hashed from the figure's name, and no date is written.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import PathPatch
from matplotlib.path import Path as Outline
from matplotlib.ticker import MaxNLocator, PercentFormatter

from leanmoe.curve import QualityCurve
from leanmoe.html.page import EMPTY, FIGURE_WIDTH, MAIN, SECOND, figure_style, figure_svg
from leanmoe_pruning.report.losses import LayerLosses

_CELL = 0.86  # of a square of the heat map


def losses_figure(losses: LayerLosses) -> str:
    """The cut's loss per layer against the range of the alternatives."""
    with style.context(figure_style("losses")):
        figure = Figure(figsize=(FIGURE_WIDTH, 3.0), layout="constrained")
        axes = figure.add_subplot()
        places = range(len(losses.layers))
        spans = [high - low for low, high in zip(losses.least, losses.most, strict=True)]
        axes.bar(places, spans, bottom=losses.least, width=0.7, color=EMPTY, label="all choices")
        axes.hlines(
            losses.median,
            [p - 0.35 for p in places],
            [p + 0.35 for p in places],
            color=SECOND,
            linewidth=1.4,
            label="their median",
        )
        axes.plot(places, losses.chosen, "o", color=MAIN, markersize=5, label="this cut")
        axes.margins(x=0.01)
        _ticks(axes, losses.layers)
        if min(losses.least) > 0 and max(losses.most) > 50 * min(losses.least):
            axes.set_yscale("log")
            axes.set_ylim(min(losses.least) / 1.4, max(losses.most) * 1.2)
        else:
            axes.set_ylim(bottom=0)
        axes.set_xlabel("decoder layer")
        axes.set_ylabel("loss")
        axes.grid(axis="x", visible=False)
        axes.legend(ncols=3, loc="lower right", bbox_to_anchor=(1.0, 1.0), fontsize=9)
        return figure_svg(figure, "losses")


def _ticks(axes: Axes, numbers: Sequence[int], vertical: bool = False) -> None:
    """Layers or experts by their numbers, not all where they are many."""
    step = max(1, -(-len(numbers) // 30))
    places = range(0, len(numbers), step)
    set_ticks = axes.set_yticks if vertical else axes.set_xticks
    set_ticks(list(places), [str(numbers[place]) for place in places], fontsize=9)


def kept_figure(kept: Mapping[int, Sequence[int]], n_experts: int) -> str:
    """Which source experts each layer keeps: a square per layer and expert."""
    layers = sorted(kept)
    # The longer side lies along the page.
    wide = n_experts > len(layers)
    there, gone = _cells(kept, n_experts, wide)
    columns, rows = (n_experts, len(layers)) if wide else (len(layers), n_experts)
    with style.context(figure_style("kept")):
        side = min(0.3, FIGURE_WIDTH / columns)
        figure = Figure(figsize=(columns * side + 0.6, rows * side + 0.6))
        axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
        for cells, colour, label in ((there, MAIN, "kept"), (gone, EMPTY, "cut")):
            if cells:
                patch = PathPatch(_squares(cells), facecolor=colour, linewidth=0, label=label)
                axes.add_patch(patch)
        axes.set_xlim(-0.6, columns - 0.4)
        axes.set_ylim(rows - 0.4, -0.6)
        axes.set_aspect("equal")
        _ticks(axes, layers, vertical=wide)
        _ticks(axes, range(n_experts), vertical=not wide)
        names = ("source expert", "decoder layer")
        axes.set_xlabel(names[0] if wide else names[1])
        axes.set_ylabel(names[1] if wide else names[0])
        axes.grid(visible=False)
        axes.spines[:].set_visible(False)
        axes.legend(ncols=2, loc="lower right", bbox_to_anchor=(1.0, 1.0), fontsize=9)
        return figure_svg(figure, "kept")


def _cells(
    kept: Mapping[int, Sequence[int]], n_experts: int, wide: bool
) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """Column and row of each kept expert, and of each that is gone."""
    there: list[tuple[int, int]] = []
    gone: list[tuple[int, int]] = []
    for place, layer in enumerate(sorted(kept)):
        held = set(kept[layer])
        for expert in range(n_experts):
            cell = (expert, place) if wide else (place, expert)
            (there if expert in held else gone).append(cell)
    return there, gone


def _squares(cells: Sequence[tuple[int, int]]) -> Outline:
    """All squares as one outline: a large model has some ten thousand."""
    half = _CELL / 2
    corners = [(-half, -half), (half, -half), (half, half), (-half, half), (-half, -half)]
    points = [(x + dx, y + dy) for x, y in cells for dx, dy in corners]
    codes = [Outline.MOVETO, Outline.LINETO, Outline.LINETO, Outline.LINETO, Outline.CLOSEPOLY]
    return Outline(points, codes * len(cells))


def curve_figure(curve: QualityCurve) -> str:
    """What skipping saves and costs, by level."""
    points = curve.points
    levels = [point.level for point in points]
    with style.context(figure_style("curve")):
        figure = Figure(figsize=(FIGURE_WIDTH, 2.9), layout="constrained")
        skipped, divergence, agreement = figure.subplots(1, 3)
        skipped.plot(levels, [point.skip_rate for point in points], "o-", color=MAIN, markersize=4)
        skipped.set_title("expert calls skipped")
        skipped.yaxis.set_major_formatter(PercentFormatter(1.0))
        divergence.fill_between(
            levels,
            [point.kld for point in points],
            [point.kld_upper for point in points],
            color=EMPTY,
            linewidth=0,
            label="95 % bound",
        )
        divergence.plot(levels, [point.kld for point in points], "o-", color=SECOND, markersize=4)
        divergence.set_title("KL divergence, nats per token")
        divergence.legend(loc="upper left", fontsize=9)
        same = [point.top1_agreement for point in points]
        agreement.plot(levels, same, "o-", color=MAIN, markersize=4)
        agreement.set_title("same top token")
        agreement.yaxis.set_major_formatter(PercentFormatter(1.0))
        for axes in (skipped, divergence, agreement):
            axes.set_xlabel("skip level")
            axes.set_xticks([0, 0.25, 0.5, 0.75, 1.0], ["0", "0.25", "0.5", "0.75", "1"])
            axes.yaxis.set_major_locator(MaxNLocator(5))
        for axes in (skipped, divergence):
            axes.set_ylim(bottom=0)
        return figure_svg(figure, "curve")
