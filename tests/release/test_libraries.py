"""Compiled code in wheels: which it is, what it asks of a system, and that it is taken."""

import os
import platform
import re
import subprocess
import sys
import zipfile

import pytest

from leanmoe_runtime import builds
from tests.release.conftest import ROOT

sys.path.insert(0, str(ROOT / "packaging"))

import libraries

FOLDER = "leanmoe_runtime/built/"
NAMES = {builds.rule_build().name, builds.sparse_build().name}
NO_COMPILER = {"CC": "no-such-compiler", "CXX": "no-such-compiler"}


def built_in(wheel):
    with zipfile.ZipFile(wheel) as archive:
        return {
            name.removeprefix(FOLDER): archive.read(name)
            for name in archive.namelist()
            if name.endswith(".so")
        }


def run(python, code, **environment):
    """What ``code`` prints where nothing can be compiled, nor be found from earlier."""
    clean = {"PATH": "/usr/bin:/bin", "HOME": "/nonexistent", **NO_COMPILER, **environment}
    done = subprocess.run([python, "-c", code], env=clean, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_wheels_hold_what_runs_beside_any_torch_under_the_names_it_is_looked_for(wheel, pure_wheel):
    assert set(built_in(wheel)) == NAMES
    assert not built_in(pure_wheel)


def test_no_library_asks_for_a_newer_system_than_the_wheel_s_tag(wheel, tmp_path):
    oldest = re.search(r"manylinux_2_(\d+)_(\w+)\.whl", wheel.name)
    assert oldest[2] == platform.machine()
    for name, content in built_in(wheel).items():
        (tmp_path / name).write_bytes(content)
        command = ["objdump", "-T", tmp_path / name]
        told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        # Version and name of what it does not bring itself; before them stand addresses.
        wanted = re.findall(r"\*UND\*\s+[0-9a-f]+ (.*)", told)
        asked = [int(minor) for one in wanted for minor in re.findall(r"\(GLIBC_2\.(\d+)", one)]
        assert asked and max(asked) <= int(oldest[1]), name
        assert not [one for one in wanted if re.search(r"torch|c10|\(GOMP_", one)]


def test_a_stranger_s_wheel_is_used_as_it_came(installed):
    code = (
        "from leanmoe_runtime import native\n"
        "assert native.library().leanmoe_plan\n"
        "assert native.sparse_library().leanmoe_packed_experts\n"
        "print(*{line.split()[-1] for line in open('/proc/self/maps') if '/built/' in line})"
    )
    [line] = run(installed / "python", code)
    site = [path for path in line.split() if "/site-packages/leanmoe_runtime/built/" in path]
    assert {path.rpartition("/")[2] for path in site} == NAMES


def test_beside_this_torch_it_computes_what_packed_experts_are(wheel, tmp_path):
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*pip, "--target", tmp_path, wheel], check=True)
    code = (
        "import torch, leanmoe_runtime.native as native\n"
        "from tests.property.runtime.test_sparse_experts import compare\n"
        "compare(7, 9, (2, 3), 16, 0.5, torch.bfloat16, '')\n"
        "print(native.__file__)"
    )
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    assert run(sys.executable, code, PYTHONPATH=path)[-1].startswith(str(tmp_path))


def told_of(monkeypatch, version="standard", **environment):
    """What the hook tells hatchling."""
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    told = {"force_include": {}}
    hook = libraries.LibrariesHook(str(ROOT), {}, None, None, "", "wheel")
    hook.initialize(version, told)
    hook.finalize(version, told, "")
    return told


def test_without_a_compiler_a_wheel_is_any_platform_s_and_says_so(monkeypatch, capfd):
    assert told_of(monkeypatch, **NO_COMPILER) == {"force_include": {}}
    captured = capfd.readouterr()
    assert "no-such-compiler" in captured.out + captured.err


@pytest.mark.parametrize(("version", "pure"), [("editable", ""), ("standard", "1")])
def test_nothing_is_compiled_in_place_or_where_none_is_wanted(monkeypatch, version, pure):
    assert told_of(monkeypatch, version, LEANMOE_PURE_WHEEL=pure) == {"force_include": {}}


ASKING = "  NEEDED               libc.so.6\n\nVersion References:\n    0x0 0x00 02 {}\n"


@pytest.mark.parametrize(
    ("symbol", "tag"),
    [
        ("GLIBC_2.14", "manylinux_2_17"),
        ("GLIBC_2.17", "manylinux_2_17"),
        ("GLIBC_2.18", "manylinux_2_28"),
        ("GLIBCXX_3.4.21", "manylinux_2_28"),
        ("CXXABI_1.3.9", "manylinux_2_28"),
        ("GLIBC_2.34", "linux"),
        ("GOMP_1.0", "linux"),
    ],
)
def test_the_newest_symbol_says_the_tag(symbol, tag, monkeypatch):
    monkeypatch.setattr(libraries, "_headers", lambda _: ASKING.format(symbol))
    assert libraries.platform_tag(["one"]) == f"{tag}_{platform.machine()}"


def test_a_library_that_systems_need_not_have_and_headers_nobody_read_give_no_tag(monkeypatch):
    headers = {"torch": ASKING.format("GLIBC_2.14").replace("libc.so", "libtorch.so"), "none": ""}
    monkeypatch.setattr(libraries, "_headers", headers.get)
    for name in headers:
        assert libraries.platform_tag([name]) == f"linux_{platform.machine()}"
