"""Where the project is to be found, in every file that says so: project_address.py [ADDRESS]

    python packaging/project_address.py                          # print it; 1 where a file lacks it
    python packaging/project_address.py https://HOST/OWNER/NAME  # write it into all of them

As long as there is no public address no file names one: not another project's, and no guess.
The release's workflow compares what this prints with the place that it runs in.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
_ADDRESS = re.compile(r"https://[\w.-]+/[\w.-]+/[\w.-]+")
_SAID = re.compile(r'^Repository = "(.*)"$', re.MULTILINE)
# In the metadata of a distribution, before its next table.
_URLS = (
    r"(?:^\[project\.urls\]\n.*\n\n)?^\[tool\.hatch\.build\]$",
    '[project.urls]\nRepository = "{address}"\n\n[tool.hatch.build]',
)
# What is written where: over the words that stand for it, or over another address.
_PLACES: dict[str, tuple[str, str]] = {
    "pyproject.toml": _URLS,
    "reference_model/pyproject.toml": _URLS,
    "copyleft_texts/pyproject.toml": _URLS,
    "helm/leanmoe/Chart.yaml": (
        r"^# home and sources: .*\n|^home: .*\nsources: .*\n",
        "home: {address}\nsources: [{address}]\n",
    ),
    "docs/kubernetes.md": (r"(?<=^git clone )\S+(?= leanmoe$)", "{address}"),
    ".github/CODEOWNERS": (r"(?<=@)[\w.-]+(?=/)", "{owner}"),
}


def owner(address: str) -> str:
    """``OWNER`` of ``https://HOST/OWNER/NAME``; ``SystemExit`` for anything else."""
    if _ADDRESS.fullmatch(address) is None:
        raise SystemExit(f"{address!r} is no address of a project: give https://HOST/OWNER/NAME")
    return address.split("/")[3]


def write(root: Path, address: str) -> None:
    """Every file below ``root`` names the address, or ``SystemExit`` and none is changed."""
    texts = {}
    for name, (pattern, wanted) in _PLACES.items():
        said = wanted.format(address=address, owner=owner(address))
        text = (root / name).read_text(encoding="utf-8")
        texts[name], count = re.subn(pattern, said, text, flags=re.MULTILINE)
        if not count:
            raise SystemExit(f"{name} has no place for an address; edit it by hand")
    for name, text in texts.items():
        (root / name).write_text(text, encoding="utf-8")


def found(root: Path) -> str:
    """The address that all files below ``root`` name; ``SystemExit`` where one does not."""
    texts = {name: (root / name).read_text(encoding="utf-8") for name in _PLACES}
    if (said := _SAID.search(texts["pyproject.toml"])) is None:
        raise SystemExit(
            "no file names where the project is to be found; once there is such a place, run "
            "`python packaging/project_address.py https://HOST/OWNER/NAME`"
        )
    address, team = said[1], f"@{owner(said[1])}/"
    lack = [name for name, text in texts.items() if address not in text and team not in text]
    if lack:
        raise SystemExit(f"pyproject.toml names {address}, and {', '.join(lack)} does not")
    return address


def main() -> None:
    """Print the address, or write the one that is given."""
    for address in sys.argv[1:2]:
        write(ROOT, address)
    print(found(ROOT))


if __name__ == "__main__":
    main()
