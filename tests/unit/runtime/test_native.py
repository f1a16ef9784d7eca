"""The C code is built where there is a compiler, and says so where there is none."""

import pytest

from leanmoe.errors import RuntimeSeamError
from leanmoe_runtime import builds, direct, native


@pytest.fixture(autouse=True)
def nothing_shipped(tmp_path, monkeypatch):
    """As on a machine where ``make install`` built nothing into the package."""
    monkeypatch.setattr(native, "_SHIPPED", tmp_path / "nothing-shipped")


def test_it_is_built_once_and_nothing_else_is_left(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    native.library.__wrapped__()
    [built] = (tmp_path / "leanmoe").iterdir()
    monkeypatch.setenv("CC", "no-such-compiler")
    assert native.library.__wrapped__().leanmoe_plan
    assert [*(tmp_path / "leanmoe").iterdir()] == [built]


def test_what_others_could_have_written_is_not_loaded(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    native.library.__wrapped__()
    [built] = (tmp_path / "leanmoe").iterdir()
    built.unlink()  # not overwritten: this process has it mapped
    built.write_bytes(b"not a library")
    built.chmod(0o777)
    assert native.library.__wrapped__().leanmoe_plan


def test_without_a_home_it_is_built_for_the_process(monkeypatch):
    def no_home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(native.Path, "home", no_home)
    assert native.library.__wrapped__().leanmoe_plan


def test_a_compiler_may_be_a_command_with_arguments(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("CC", "env cc")
    assert native.library.__wrapped__().leanmoe_plan


def test_without_a_compiler_the_error_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("CC", "no-such-compiler")
    with pytest.raises(RuntimeSeamError, match=r"'no-such-compiler'.*install a C compiler"):
        native.library.__wrapped__()
    assert [*(tmp_path / "leanmoe").iterdir()] == []


def test_a_source_that_does_not_compile_is_quoted(tmp_path, monkeypatch):
    source = tmp_path / "broken.c"
    source.write_text("int broken(void) { return missing; }\n")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(builds, "_RULE_SOURCE", source)
    with pytest.raises(RuntimeSeamError, match="missing"):
        native.library.__wrapped__()


def test_without_a_cpp_compiler_the_error_names_its_variable(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(RuntimeSeamError, match=r"direct\.cpp.*'no-such-compiler'.*g\+\+.*CXX"):
        native.operator_library.__wrapped__()
    assert [*(tmp_path / "leanmoe").iterdir()] == []


def test_without_its_library_layers_run_in_python_and_a_warning_says_so(
    tmp_path, monkeypatch, caplog
):
    """Wheels bring all but this one: it is linked to the torch beside it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setattr(direct, "operator_library", native.operator_library.__wrapped__)
    assert direct.direct_experts(None) is None
    assert "direct.cpp could not be built" in caplog.text
