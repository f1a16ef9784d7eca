"""Which extra of the distribution brings a package that is not installed."""

from __future__ import annotations

from leanmoe.errors import InputError

# Import names by extra, where pyproject.toml brings them. What is not named here comes with vLLM.
EXTRAS: dict[str, frozenset[str]] = {
    "loadtest": frozenset({"locust", "gevent", "geventhttpclient", "requests", "urllib3"}),
    "offline": frozenset({"scipy", "matplotlib", "jinja2", "yaml"}),
    "reference": frozenset({"leanmoe_reference", "gguf"}),
    "search": frozenset({"ray"}),
    "tasks": frozenset({"lm_eval", "datasets"}),
}
_OWN = "leanmoe"


def extra_of(package: str) -> str:
    """The extra that brings an import name, as a person would type it."""
    for extra, packages in EXTRAS.items():
        if package in packages:
            return f"`pip install 'leanmoe[{extra}]'`"
    return "`pip install 'leanmoe[cpu]'`, or `'leanmoe[cuda]'` for a GPU"


def missing_package(command: str, error: ModuleNotFoundError) -> InputError | None:
    """One sentence on what to install; ``None`` where a module of ours is missing."""
    package = (error.name or "").partition(".")[0]
    ours_with_an_extra = error.name == package and any(package in one for one in EXTRAS.values())
    if not package or (package.startswith(_OWN) and not ours_with_an_extra):
        return None
    return InputError(
        f"leanmoe {command} needs the package {package}, which is not installed; "
        f"run {extra_of(package)}"
    )
