"""A cache that takes nothing more is named, and one that is only closed to us is not."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from pathlib import Path

import pytest

from leanmoe_server.cache_space import cache_folders, full_cache


@pytest.fixture
def elsewhere(tmp_path: Path) -> dict[str, str]:
    """Every cache in a folder of its own, none made yet."""
    names = ("XDG_CACHE_HOME", "VLLM_CACHE_ROOT", "TRITON_CACHE_DIR", "HF_HOME", "TMPDIR")
    return {name: str(tmp_path / name) for name in names}


@pytest.fixture
def small_files() -> Iterator[None]:
    """No file of this process may be longer than a megabyte."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_room_is_no_problem_and_leaves_nothing(elsewhere: dict[str, str], tmp_path: Path) -> None:
    assert full_cache(elsewhere) is None
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("small_files")
def test_a_limit_is_named_with_the_folder_and_its_variable(elsewhere: dict[str, str]) -> None:
    said = full_cache(elsewhere)
    assert said is not None and "ulimit -f" in said
    assert f"{elsewhere['XDG_CACHE_HOME']}/leanmoe cannot take the 8 MiB" in said
    assert said.endswith("or name another folder in XDG_CACHE_HOME")


def test_a_full_device_is_named(elsewhere: dict[str, str], monkeypatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", full)
    said = full_cache(elsewhere)
    assert said is not None and "its disk is full" in said


def test_every_cache_can_be_named(elsewhere: dict[str, str]) -> None:
    folders = cache_folders({**elsewhere, "TORCHINDUCTOR_CACHE_DIR": "/inductor"})
    assert folders["VLLM_CACHE_ROOT"] == Path(elsewhere["VLLM_CACHE_ROOT"])
    assert folders["XDG_CACHE_HOME"] == Path(elsewhere["XDG_CACHE_HOME"], "leanmoe")
    assert folders["TORCHINDUCTOR_CACHE_DIR"] == Path("/inductor")
    only_caches = cache_folders({"XDG_CACHE_HOME": "/caches"})
    assert only_caches["HF_HOME"] == Path("/caches/huggingface")
