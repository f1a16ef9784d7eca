"""The kernel on packed experts reads and writes what is its own and nothing else."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

import leanmoe_runtime.sparse
from leanmoe_runtime.sparse.kernel import instruction_sets
from tests.sanitizing import run_sanitized

SOURCES = Path(leanmoe_runtime.sparse.__file__).parent


@pytest.mark.slow
def test_address_and_undefined_behaviour_sanitizers_find_nothing(tmp_path):
    built = tmp_path / "sanitized"
    source = Path(__file__).with_name("sparse_sanitized.cpp")
    # Optimizing takes the compiler longer than the program takes more without.
    flags = ["-O0", "-std=c++20", "-fopenmp", "-w", f"-I{SOURCES}"]
    watched = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    subprocess.run(["c++", *flags, *watched, str(source), "-o", str(built)], check=True)
    assert int(run_sanitized(built)) == 300 * len(instruction_sets())
