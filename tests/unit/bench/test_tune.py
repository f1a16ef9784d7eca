"""``leanmoe bench tune`` without a card: the search, the choice, the files, and the whole loop.

The loop runs for real, over a small function of its own that is timed on the CPU: a matrix
product in blocks, whose bits depend on how its inner sums are cut.
"""

from __future__ import annotations

import itertools
import json
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from leanmoe.checkpoint import open_checkpoint
from leanmoe.cli import main
from leanmoe.errors import InputError, LeanMoEError
from leanmoe.tuned_tables import FOLDER_VARIABLE, Tiles, read_table, recorded_tables
from leanmoe_bench.tune import card
from leanmoe_bench.tune.choice import Kept, Timed, choose, gain
from leanmoe_bench.tune.command import show
from leanmoe_bench.tune.kernel_shapes import TuneShape, Weights, shapes_of
from leanmoe_bench.tune.loop import OTHER_BITS, TilesError, measure_batch
from leanmoe_bench.tune.rows import RowsFile
from leanmoe_bench.tune.space import candidates
from leanmoe_bench.tune.tuning import Place, Wanted, run
from leanmoe_runtime.device import sum_kernel
from leanmoe_runtime.device.tiles import with_finer_tiles
from tests.tiny import write_json
from tests.unit.server.test_table_folder import give_manifest, write_config

BF16 = Weights("bfloat16")
BLOCKS = Weights("bfloat16", "fp8_w8a8", (128, 128))
LEAN = TuneShape(5, 2, 4096, 14336, BF16)
FINE = TuneShape(128, 8, 2048, 768, BF16)
HOPPER_SHARED = 227 * 1024


def tiles(m=16, n=64, k=128, group=1, warps=4, stages=4) -> Tiles:
    return Tiles(
        BLOCK_SIZE_M=m,
        BLOCK_SIZE_N=n,
        BLOCK_SIZE_K=k,
        GROUP_SIZE_M=group,
        num_warps=warps,
        num_stages=stages,
    )


