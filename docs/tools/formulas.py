"""A hook of the site's build: formulas become MathML, which browsers draw by themselves.

Pages write formulas between dollar signs, as GitHub shows them too; arithmatex finds them and
this turns what it found into markup. No script is loaded and no font.
"""

from __future__ import annotations

import html
import re
from typing import Any

from latex2mathml.converter import convert

_FOUND = re.compile(
    r'<(?P<tag>span|div) class="arithmatex">\\[(\[](?P<tex>.*?)\\[)\]]</(?P=tag)>', re.DOTALL
)


def _mathml(found: re.Match[str]) -> str:
    display = "block" if found["tag"] == "div" else "inline"
    markup: str = convert(html.unescape(found["tex"]), display=display)
    return markup


def on_page_content(text: str, **_: Any) -> str:
    """MkDocs calls this with the HTML of each page."""
    return _FOUND.sub(_mathml, text)
