"""vLLM is imported where a file begins: what a module needs of it is seen at a glance.

import-linter holds which modules may import it at all (pyproject.toml).
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from tests.structure.test_modules import PACKAGES, modules

# It reaches the parts that only a build for GPUs has, when they are asked for.
WHEN_CALLED = {"leanmoe_runtime/compat.py"}


def imports_inside_functions(source: str) -> Iterator[int]:
    for function in ast.walk(ast.parse(source)):
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
            for node in ast.walk(function):
                names = [one.name for one in node.names] if isinstance(node, ast.Import) else []
                names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
                if any(name.partition(".")[0] == "vllm" for name in names):
                    yield node.lineno


def late_imports() -> Iterator[Path]:
    for package in PACKAGES.values():
        for path in modules(package):
            if any(imports_inside_functions(path.read_text())):
                yield path.relative_to(package.parent)


def test_no_function_imports_vllm():
    assert {path.as_posix() for path in late_imports()} == WHEN_CALLED


def test_an_import_inside_a_function_would_be_found():
    source = "import vllm\ndef f():\n    from vllm.config import VllmConfig\n    import vllm\n"
    assert list(imports_inside_functions(source)) == [3, 4]