class BlockedProduct:
    """A bench whose tiles cut a float32 product on the CPU; top-1 alone has half the rows."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, int, Tiles]] = []
        drawn = torch.Generator().manual_seed(0)
        self.x = torch.randn((8, 256), generator=drawn)
        self.w = torch.randn((256, 128), generator=drawn)

    def _product(self, one: Tiles, kept: Kept) -> torch.Tensor:
        if self.w.shape[1] < one.BLOCK_SIZE_N:
            raise TilesError("wider than the matrix")
        x = self.x if kept is Kept.ALL else self.x[:4]
        columns = []
        for part in self.w.split(one.BLOCK_SIZE_N, dim=1):
            sums = [
                a @ b
                for a, b in zip(
                    x.split(one.BLOCK_SIZE_K, dim=1), part.split(one.BLOCK_SIZE_K), strict=True
                )
            ]
            columns.append(torch.stack(sums).sum(0))
        return torch.cat(columns, dim=1)

    def seconds(self, batch: int, one: Tiles, kept: Kept) -> float:
        self.calls.append(("seconds", batch, one))
        begin = time.perf_counter()
        self._product(one, kept)
        return time.perf_counter() - begin

    def same_bits(self, batch: int, one: Tiles) -> bool:
        self.calls.append(("bits", batch, one))
        own = tiles(k=one.BLOCK_SIZE_K) if self.w.shape[0] < one.BLOCK_SIZE_K else tiles()
        return all(torch.equal(self._product(one, k), self._product(own, k)) for k in Kept)


def place(bench: BlockedProduct, name: str = "NVIDIA H200") -> Place:
    versions = {"vllm": "0.32.0", "triton": "3.6.0", "torch": "2.11.0"}
    return Place(name, versions, card.TABLES, card.own_choice, lambda shape: (bench, 48 * 1024))


def ticking(seconds: float = 1.0):
    """A clock that goes on by itself whenever it is read."""
    counter = itertools.count()
    return lambda: next(counter) * seconds


def standing() -> float:
    return 0.0


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def lean(tmp_path) -> Path:
    path = write_config(tmp_path / "lean")
    give_manifest(path, 8)
    return path


@pytest.fixture
def wanted(lean, tmp_path) -> Wanted:
    checkpoint = open_checkpoint(lean)
    shapes = tuple(shapes_of(checkpoint, 1))
    return Wanted(checkpoint, shapes, (1, 2, 8), tmp_path / "out", 1e9, 3, 0, "leanmoe bench tune")


# The shapes.


def test_a_shape_per_number_of_experts_at_its_commonest_top_k(tmp_path):
    path = write_config(tmp_path / "lean", experts=6, layout={1: 5, 2: 1, 3: 5})
    found = shapes_of(open_checkpoint(path), 2)
    assert found == [
        TuneShape(1, 1, 4096, 7168, BF16),
        TuneShape(5, 2, 4096, 7168, BF16),
        TuneShape(6, 2, 4096, 7168, BF16),
    ]


@pytest.mark.parametrize(
    ("keys", "weights"),
    [
        ({"torch_dtype": "float16"}, Weights("float16")),
        ({"dtype": "float32"}, BF16),
        (
            {"quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}},
            BLOCKS,
        ),
    ],
)
def test_weights_select_the_table(lean, keys, weights):
    config = {**json.loads((lean / "config.json").read_text()), **keys}
    write_json(lean / "config.json", config)
    (shape,) = shapes_of(open_checkpoint(lean), 1)
    assert shape.weights == weights
    wanted = "E=5,N=14336,device_name=X"
    dtype = f",dtype={weights.selector}" if weights.selector else ""
    block = ",block_shape=[128,128]" if weights.block_shape else ""
    assert shape.table("X").file == f"{wanted}{dtype}{block}.json"


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"quantization_config": {"quant_method": "awq"}}, "'awq'"),
        ({"quantization_config": {"quant_method": "fp8"}}, "'fp8'"),
        ({"torch_dtype": "int8"}, "'int8'"),
    ],
)
def test_weights_of_other_kernels_are_refused(lean, keys, said):
    config = {**json.loads((lean / "config.json").read_text()), **keys}
    write_json(lean / "config.json", config)
    with pytest.raises(InputError, match=said):
        shapes_of(open_checkpoint(lean), 1)


# The search.


@pytest.mark.parametrize("shape", [LEAN, FINE, replace(LEAN, weights=BLOCKS)])
@pytest.mark.parametrize("batch", [1, 2, 16, 64, 256, 4096])
def test_candidates_begin_with_vllm_s_choice_and_stay_on_its_side(shape, batch):
    own = card.own_choice(shape, batch)
    found = candidates(shape, batch, own, [], HOPPER_SHARED)
    assert found[0] == own and len(found) == len(set(found)) and len(found) > 20
    assert found == candidates(shape, batch, own, [], HOPPER_SHARED)
    for one in found[1:]:
        assert (one.BLOCK_SIZE_M < 64) == (own.BLOCK_SIZE_M < 64)
        most = max(16, own.BLOCK_SIZE_M, 2 * batch - 1)
        assert most >= one.BLOCK_SIZE_M
        assert one.SPLIT_K is None
        if shape.weights.block_shape:
            assert 128 % one.BLOCK_SIZE_N == 0 == 128 % one.BLOCK_SIZE_K


def test_less_shared_memory_leaves_fewer_candidates():
    own = card.own_choice(LEAN, 1)
    many = candidates(LEAN, 1, own, [], HOPPER_SHARED)
    few = candidates(LEAN, 1, own, [], 64 * 1024)
    assert set(few) < set(many) and tiles(n=256) in set(many) - set(few)


def test_what_serve_would_hand_on_comes_second_and_narrower_tiles_are_among_the_rest():
    own, handed = card.own_choice(LEAN, 1), tiles(n=128, group=16, stages=5)
    found = candidates(LEAN, 1, own, [handed], HOPPER_SHARED)
    assert found[:2] == [own, handed]
    assert tiles(n=32, stages=4) in found
    wide = tiles(m=64)
    assert wide not in candidates(LEAN, 1, own, [wide], HOPPER_SHARED)


# The choice.


def timed(one: Tiles, every: float, top1: float) -> Timed:
    seconds = {Kept.ALL: (every, every * 1.5, every), Kept.TOP1: (top1, top1, top1 * 2)}
    return Timed(one, seconds)


def test_of_those_within_a_hundredth_the_fastest_with_top_1_alone_is_taken():
    own, fastest = timed(tiles(), 1.02, 0.8), timed(tiles(n=128), 1.0, 0.9)
    near, far = timed(tiles(n=32), 1.0099, 0.7), timed(tiles(n=256), 1.011, 0.1)
    for order in itertools.permutations([own, fastest, near, far]):
        assert choose(order) is near
    assert choose([own, fastest, far]) is fastest
    assert gain(near, own, Kept.TOP1).middle == pytest.approx(0.8 / 0.7)


# The loop.


def test_the_loop_times_what_computes_the_same_and_takes_by_the_rule(tmp_path):
    bench = BlockedProduct()
    rows = RowsFile(tmp_path / "rows.jsonl", {"card": "this CPU"})
    own = tiles()
    asked = [own, tiles(n=32), tiles(n=128), tiles(k=64), tiles(n=256)]
    found = measure_batch(8, asked, bench, rows, lambda: True, rounds=4)
    assert found.own == own and (found.tried, found.among) == (5, 5)
    screened = rows.screened(8)
    assert screened[tiles(k=64)].out == OTHER_BITS
    assert screened[tiles(n=256)].out == "wider than the matrix"
    finalists = {one.tiles for one in found.timed}
    assert own in finalists and not finalists & {tiles(k=64), tiles(n=256)}
    assert all(len(one.seconds[kept]) == 4 for one in found.timed for kept in Kept)
    written = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert len(written) == 1 + len(asked) + 1
    assert all(second > 0 for one in found.timed for kept in Kept for second in one.seconds[kept])


def test_rounds_go_forwards_and_backwards(tmp_path):
    bench, rows = BlockedProduct(), RowsFile(tmp_path / "rows.jsonl", {})
    asked = [tiles(), tiles(n=32), tiles(n=128)]
    # All in the finals, whatever the clock says of so small a product.
    bench.seconds = lambda batch, one, kept: bench.calls.append(one) or 1.0
    measure_batch(8, asked, bench, rows, lambda: True, rounds=2)
    finals = [one for one in bench.calls if isinstance(one, Tiles)][2 * 3 :]
    order = [one.tiles for one in rows.finals(8).timed]
    assert finals == [*order, *order, *order[::-1], *order[::-1]]


def test_tiles_of_vllm_that_do_not_run_end_the_measurement(tmp_path):
    bench, rows = BlockedProduct(), RowsFile(tmp_path / "rows.jsonl", {})
    with pytest.raises(LeanMoEError, match="vLLM's own tiles"):
        measure_batch(8, [tiles(n=256)], bench, rows, lambda: True, rounds=2)


# The whole run.


def test_a_run_writes_a_table_that_vllm_reads_and_a_record(wanted, monkeypatch, request):
    bench = BlockedProduct()
    result = run(wanted, place(bench), standing)
    assert [row["batch"] for row in result["tune"]] == [1, 2, 8]
    (table,) = recorded_tables(wanted.folder)
    assert table.name.file == "E=5,N=14336,device_name=NVIDIA_H200.json"
    assert table.record.batches == [1, 2, 8] and table.record.card == "NVIDIA H200"
    as_vllm_reads = vllm_s_reader(monkeypatch, request, wanted.folder)
    for row in result["tune"]:
        assert as_vllm_reads(row["batch"]) == row["tiles"]
        assert row["tried"] == row["among"] and row["all"]["low"] <= row["all"]["ratio"]
    # Past the longest measured batch: the table that serve would hand on.
    source = read_table(card.TABLES / "E=8,N=14336,device_name=NVIDIA_H200.json")
    for batch in (9, 16, 33, 700, 4096, 30000):
        nearest = source[min(source, key=lambda one: abs(one - batch))]
        assert as_vllm_reads(batch) == nearest.keys(), batch
    text = show(result)
    assert "NVIDIA H200, vLLM 0.32.0" in text and "cut short" not in text


def vllm_s_reader(monkeypatch, request, folder):
    from vllm.model_executor.layers.fused_moe import fused_moe
    from vllm.platforms import current_platform
    from vllm.utils.platform_utils import get_device_name_as_file_name

    monkeypatch.setattr(current_platform, "get_device_name", lambda device_id=0: "NVIDIA H200")
    monkeypatch.setenv(FOLDER_VARIABLE, str(folder))
    for forget in (get_device_name_as_file_name, fused_moe.get_moe_configs):
        forget.cache_clear()
        request.addfinalizer(forget.cache_clear)
    shapes = ((5, 2 * 14336, 4096), (5, 4096, 14336))
    return lambda batch: fused_moe.try_get_optimal_moe_config(*shapes, 2, None, batch)


def test_without_a_table_to_hand_on_every_other_batch_is_vllm_s_own_choice(wanted):
    run(replace(wanted, batches=(4, 8)), place(BlockedProduct(), "A card"), standing)
    (table,) = recorded_tables(wanted.folder)
    written = read_table(table.path)
    (shape,) = wanted.shapes
    for batch in [*range(1, 4), *range(9, 17000)]:
        nearest = written[min(written, key=lambda one: abs(one - batch))]
        assert nearest == card.own_choice(shape, batch), batch


def test_a_shape_that_vllm_has_a_table_for_keeps_it_elsewhere(tmp_path):
    """vLLM has both 8 and 16 experts of width 2048: no table is handed on, so none fills up."""
    path = write_config(tmp_path / "lean", experts=8, ffn=2048)
    give_manifest(path, 16)
    checkpoint, out = open_checkpoint(path), tmp_path / "out"
    (shape,) = shapes_of(checkpoint, 1)
    wanted = Wanted(checkpoint, (shape,), (1,), out, 1e9, 2, 0, "leanmoe bench tune")
    run(wanted, place(BlockedProduct()), standing)
    written = read_table(recorded_tables(out)[0].path)
    for batch in (2, 64, 512, 4096):
        nearest = written[min(written, key=lambda one: abs(one - batch))]
        assert nearest == card.own_choice(shape, batch), batch


def test_a_second_run_measures_nothing_twice(wanted):
    first = run(wanted, place(BlockedProduct()), standing)
    again = BlockedProduct()
    second = run(wanted, place(again), standing)
    assert again.calls == []
    assert second == first


def test_a_run_that_was_stopped_goes_on_where_it_was(wanted):
    class Stopping(BlockedProduct):
        def same_bits(self, batch, one):
            if len(self.calls) > 200:
                raise KeyboardInterrupt
            return super().same_bits(batch, one)

    with pytest.raises(KeyboardInterrupt):
        run(wanted, place(Stopping()), standing)
    (path,) = wanted.folder.glob("*.jsonl")
    looked = {line for line in path.read_text().splitlines()[1:] if "finals" not in line}
    # The last row was being written.
    path.write_text(path.read_text() + '{"batch": 8, "til')
    bench = BlockedProduct()
    run(wanted, place(bench), standing)
    lines = path.read_text().splitlines()
    assert looked <= set(lines) and all(json.loads(line) for line in lines)
    rows = [json.loads(line) for line in lines[1:]]
    seen = [(row["batch"], json.dumps(row["tiles"])) for row in rows if "tiles" in row]
    assert len(seen) == len(set(seen)) and len(looked) > 20
    assert recorded_tables(wanted.folder)[0].record.batches == [1, 2, 8]


@pytest.mark.parametrize("other", ["NVIDIA H200 of another driver", "vllm"])
def test_rows_of_another_card_or_version_are_not_taken(wanted, other):
    here = place(BlockedProduct())
    run(wanted, here, standing)
    if other == "vllm":
        there = replace(here, versions={**here.versions, "vllm": "0.33.0"})
    else:
        there = replace(here, card="NVIDIA H200 NVL")  # of the same file name
    with pytest.raises(InputError, match="was measured with"):
        run(wanted, there, standing)


def test_a_file_that_is_none_of_ours_is_refused(wanted):
    wanted.folder.mkdir()
    (wanted.folder / "E=5,N=14336,device_name=NVIDIA_H200.jsonl").write_text("[]\n")
    with pytest.raises(InputError, match="does not hold rows of bench tune"):
        run(wanted, place(BlockedProduct()), standing)


def test_a_limit_divides_itself_and_a_second_run_goes_on(wanted):
    bench = BlockedProduct()
    first = run(replace(wanted, limit=60), place(bench), ticking())
    tried = [row["tried"] for row in first["tune"]]
    assert len(tried) == 3 and all(5 <= one < 40 for one in tried)
    assert len(first["not_measured"]) == 3 and "tiles" in first["not_measured"][0]
    second = run(replace(wanted, limit=60), place(BlockedProduct()), ticking())
    assert all(b["tried"] > a for a, b in zip(tried, second["tune"], strict=True))
    assert "cut short by --limit" in show(first)


def test_a_limit_that_ends_early_leaves_out_the_larger_batches(wanted):
    result = run(replace(wanted, limit=10), place(BlockedProduct()), ticking())
    assert [(row["batch"], row["tried"]) for row in result["tune"]] == [(1, 2), (2, 2)]
    assert result["not_measured"][-1] == "5 experts, batch 8: nothing"
    assert recorded_tables(wanted.folder)[0].record.batches == [1, 2]
    with pytest.raises(LeanMoEError, match="was over before anything"):
        out = wanted.folder / "other"
        run(replace(wanted, limit=1, folder=out), place(BlockedProduct()), ticking(9))


# The command.


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["{model}", "-o", "{out}"], "no CUDA GPU is to be seen here"),
        (["-o", "{out}"], "give its directory"),
        (["{model}"], "give one of them"),
        (["{model}", "-o", "{out}", "--into-checkpoint"], "give one of them"),
        (["{model}", "-o", "{out}", "--batch", "1,x"], "--batch is '1,x'"),
        (["{model}", "-o", "{out}", "--batch", "0"], "--batch is '0'"),
        (["{model}", "-o", "{out}", "--limit", "0"], "--limit is 0.0"),
        (["{model}", "-o", "{out}", "--limit", "nan"], "--limit is nan"),
        (["{model}", "-o", "{out}", "--tp", "3"], "--tp is 3"),
        (["{model}", "-o", "{model}/config.json"], "is a file"),
        (["{model}/no", "-o", "{out}"], "is not a directory"),
    ],
)
def test_what_cannot_be_is_refused_in_one_sentence(lean, tmp_path, capsys, arguments, said):
    filled = [one.format(model=lean, out=tmp_path / "out") for one in arguments]
    assert main(["bench", "tune", *filled]) == 2
    told = capsys.readouterr()
    assert told.out == "" and told.err.count("\n") == 1 and said in told.err
    assert not (tmp_path / "out").exists()


def test_other_benches_take_no_model(lean, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["bench", "kernel", str(lean)])
    assert stop.value.code == 2
    assert f"unrecognized arguments: {lean}" in capsys.readouterr().err


# What the card is given, as far as it can be made without one.


@pytest.fixture(scope="module")
def bench():
    return card.ExpertsBench(TuneShape(6, 3, 64, 32, BF16), seed=0, device="cpu")


def test_every_token_has_different_experts_and_top_1_alone_keeps_the_first(bench):
    inputs = bench._draw(5)
    ids, weights = inputs.ids[Kept.ALL], inputs.weights[Kept.ALL]
    assert ids.shape == (16, 5, 3) and ids.dtype == torch.int32
    assert all(len(set(row)) == 3 for row in ids.view(-1, 3).tolist())
    assert ids.min() == 0 and ids.max() == 5 and not torch.equal(ids[0], ids[1])
    torch.testing.assert_close(weights.sum(-1), torch.ones(16, 5))
    assert (weights[..., 0] >= weights[..., 1]).all()
    alone = inputs.ids[Kept.TOP1]
    assert torch.equal(alone[..., 0], ids[..., 0]) and (alone[..., 1:] == -1).all()
    assert (inputs.weights[Kept.TOP1][..., 1:] == 0).all()


def test_the_layer_is_vllm_s_own_class_over_weights_of_the_shape(bench):
    (layer,) = bench._layers
    assert layer.gate_up.shape == (6, 64, 64) and layer.down.shape == (6, 64, 32)
    assert type(layer.experts).__name__ == "TritonExperts"
    assert 0.9 < layer.gate_up.float().std() * 8 < 1.1
    assert layer.gate_up.nbytes + layer.down.nbytes == bench.shape.layer_bytes


@pytest.mark.parametrize("batch", [1, 5])
def test_what_is_timed_is_what_the_plugin_serves(bench, batch, monkeypatch):
    """Its own sum instead of a map, and a table's tiles as it narrows them."""
    (layer,), given, summed, wrapped = bench._layers, [], [], []
    monkeypatch.setattr(layer.experts, "apply", lambda **named: given.append(named))
    monkeypatch.setattr(sum_kernel, "sum_computed", lambda *rows: summed.append(rows))
    bench._use(batch)
    bench._pass(0, Kept.TOP1)
    assert given[0]["expert_map"] is None
    ids, rows = given[0]["topk_ids"], torch.zeros(batch, 3, 64)
    layer.experts.moe_sum(rows, torch.zeros(batch, 64), ids, None)
    assert len(summed) == 1 and torch.equal(summed[0][2], ids)
    monkeypatch.setattr(card, "wrap_triton_call", lambda *call: wrapped.append(call))
    card._narrow_tiles(torch.device("cuda"))
    assert wrapped == [("invoke_fused_moe_triton_kernel", with_finer_tiles)]


def test_tiles_that_fail_leave_vllm_s_choice_as_it_was():
    from triton.errors import TritonError

    own = card.own_choice(LEAN, 1)
    for error, seen in ((TritonError("too much\nmore"), TilesError), (KeyError("x"), KeyError)):
        with pytest.raises(seen), card._tiles(tiles(n=256)):
            assert card.own_choice(LEAN, 1) == tiles(n=256)
            raise error
        assert card.own_choice(LEAN, 1) == own
