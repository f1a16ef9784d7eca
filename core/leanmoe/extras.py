"""What is wrong with an install, and the command that mends it: a package that is not there, by the
extra that brings it, or one that does not work beside torch.

Nothing of LeanMoE needs to be published for that: ``pip install 'leanmoe[EXTRA]'`` takes the
LeanMoE that is installed and what its metadata list under the extra. Only the extras that bring a
distribution of our own need to be told where that lies.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import FrameType, TracebackType

from leanmoe.errors import InputError

# What runs models, by its import names: every extra with an engine or the offline stage brings it.
_TORCH = frozenset({"torch", "transformers", "tokenizers"})
# Import names by extra, where pyproject.toml brings them. What is not named here comes with vLLM.
EXTRAS: dict[str, frozenset[str]] = {
    "loadtest": frozenset({"locust", "gevent", "geventhttpclient", "requests", "urllib3"}),
    "offline": frozenset({"scipy", "matplotlib", "jinja2", "yaml"}) | _TORCH,
    "reference": frozenset({"leanmoe_reference", "gguf"}),
    "search": frozenset({"ray"}),
    "tasks": frozenset({"lm_eval", "datasets", "aiohttp", "tenacity"}),
    "texts": frozenset({"leanmoe_texts"}),
}
# Distributions of our own, by the extra that brings them: their folders in the repository.
OWN = {"reference": "reference_model", "texts": "copyleft_texts"}
# Where PyPI's torch would be one for CUDA, or the pinned one is not on PyPI.
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
# Commands that start an engine: what runs models comes with vLLM there.
_WITH_ENGINE = frozenset({"serve", "bench", "demo"})
_OWN_PREFIX = "leanmoe"
# What vLLM's CPU wheel requires and models of text do not need. Each is built for one build of
# torch, and beside another its import takes transformers down, whoever asked for it.
_BESIDE_TORCH = ("torchvision", "torchaudio", "torchcodec")


def install_hint(extra: str) -> str:
    """A command that brings an extra to the LeanMoE that is installed, in backquotes."""
    if extra == "cpu":
        return f"`pip install 'leanmoe[cpu]' --extra-index-url {CPU_INDEX}`"
    if extra not in OWN:
        return f"`pip install 'leanmoe[{extra}]'`"
    if (origin := _origin()) is None:
        return f"`pip install 'leanmoe[{extra}]'` with the --find-links or index that had leanmoe"
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


def install_problem(command: str, error: BaseException) -> InputError | None:
    """One sentence on what to install or remove; ``None`` where ``error`` is of another kind."""
    missing = missing_package(command, error) if isinstance(error, ModuleNotFoundError) else None
    return missing or broken_package(command, error)


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


def broken_package(command: str, error: BaseException) -> InputError | None:
    """One sentence on what to remove where ``error`` came out of a package that torch refuses."""
    from importlib import metadata

    names = _passed_through(error)
    if (broken := next((one for one in _BESIDE_TORCH if one in names), None)) is None:
        return None
    versions = {one.metadata["Name"]: one.version for one in metadata.distributions()}
    return InputError(
        f"leanmoe {command}: {broken} {versions.get(broken)} does not work beside torch "
        f"{versions.get('torch')}, and models of text need none of its kind; run "
        f"`pip uninstall --yes {' '.join(one for one in _BESIDE_TORCH if one in versions)}`"
    )


def _passed_through(error: BaseException | None) -> set[str]:
    """Top-level packages whose code stands in the tracebacks of an error and of what caused it."""
    found: set[str] = set()
    while error is not None:
        for frame in _frames(error.__traceback__):
            found.add(str(frame.f_globals.get("__name__", "")).partition(".")[0])
        error = error.__cause__ or error.__context__
    return found


def _frames(traceback: TracebackType | None) -> Iterator[FrameType]:
    while traceback is not None:
        yield traceback.tb_frame
        traceback = traceback.tb_next
