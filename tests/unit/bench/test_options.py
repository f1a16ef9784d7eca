"""What several benches take: bad values are one sentence and exit code 2, before any work."""

import os
import signal
from types import SimpleNamespace

import pytest

from leanmoe.cli import main
from leanmoe_bench import options
from leanmoe_bench.engines.pair import dotted_name
from leanmoe_bench.gpu.prober import LayerProber
from leanmoe_bench.soak.recounter import Recounter


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["serve", "--shape", "L"], "no shape 'L'; expected one of M, F, R, tiny"),
        (["memory", "--rounds", "1"], "--rounds is 1, expected at least 2"),
        (["serve", "--shape", "tiny", "--case", "union32"], "--case is 'union32'; shape tiny has"),
        (["soak", "--concurrency", "0"], "a soak takes 1 to 1024 clients"),
        (["goldens"], "bench goldens compares with --set DIR"),
        (["kernel", "--float8"], "--float8 is of packed experts on a CPU"),
        (["tune"], "bench tune measures the shapes of a MODEL"),
    ],
)
def test_a_bad_value_is_told_and_the_exit_code_is_2(arguments, told, capsys):
    assert main(["bench", *arguments]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"leanmoe bench {arguments[0]}: {told}") and said.count("\n") == 1


@pytest.mark.parametrize("arguments", [["kernel", "--mode", "eager"], ["load", "./model"]])
def test_an_argument_of_another_bench_is_refused(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["bench", *arguments])
    assert stop.value.code == 2 and arguments[-1] in capsys.readouterr().err


def test_a_folder_that_was_given_stays_and_another_goes(tmp_path):
    with options.work_folder(tmp_path / "a" / "b") as work:
        assert work.is_dir()
    assert work.is_dir()
    with pytest.raises(KeyboardInterrupt), options.work_folder() as work:
        os.kill(os.getpid(), signal.SIGTERM)
    assert not work.exists()


def test_a_shape_has_its_name():
    assert options.shape_of(SimpleNamespace(shape="F")).name == "F"


@pytest.mark.parametrize("extension", [Recounter, LayerProber])
def test_an_engine_finds_a_worker_extension_by_its_name(extension):
    from vllm.utils.import_utils import resolve_obj_by_qualname

    assert resolve_obj_by_qualname(dotted_name(extension)) is extension
