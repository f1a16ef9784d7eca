"""Tuned tables of a checkpoint go where its shapes go, and never into the manifest."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from leanmoe.cli import main
from leanmoe.manifest import check_files, read_manifest
from leanmoe.tuned_tables import TableName, put_table, recorded_tables
from tests.golden.naee_data import CALIBRATION, CHECKPOINT
from tests.tuned import RECORD, TILES

RANDOM = ("--method", "random")
EIGHT = TableName(8, 64, "NVIDIA_H200")


@pytest.fixture
def tuned(tmp_path) -> Path:
    """The golden model of eight experts, with tables for eight, five and three."""
    model = Path(shutil.copytree(CHECKPOINT, tmp_path / "model"))
    for count in (8, 5, 3):
        put_table(model / "tuned", EIGHT.of(count), {1: TILES}, RECORD)
    return model


def carried(out: Path) -> list[int]:
    manifest = read_manifest(out)
    check_files(out, manifest)
    assert not any("tuned" in name for name in manifest.files)
    return [one.name.experts for one in recorded_tables(out / "tuned")]


def prune(model: Path, out: Path, *more: str) -> int:
    return main(["prune", str(model), "-o", str(out), *more])


def test_a_cut_carries_the_tables_of_the_counts_it_leaves(tuned, tmp_path):
    assert prune(tuned, tmp_path / "out", *RANDOM, "--keep", "5") == 0
    assert carried(tmp_path / "out") == [5]


def test_a_cut_that_leaves_other_counts_carries_nothing(tuned, tmp_path):
    assert prune(tuned, tmp_path / "out", *RANDOM, "--keep", "4") == 0
    assert not (tmp_path / "out" / "tuned").exists()


def test_distilling_keeps_the_shapes_and_their_tables(tuned, tmp_path):
    assert prune(tuned, tmp_path / "sparse", "--method", "magnitude", "--pattern", "2:4") == 0
    assert carried(tmp_path / "sparse") == [8]
    options = ("--teacher", str(tuned), "--local", "--steps", "2", "--batch", "2")
    data = ("--data", CALIBRATION, "-o", str(tmp_path / "out"))
    assert main(["distill", str(tmp_path / "sparse"), *options, *data]) == 0
    assert carried(tmp_path / "out") == [8]


def test_a_checkpoint_with_tables_can_still_be_replaced(tuned, tmp_path):
    assert prune(tuned, tmp_path / "out", *RANDOM, "--keep", "5") == 0
    assert prune(tuned, tmp_path / "out", *RANDOM, "--keep", "4", "--force") == 0
    assert not (tmp_path / "out" / "tuned").exists()
