"""Read documents out of the fetched packages: pages, message catalogues, code, dictionaries."""

from __future__ import annotations

import gettext
import gzip
import html.parser
import json
import re
import sqlite3
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

MESSAGES_PER_DOCUMENT = 24
_BLOCKS = {"p", "li", "h1", "h2", "h3", "h4", "dt", "dd", "tr", "pre", "div", "td", "br"}
_SILENT = {"script", "style", "head", "title"}
_VOID = {"br", "hr", "img", "input", "meta", "link"}


@dataclass(frozen=True)
class Document:
    """A text and the name that decides on which side of the split it falls."""

    name: str
    text: str
    between: str = "\n"  # what parts its paragraphs: code is compared by block


class _Text(html.parser.HTMLParser):
    """The text of the element whose id or class is ``inside``, one paragraph per block."""

    def __init__(self, inside: str) -> None:
        super().__init__()
        self._inside, self._depth, self._silent = inside, 0, 0
        self._parts: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in _VOID:
            self._parts.append("\n" if tag == "br" and self._depth else "")
            return
        if self._depth or self._inside in {v for k, v in attrs if k in ("id", "class")}:
            self._depth += 1
        self._silent += tag in _SILENT
        if self._depth and tag in _BLOCKS:
            self._parts.append("\n")

    def handle_endtag(self, tag: str) -> None:
        if tag in _VOID:
            return
        if self._depth and tag in _BLOCKS:
            self._parts.append("\n")
        self._depth = max(0, self._depth - 1)
        self._silent -= tag in _SILENT

    def handle_data(self, data: str) -> None:
        if self._depth and not self._silent:
            self._parts.append(data)

    def text(self) -> str:
        lines = ("".join(self._parts)).split("\n")
        return tidy(" ".join(line.split()) for line in lines)


def tidy(lines: Iterable[str]) -> str:
    """Lines without the empty ones."""
    return "\n".join(line for line in lines if line.strip())


def pages(root: Path, inside: str, language: str = "") -> Iterator[Document]:
    """HTML pages of a manual; with ``language`` only those that say they are written in it."""
    for path in sorted(root.rglob("*.html")):
        content = path.read_text(encoding="utf-8", errors="replace")
        if language and f'lang="{language}"' not in content[:400]:
            continue
        parser = _Text(inside)
        parser.feed(content)
        yield Document(f"{root.name}/{path.relative_to(root)}", parser.text())


def files(root: Path, pattern: str, lines: int = 0) -> Iterator[Document]:
    """Whole text files; with ``lines`` only that many from the middle of longer ones."""
    for path in sorted(root.rglob(pattern)):
        if not path.is_file():
            continue
        text = path.read_text(encoding="utf-8", errors="replace").splitlines()
        start = max(0, (len(text) - lines) // 2) if lines else 0
        body = text[start : start + lines] if lines else text
        yield Document(f"{root.name}/{path.relative_to(root)}", "\n".join(body), between="\n\n")


def compiled_messages(root: Path, language: str) -> Iterator[Document]:
    """Translations of GNU message catalogues below ``root``."""
    for path in sorted(root.rglob(f"locale/{language}/LC_MESSAGES/*.mo")):
        with path.open("rb") as file:
            catalogue = gettext.GNUTranslations(file)._catalog  # type: ignore[attr-defined]
        yield from _message_documents(path.stem, (str(v) for k, v in catalogue.items() if k))


def source_messages(root: Path, pattern: str) -> Iterator[Document]:
    """Translations of .po files below ``root``."""
    for path in sorted(root.rglob(pattern)):
        text = path.read_text(encoding="utf-8", errors="replace")
        found = re.findall(r'^msgstr(?:\[\d\])? ((?:"(?:[^"\\]|\\.)*"\n?)+)', text, re.MULTILINE)
        strings = ("".join(re.findall(r'"((?:[^"\\]|\\.)*)"', one)) for one in found[1:])
        name = "-".join(path.relative_to(root).parts[-5:])
        yield from _message_documents(name, (_unescape(one) for one in strings))


def json_messages(root: Path) -> Iterator[Document]:
    """Translations of a JupyterLab language pack."""
    for path in sorted(root.rglob("*.json")):
        content = json.loads(path.read_text(encoding="utf-8"))
        strings = [value[0] for key, value in content.items() if key and isinstance(value, list)]
        yield from _message_documents(path.stem, strings)


def _unescape(text: str) -> str:
    return text.replace("\\n", "\n").replace('\\"', '"').replace("\\t", "\t").replace("\\\\", "\\")


def _message_documents(name: str, messages: Iterable[str]) -> Iterator[Document]:
    kept = [message.strip() for message in messages if len(message.split()) >= 3]
    for start in range(0, len(kept), MESSAGES_PER_DOCUMENT):
        text = tidy("\n".join(kept[start : start + MESSAGES_PER_DOCUMENT]).splitlines())
        yield Document(f"{name}#{start:05d}", text)


def dictionary(path: Path) -> Iterator[Document]:
    """Entries of a dictd file, a dozen per document."""
    text = gzip.decompress(path.read_bytes()).decode("utf-8", errors="replace")
    entries = re.split(r"\n(?=\S)", text)
    kept = [" ".join(entry.split()) for entry in entries if len(entry.split()) > 12]
    for start in range(0, len(kept), 12):
        yield Document(f"{path.stem}#{start:05d}", tidy(kept[start : start + 12]))


def king_james(path: Path) -> Iterator[Document]:
    """Chapters of the King James Version out of an SQLite file."""
    base = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    query = "SELECT b.slug, v.chapter_number, v.text FROM verses v JOIN books b ON b.id = v.book_id"
    chapters: dict[str, list[str]] = {}
    for book, chapter, text in base.execute(f"{query} ORDER BY v.id"):
        chapters.setdefault(f"{book}-{chapter:03d}", []).append(text)
    base.close()
    for name, verses in chapters.items():
        yield Document(name, tidy(verses))
