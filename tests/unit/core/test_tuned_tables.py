"""Tuned tables: vLLM's own names and files are read as vLLM reads them, everything else is not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from leanmoe.errors import CheckpointError, InputError
from leanmoe.tuned_tables import (
    TableName,
    card_in_file_names,
    carry_tables,
    parse_table,
    put_table,
    read_table,
    recorded_tables,
    table_text,
    tables_of,
)
from tests.tuned import RECORD, TILES

NAME = TableName(5, 14336, "NVIDIA_H200")


def row(**changed):
    return {**TILES.keys(), **changed}


def text(**changed):
    return json.dumps({"1": row(**changed)})


@pytest.fixture(scope="module")
def vllm_folder():
    import vllm

    return Path(vllm.__file__).parent / "model_executor/layers/fused_moe/configs"


CARDS = ("NVIDIA H200", "NVIDIA H200 NVL", "NVIDIA H100 80GB HBM3", "NVIDIA A100-SXM4-80GB", "A/B")


@pytest.mark.vllm
@pytest.mark.parametrize("device", CARDS)
def test_names_are_those_of_vllm(device, monkeypatch, request):
    from vllm.model_executor.layers.fused_moe.fused_moe import get_config_file_name
    from vllm.platforms import current_platform
    from vllm.utils.platform_utils import get_device_name_as_file_name

    monkeypatch.setattr(current_platform, "get_device_name", lambda device_id=0: device)
    get_device_name_as_file_name.cache_clear()
    request.addfinalizer(get_device_name_as_file_name.cache_clear)
    for experts in (1, 5, 8, 60, 128):
        for width in (96, 768, 1792, 14336):
            for dtype in (None, "fp8_w8a8", "int4_w4a16", "float32"):
                for block in (None, (128, 128), (0, 64)):
                    ours = TableName(experts, width, card_in_file_names(device), dtype, block)
                    wanted = get_config_file_name(experts, width, dtype, block and list(block))
                    assert ours.file == wanted
                    again = TableName.parse(ours.file)
                    assert again is not None and again.file == wanted


@pytest.mark.vllm
def test_every_table_of_vllm_for_nvidia_is_read_and_written_back_the_same(vllm_folder):
    seen = 0
    for path in sorted(vllm_folder.glob("*device_name=NVIDIA*.json")):
        name = TableName.parse(path.name)
        assert name is not None and name.file == path.name
        content = json.loads(path.read_text())
        content.pop("triton_version", None)
        table = read_table(path)
        assert json.loads(table_text(table)) == content
        seen += 1
    assert seen > 150


def test_tables_of_other_kernels_are_not_taken_for_one():
    assert TableName.parse("E=384,N=256,device_name=X,dtype=int4_w4a16,backend=flydsl.json") is None
    assert TableName.parse("record.json") is None


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "is not one of vLLM's tuned tables"),
        ("[]", "is not one of vLLM's tuned tables"),
        ("{}", "without a row"),
        ('{"triton_version": "3.6.0"}', "without a row"),
        ('{"a": {}}', "valid integer"),
        ('{"0": {}}', "greater than 0"),
        (text(BLOCK_SIZE_N=0), "1.BLOCK_SIZE_N"),
        (text(BLOCK_SIZE_N=-64), "1.BLOCK_SIZE_N"),
        (text(BLOCK_SIZE_N=96), "powers of two"),
        (text(num_warps=3), "powers of two"),
        (text(num_stages=2.5), "1.num_stages"),
        (text(num_stages=True), "1.num_stages"),
        (text(SPLIT_K=2), "1.SPLIT_K"),
        (text(tile_m=16), "1.tile_m"),
        (json.dumps({"1": {"BLOCK_SIZE_M": 16}}), "1.BLOCK_SIZE_N"),
    ],
)
def test_what_is_no_table_is_refused_in_one_sentence(content, said):
    with pytest.raises(InputError) as refused:
        parse_table(content, "t.json")
    assert said in str(refused.value) and "t.json" in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_folder_holds_what_was_put_there(tmp_path):
    other = NAME.of(6)
    put_table(tmp_path / "tuned", NAME, {4: TILES, 1: TILES}, RECORD)
    put_table(tmp_path / "tuned", other, {1: TILES}, RECORD)
    found = {one.name: one for one in recorded_tables(tmp_path / "tuned")}
    assert set(found) == {NAME, other} and found[NAME].record.batches == [1]
    assert read_table(found[NAME].path) == {1: TILES, 4: TILES}
    assert list(json.loads(found[NAME].path.read_text())) == ["1", "4"]


def test_a_model_without_a_folder_carries_none(tmp_path):
    assert recorded_tables(tmp_path / "tuned") == []


def damaged(folder: Path) -> None:
    path = folder / NAME.file
    path.write_text(path.read_text().replace("64", "32"))


def unrecorded(folder: Path) -> None:
    (folder / NAME.of(4).file).write_text(table_text({1: TILES}))


def gone(folder: Path) -> None:
    (folder / NAME.file).unlink()


def no_record(folder: Path) -> None:
    (folder / "record.json").write_text("{")


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (damaged, "does not match"),
        (unrecorded, "no entry"),
        (gone, "is missing"),
        (no_record, "no record of tuned tables"),
    ],
)
def test_a_folder_that_is_not_what_its_record_says_is_refused(tmp_path, harm, said, caplog):
    put_table(tmp_path / "tuned", NAME, {1: TILES}, RECORD)
    harm(tmp_path / "tuned")
    with pytest.raises(CheckpointError, match=said):
        recorded_tables(tmp_path / "tuned")
    (tmp_path / "target").mkdir()
    assert carry_tables(tmp_path, tmp_path / "target", {5}) == []
    assert "not carried over" in caplog.text and not list((tmp_path / "target").iterdir())


def test_only_tables_that_fit_are_carried(tmp_path):
    put_table(tmp_path / "tuned", NAME, {1: TILES}, RECORD)
    put_table(tmp_path / "tuned", NAME.of(8), {1: TILES}, RECORD)
    for target in ("five", "four"):
        (tmp_path / target).mkdir()
    assert carry_tables(tmp_path, tmp_path / "five", {5, 6}) == [NAME.file]
    assert [one.name for one in recorded_tables(tmp_path / "five" / "tuned")] == [NAME]
    assert carry_tables(tmp_path, tmp_path / "four", {4}) == []
    assert not (tmp_path / "four" / "tuned").exists()


@pytest.mark.vllm
def test_tables_of_a_shape_are_found_whatever_the_weights(vllm_folder):
    found = [one.weights for one in tables_of(vllm_folder, 8, 14336, "NVIDIA_H200")]
    assert found == ["fp8_w8a8", "bf16 or fp16"]
    assert list(tables_of(vllm_folder, 5, 14336, "NVIDIA_H200")) == []
