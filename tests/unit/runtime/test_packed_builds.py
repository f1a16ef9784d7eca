"""The CUDA kernels of packed experts are built without spilling, and touch only what is theirs."""

from __future__ import annotations

import re
import subprocess
import warnings
from pathlib import Path

import pytest

from leanmoe.errors import RuntimeSeamError
from leanmoe_runtime import builds, native
from tests.sanitizing import run_sanitized
from tests.unit.runtime.packed_host import CUDA, HERE, HOST_FLAGS

# Of a block's threads, twice as many as may live on a multiprocessor at a time.
_MOST_REGISTERS = {"gather": 80, "tensor": 128, "pairs": 128, "sum": 64, "sort": 128, "dense": 80}
# Each is twenty instructions and more, and these kernels are to wait for memory alone.
_MOST_DIVISIONS = {"gather": 24, "tensor": 17, "pairs": 11}


def compiled(folder: Path, capability: str) -> dict[str, tuple[int, int]]:
    """Registers and bytes of spilling by kernel."""
    target = f"-gencode=arch=compute_{capability},code=sm_{capability}"
    flags = ["-O3", "-std=c++17", "-cubin", "-Xptxas=-v", target, "-keep", f"-keep-dir={folder}"]
    command = [builds._nvcc(), *flags, str(CUDA / "packed.cu"), "-o", str(folder / "out")]
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError:
        warnings.warn("there is no nvcc: the CUDA kernels were NOT compiled", stacklevel=1)
        pytest.skip("there is no nvcc, so the CUDA kernels were not compiled")
    assert done.returncode == 0, done.stderr
    found = {}
    for part in done.stderr.split("Compiling entry function")[1:]:
        name = re.search(r"'(\S+)'", part)[1]
        spilled = sum(map(int, re.findall(r"(\d+) bytes spill", part)))
        found[name] = int(re.search(r"Used (\d+) registers", part)[1]), spilled
    return found


def divisions(folder: Path) -> dict[str, int]:
    """Whole divisions by numbers known at run time, by kernel of what was compiled last."""
    parts = (folder / "packed.ptx").read_text().split(".entry ")[1:]
    return {part.split("(")[0]: len(re.findall(r"(?:div|rem)\.[su]", part)) for part in parts}


@pytest.mark.slow
@pytest.mark.parametrize("capability", ["80", "90"])
def test_no_kernel_spills_or_holds_too_many_registers(capability, tmp_path):
    kernels = compiled(tmp_path, capability)
    # 3 patterns, 2 types of values or float8 computed as either, 2 numbers of tokens: gathered, and
    # expanded; 2:4; written out, all types alike but float8; sum; sort.
    assert len(kernels) == 24 + 24 + 8 + 9 + 3 + 2 + 1
    for name, (registers, spilled) in kernels.items():
        kind = re.search("gather|tensor|pairs|sum|sort|dense", name)[0]
        assert spilled == 0, name
        assert registers <= _MOST_REGISTERS[kind], (name, registers)
    for name, count in divisions(tmp_path).items():
        kind = re.search("gather|tensor|pairs|sum|sort|dense", name)[0]
        assert count <= _MOST_DIVISIONS.get(kind, count), (name, count)


@pytest.mark.slow
def test_address_and_undefined_behaviour_sanitizers_find_nothing(tmp_path):
    built = tmp_path / "sanitized"
    source = HERE / "packed_sanitized.cpp"
    watched = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    flags = ["-O1", *HOST_FLAGS, *watched, "-x", "c++"]
    subprocess.run(["c++", *flags, str(source), "-o", str(built)], check=True)
    assert int(run_sanitized(built)) == 62


def test_every_header_is_part_of_the_librarys_name():
    headers = {path.stem for path in CUDA.glob("*.cuh")}
    assert headers == set(builds._GPU_HEADERS)


def test_a_library_that_came_with_the_package_is_taken(tmp_path, monkeypatch):
    """Without nvcc, and without a folder to write to."""
    monkeypatch.setenv("NVCC", "no-such-compiler")
    monkeypatch.setattr(native, "_SHIPPED", tmp_path)
    source = tmp_path / "small.c"
    source.write_text("int leanmoe_packed_shared_bytes(void) { return 7; }\n")
    name = builds.gpu_build().name
    flags = ["-shared", "-fPIC", str(source)]
    subprocess.run(["cc", *flags, "-o", str(tmp_path / name)], check=True)
    assert native.gpu_library.__wrapped__().leanmoe_packed_shared_bytes() == 7


def test_building_it_into_the_package(tmp_path, monkeypatch, capsys):
    built = tmp_path / "built"
    compiler = tmp_path / "nvcc"
    compiler.write_text('#!/bin/sh\nwhile [ "$1" != -o ]; do shift; done; echo code > "$2"\n')
    compiler.chmod(0o755)
    monkeypatch.setenv("NVCC", str(compiler))
    monkeypatch.setattr(native, "_SHIPPED", built)
    native.main()
    [library] = built.iterdir()
    assert str(library) in capsys.readouterr().out
    assert library.stat().st_mode & 0o777 == 0o755
    assert library.name == builds.gpu_build().name


def test_a_cpu_s_libraries_are_built_into_the_package_and_taken(tmp_path, monkeypatch):
    monkeypatch.setattr(native, "_SHIPPED", tmp_path / "built")
    native.main("cpu")
    names = {build().name for build in native._BUILDS["cpu"]}
    assert {path.name for path in (tmp_path / "built").iterdir()} == names
    # No compiler is needed any more.
    monkeypatch.setenv("CC", "no-such-compiler")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "none"))
    assert native.library.__wrapped__() is not None
    assert not (tmp_path / "none").exists()


def test_a_machine_without_a_compiler_is_told_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr(native, "_SHIPPED", tmp_path / "built")
    monkeypatch.setenv("CC", "no-such-compiler")
    with pytest.raises(RuntimeSeamError, match="install a C compiler"):
        native.main("cpu")
