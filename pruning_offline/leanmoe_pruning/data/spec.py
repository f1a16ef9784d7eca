"""``--data SPEC``: a comma-separated mix of ``name[:count]``, parsed and not yet read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from leanmoe.errors import DataError
from leanmoe.files.address import check_is_path
from leanmoe_pruning.data.parts import fields_of, found_parts, split_parts

DOMAINS = ("gen", "fr", "de", "es", "c", "man", "kjv", "math", "py", "wn")
# Under copyleft licences, and so in a distribution of their own, which the extra `texts` brings.
COPYLEFT = ("fr", "de", "es", "man")
PERMISSIVE = tuple(domain for domain in DOMAINS if domain not in COPYLEFT)
BUILTIN, OWN, MIX = "builtin:", "self:", "mix:"
# Domains and their shares, by name.
MIXES: dict[str, dict[str, int]] = {
    "all": dict.fromkeys(DOMAINS, 1),
    "permissive": dict.fromkeys(PERMISSIVE, 1),
    "languages": {"gen": 1, "fr": 1, "de": 1, "es": 1},
    "code": {"c": 2, "py": 2, "man": 1},
    "prose": {"gen": 2, "kjv": 1, "wn": 1},
}
DEFAULT_WINDOW = 256
DEFAULT_TENSOR = "input_ids"
_MAX_DIGITS = 12
HELP = (
    "comma-separated mix of NAME[:COUNT] windows: builtin:DOMAIN "
    f"({', '.join(PERMISSIVE)}; with the extra texts {', '.join(COPYLEFT)}), a .txt/.jsonl file, "
    "FILE.safetensors[:TENSOR] with token ids, "
    f"mix:NAME:COUNT ({', '.join(MIXES)}, or shares such as gen=2+c=1), or "
    "self:[PROMPTS.jsonl:]COUNT, which the model writes itself; a file may have commas and colons "
    "in its name"
)


@dataclass(frozen=True)
class Item:
    """One part of a mix; ``count`` windows of it, all where ``None``."""

    text: str
    domain: str | None = None
    path: Path | None = None
    tensor: str = DEFAULT_TENSOR
    count: int | None = None
    # Written by the model itself, after the prompts of ``path`` where there are any.
    own: bool = False

    @property
    def name(self) -> str:
        """What reports call it."""
        if self.own:
            return "self" if self.path is None else f"self:{self.path}"
        if self.domain is not None:
            return self.domain
        return str(self.path) if self.tensor == DEFAULT_TENSOR else f"{self.path}:{self.tensor}"


def written_spec(spec: str) -> str:
    """``spec`` as bundles and manifests record it: files are no longer looked for."""
    return ",".join(found_parts(spec, (BUILTIN, MIX), OWN))


def parse_spec(spec: str) -> list[Item]:
    """The items of a written ``spec``; raise ``DataError`` for an empty part, a bad count or
    domain."""
    texts = split_parts(spec)
    if not all(texts):
        raise DataError(f"--data {spec!r} has an empty part; expected {HELP}")
    items = [item for text in texts for item in _parse_part(text)]
    names = [item.name for item in items]
    twice = next((item for item in items if names.count(item.name) > 1), None)
    if twice is not None:
        raise DataError(f"--data {spec!r} names {twice.name} twice; name it once with a count")
    return items


def _parse_part(text: str) -> list[Item]:
    check_is_path(text.removeprefix(OWN), "--data", DataError)
    if not text.startswith(MIX):
        return [_parse_own(text) if text.startswith(OWN) else _parse_item(text)]
    name, _, count = text.removeprefix(MIX).partition(":")
    if not count:
        raise DataError(f"--data {text!r} does not say how many windows; give mix:{name}:COUNT")
    shares = _shares(name, text)
    counts = _dealt(_count(count, text), shares)
    return [
        Item(text, domain=domain, count=own)
        for domain, own in zip(shares, counts, strict=True)
        if own
    ]


def _shares(name: str, text: str) -> dict[str, int]:
    if "=" not in name:
        if name not in MIXES:
            raise DataError(
                f"--data {text!r}: no mix {name!r}; known: {', '.join(MIXES)}, or shares such as "
                "gen=2+c=1"
            )
        return MIXES[name]
    shares: dict[str, int] = {}
    for part in name.split("+"):
        domain, _, share = part.partition("=")
        if domain not in DOMAINS or domain in shares:
            raise DataError(
                f"--data {text!r}: {domain!r} is no built-in text, or is named twice; known: "
                f"{', '.join(DOMAINS)}"
            )
        shares[domain] = _count(share, text)
    return shares


def _dealt(count: int, shares: dict[str, int]) -> list[int]:
    """``count`` in proportion to the shares; what does not divide goes to the largest rests."""
    total = sum(shares.values())
    whole = [count * share // total for share in shares.values()]
    rests = [count * share % total for share in shares.values()]
    order = sorted(range(len(rests)), key=lambda place: (-rests[place], place))
    for place in order[: count - sum(whole)]:
        whole[place] += 1
    return whole


def _parse_own(text: str) -> Item:
    *names, count = fields_of(text.removeprefix(OWN))
    if not _is_number(count):
        raise DataError(
            f"--data {text!r} does not say how many windows the model is to write; give "
            "self:COUNT or self:PROMPTS.jsonl:COUNT"
        )
    path = ":".join(names)
    return Item(text, path=Path(path) if path else None, count=_count(count, text), own=True)


def _parse_item(text: str) -> Item:
    if text.startswith(BUILTIN):
        domain, _, count = text.removeprefix(BUILTIN).partition(":")
        if domain not in DOMAINS:
            raise DataError(
                f"--data {text!r}: no built-in text {domain!r}; known: {', '.join(DOMAINS)}"
            )
        return Item(text, domain=domain, count=_count(count, text) if count else None)
    path, *rest = fields_of(text)
    if not path.endswith(".safetensors"):
        return Item(text, path=Path(path), count=_only_count(rest, text))
    tensor = rest.pop(0) if rest and not _is_number(rest[0]) else DEFAULT_TENSOR
    return Item(text, path=Path(path), tensor=tensor, count=_only_count(rest, text))


def _is_number(text: str) -> bool:
    return text.isascii() and text.removeprefix("+").removeprefix("-").isdigit()


def _only_count(rest: list[str], text: str) -> int | None:
    if len(rest) > 1:
        raise DataError(f"--data {text!r} has too many ':'; expected {HELP}")
    return _count(rest[0], text) if rest else None


def _count(text: str, item: str) -> int:
    if not _is_number(text) or len(text) > _MAX_DIGITS or int(text) <= 0:
        raise DataError(
            f"--data {item!r}: count {text!r} is not a positive whole number of windows"
        )
    return int(text)
