"""Held-out text that is really held out.

Whole documents are held out, chosen by a digest of their names; paragraphs that occur
twice anywhere are kept once; a training paragraph that shares a run of ten words with
the held-out text is dropped.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import replace

from leanmoe_reference.training.reading import Document

RUN = 10


def order(documents: Iterable[Document]) -> list[Document]:
    """Documents in an order that depends on their names alone."""
    return sorted(documents, key=lambda one: hashlib.sha256(one.name.encode()).digest())


def without_repeats(documents: Iterable[Document], seen: set[str]) -> list[Document]:
    """Documents without the paragraphs in ``seen``, which grows by those that are kept."""
    kept = []
    for document in documents:
        fresh = []
        for paragraph in document.text.split(document.between):
            key = " ".join(paragraph.split()).casefold()
            if len(key) < 24 or key not in seen:
                fresh.append(paragraph)
            seen.add(key)
        kept.append(replace(document, text=document.between.join(fresh)))
    return kept


def runs(text: str) -> set[tuple[str, ...]]:
    """Every run of ``RUN`` words in ``text``, line ends ignored."""
    words = text.casefold().split()
    return {tuple(words[i : i + RUN]) for i in range(len(words) - RUN + 1)}


def without_overlap(
    documents: Iterable[Document], held_out: set[tuple[str, ...]]
) -> list[Document]:
    """Documents without the paragraphs that share a run of words with the held-out text."""
    kept = []
    for one in documents:
        fresh = [p for p in one.text.split(one.between) if runs(p).isdisjoint(held_out)]
        kept.append(replace(one, text=one.between.join(fresh)))
    return kept
