"""Templates filled in: the card as Markdown, the page as HTML."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from leanmoe.html.page import STYLE
from leanmoe.manifest import NO_CUT
from leanmoe_pruning.report.content import Content
from leanmoe_pruning.report.losses import LayerLosses

MARK = "<!-- leanmoe report wrote this file -->"


def _cell(text: object) -> str:
    """Text that cannot end a Markdown table's cell or begin an HTML tag."""
    plain = " ".join(str(text).split())
    return plain.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;")


def _code(text: str) -> Markup:
    """Text for a page, what stands between backticks as code."""
    parts = [escape(part) for part in text.split("`")]
    return Markup("").join(
        Markup("<code>{}</code>").format(part) if place % 2 else part
        for place, part in enumerate(parts)
    )


@lru_cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=lambda name: name is not None and ".html" in name,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["cell"] = _cell
    environment.filters["code"] = _code
    return environment


def render_card(content: Content, inherited: dict[str, Any]) -> str:
    """``README.md``; ``inherited`` is metadata of the source's own card, such as its licence."""
    metadata = yaml.safe_dump(
        {**inherited, **_metadata(content)}, sort_keys=True, allow_unicode=True
    )
    template = _environment().get_template("card.md.jinja")
    return template.render(c=content, metadata=metadata, mark=MARK)


def _metadata(content: Content) -> dict[str, Any]:
    tags = ["leanmoe", "mixture-of-experts", content.family]
    if content.manifest.method != NO_CUT:
        tags += ["pruning", content.manifest.method]
    base = {} if content.source is None else {"base_model": content.source}
    return {
        **base,
        "tags": tags,
        # Where layers differ transformers refuses the checkpoint.
        "library_name": "transformers" if content.loads_in_stock else "leanmoe",
        "pipeline_tag": "text-generation",
    }


def render_page(content: Content, losses: LayerLosses | None) -> str:
    """The page: one file that needs nothing else."""
    # Here and not above: the card alone needs no plots.
    from leanmoe_pruning.report import plots

    kept, count = content.manifest.kept, content.source_experts
    curve = content.manifest.curve
    figures = {
        "losses": None if losses is None else Markup(plots.losses_figure(losses)),
        "kept": Markup(plots.kept_figure(kept, count)) if kept and count else None,
        "curve": None if curve is None else Markup(plots.curve_figure(curve)),
    }
    template = _environment().get_template("page.html.jinja")
    return template.render(c=content, losses=losses, figures=figures, style=Markup(STYLE))
