"""``leanmoe plan``: exact sizes from headers alone, what fits, and what is refused."""

from __future__ import annotations

import json
import struct
from math import prod

import pytest
from safetensors.torch import load_file

from leanmoe.checkpoint import open_checkpoint
from leanmoe.cli import main
from leanmoe_pruning.checkpoints.opening import block_sizes
from leanmoe_pruning.checkpoints.shards import ShardReader, read_header
from leanmoe_pruning.methods.registry import METHODS
from leanmoe_pruning.planning.kinds import METHOD_NAMES
from tests.golden.naee_data import CALIBRATION
from tests.tiny_families import FAMILY_NAMES, write_tiny
from tests.unit.pruning.test_small_floats import replace_tensors, rewrite_in_float8

GIB = 1 << 30


def planned(model, capsys, *more: str) -> dict:
    assert main(["plan", str(model), "--tflops", "1", "--json", *more]) == 0
    return json.loads(capsys.readouterr().out)


def row_of(found: dict, method: str | None, **budget: int) -> dict:
    rows = [row for row in found["rows"] if row["budget"] == budget]
    return next(row for row in rows if (method in row["methods"]) or not (method or row["methods"]))


def weight_bytes(path) -> int:
    return ShardReader(path).weight_bytes


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_sizes_are_those_of_the_cut(family, tmp_path, capsys):
    model, out = write_tiny(tmp_path / "model", family), tmp_path / "out"
    found = planned(model, capsys, "--keep", "6")
    assert row_of(found, None)["weight_bytes"] == weight_bytes(model)
    code = main(["prune", str(model), "--method", "random", "--keep", "6", "-o", str(out)])
    assert code == 0
    row = row_of(found, "random", keep=6)
    assert row["weight_bytes"] == weight_bytes(out)
    assert row["loads_in"] == "vllm" and "leanmoe" not in open_checkpoint(out).config


@pytest.fixture
def mixed(tmp_path):
    """Float8 but for one expert of each layer, as tools leave those that lose most by it."""
    model = write_tiny(tmp_path / "model", "qwen3_moe", dtype="bfloat16")
    plain = {name: t.clone() for name, t in load_file(model / "model.safetensors").items()}
    rewrite_in_float8(model)
    tensors = {name: t.clone() for name, t in load_file(model / "model.safetensors").items()}
    for name in list(tensors):
        if ".experts.1." in name:
            del tensors[name]
    replace_tensors(model, tensors | {n: t for n, t in plain.items() if ".experts.1." in n})
    return model


def test_experts_of_several_types_are_counted_as_they_lie_there(mixed, tmp_path, capsys):
    found, plan = planned(mixed, capsys, "--keep", "4"), tmp_path / "plan.json"
    assert row_of(found, None)["weight_bytes"] == weight_bytes(mixed)
    plan.write_text(json.dumps({"layers": {i: {"keep": [0, 1, 2, 3]} for i in range(3)}}))
    assert main(["prune", str(mixed), "--plan", str(plan), "-o", str(tmp_path / "out")]) == 0
    assert row_of(found, "random", keep=4)["weight_bytes"] == weight_bytes(tmp_path / "out")
    assert any("of several types (BF16, F8_E4M3)" in note for note in found["notes"])
    # What they cannot be given: sums, new values, a format of one type.
    assert not any(row["budget"].get("pattern") for row in found["rows"])
    methods = {name for row in found["rows"] for name in row["methods"]}
    assert not methods & {"m-smoe", "eep", "sparsegpt"} and {"magnitude", "reap"} <= methods
    assert main(["plan", str(mixed), "--tflops", "1", "--method", "m-smoe"]) == 2
    assert "it has float8 experts" in capsys.readouterr().err


def test_experts_of_several_types_are_not_packed_after_all_the_work(mixed, tmp_path, capsys):
    how = ["--method", "magnitude", "--pattern", "16:32", "--compress"]
    out = tmp_path / "out"
    assert main(["prune", str(mixed), *how, "-o", str(out)]) == 2
    assert "packed experts are of one type" in (said := capsys.readouterr().err)
    assert "WARNING" not in said and "checking" not in said and not out.exists()


@pytest.mark.parametrize("pattern", ["24:32", "16:32", "8:32"])
def test_sizes_of_packed_experts_are_those_of_the_file(pattern, tmp_path, capsys):
    model, out = write_tiny(tmp_path / "model", "olmoe"), tmp_path / "out"
    (row,) = (
        row
        for row in planned(model, capsys, "--method", "wanda")["rows"]
        if row["budget"] == {"pattern": pattern}
    )
    how = ("--method", "magnitude", "--pattern", pattern, "--compress")
    assert main(["prune", str(model), *how, "-o", str(out)]) == 0
    assert row["weight_bytes"] == weight_bytes(out)
    assert row["loads_in"] == "leanmoe serve"
    capsys.readouterr()
    found = planned(out, capsys)
    assert found["weight_bytes"] == weight_bytes(out)
    assert row_of(found, None)["serve"]["weights_bytes"] == weight_bytes(out)
    assert row_of(found, None)["loads_in"] == "leanmoe serve"


def test_float8_is_packed_as_planned_and_not_given_new_values(tmp_path, capsys):
    model, out = write_tiny(tmp_path / "model", "qwen3_moe", dtype="float32"), tmp_path / "out"
    rewrite_in_float8(model)
    found = planned(model, capsys)
    assert {"m-smoe", "eep", "sparsegpt"}.isdisjoint(
        name for row in found["rows"] for name in row["methods"]
    )
    how = ["--method", "magnitude", "--pattern", "16:32", "--compress"]
    assert main(["prune", str(model), *how, "-o", str(out)]) == 0
    row = row_of(found, "magnitude", pattern="16:32")
    assert row["weight_bytes"] == weight_bytes(out)
    assert row["loads_in"] == "leanmoe serve"


def test_a_large_model_of_which_nothing_but_headers_is_there(tmp_path, capsys):
    """Mixtral-8x7B's shapes, 87 GiB of holes: reading them would take minutes."""
    model = write_hollow_mixtral(tmp_path / "hollow")
    found = planned(model, capsys, "--keep", "4")
    assert found["weight_bytes"] == 93_405_585_408
    # Two bytes times keys and values of 8 heads of 128, over 32 layers.
    assert found["kv_bytes_per_1k_tokens"] == 1000 * 2 * 2 * 8 * 128 * 32
    assert found["tensor_parallel"] == [1, 2, 4, 8, 16, 32]
    half = row_of(found, "naee", keep=4)
    assert half["expert_parallel"] == [1, 2, 4] and half["reachable_top_k"] == [1, 2]
    # 46,879 MB are published for r = 4, with what the run itself took.
    assert half["weight_bytes"] == pytest.approx(46_879 * 2**20, rel=0.02)
    largest = 8 * 3 * 4096 * 14336 * 2
    assert half["make"]["ram_bytes"] > 1.5 * largest
    fit = planned(model, capsys, "--fit", "80GiB", "--method", "naee")["rows"]
    assert [row["budget"] for row in fit] == [{"keep": 6}]
    assert fit[0]["serve"]["total_bytes"] <= 0.92 * 80 * GIB
    packed = planned(model, capsys, "--fit", "80GiB", "--method", "wanda")["rows"]
    assert [row["budget"] for row in packed] == [{"pattern": "16:32"}]
    blocks = sum(file.stat().st_blocks for file in model.iterdir()) * 512
    assert blocks < 1 << 20


def write_hollow_mixtral(path):
    """Config and headers of the real model; its tensors are a hole in the file."""
    path.mkdir()
    config = {
        "architectures": ["MixtralForCausalLM"],
        "model_type": "mixtral",
        "vocab_size": 32000,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
        "rms_norm_eps": 1e-5,
        "torch_dtype": "bfloat16",
    }
    (path / "config.json").write_text(json.dumps(config))
    checkpoint = open_checkpoint(path)
    sizes = dict.fromkeys(checkpoint.family.other_names(config), (4096,))
    for name in sizes:
        if "proj" in name:
            sizes[name] = (1024 if name.split(".")[-2] in ("k_proj", "v_proj") else 4096, 4096)
        elif "embed" in name or "lm_head" in name:
            sizes[name] = (32000, 4096)
    write_hole(path / "model.safetensors", {**sizes, **block_sizes(checkpoint)})
    return path


def write_hole(file, sizes) -> None:
    entries, end = {}, 0
    for name, size in sizes.items():
        start, end = end, end + 2 * prod(size)
        entries[name] = {"dtype": "BF16", "shape": list(size), "data_offsets": [start, end]}
    header = json.dumps(entries).encode()
    header += b" " * (-len(header) % 8)
    with file.open("wb") as out:
        out.write(struct.pack("<Q", len(header)) + header)
        out.truncate(8 + len(header) + end)


def test_tensors_that_cannot_be_used_are_never_looked_at(model, capsys):
    """Every weight a NaN: whatever reads one stops."""
    whole = planned(model, capsys)
    file = model / "model.safetensors"
    raw = bytearray(file.read_bytes())
    data = sum(info.nbytes for info in read_header(file).values())
    raw[-data:] = b"\xff" * data
    file.write_bytes(raw)
    assert planned(model, capsys) == whole


def test_merged_and_condensed_cuts_are_laid_out_to_the_byte(model, tmp_path, capsys):
    found = planned(model, capsys, "--keep", "4")
    for row in found["rows"]:
        if row["kind"] in ("merging", "evolution", "condensing"):
            assert row["loads_in"] == "leanmoe serve"
    rows = [[float(i == j) for j in range(8)] for i in range(4)]
    merge = {"layers": {str(i): {"merge": {"router": rows, "experts": rows}} for i in range(3)}}
    condense = {"layers": {"2": {"condense": {"0": 1.0, "1": 1.0}}}}
    for name, plan, kind, budget in (
        ("merge", merge, "merging", {"keep": 4}),
        ("condense", condense, "condensing", {"condensed_layers": 1}),
    ):
        (tmp_path / "plan.json").write_text(json.dumps(plan))
        out = tmp_path / name
        assert main(["prune", str(model), "--plan", f"{tmp_path}/plan.json", "-o", str(out)]) == 0
        for row in found["rows"]:
            if row["kind"] == kind and row["budget"] == budget:
                assert row["weight_bytes"] == weight_bytes(out)


def test_groups_stay_equally_large(tmp_path, capsys):
    model = write_tiny(tmp_path / "model", "deepseek_v3")
    found = planned(model, capsys, "--method", "random")
    assert [row["budget"] for row in found["rows"][1:]] == [{"keep": 6}]
    assert found["kv_bytes_per_1k_tokens"] == 1000 * 2 * 3 * (512 + 64)
    assert main(["plan", str(model), "--keep", "7"]) == 2
    assert "2 groups of experts stay equally large" in capsys.readouterr().err


def test_a_routers_top_k_that_cannot_be_lowered(tmp_path, capsys):
    found = planned(write_tiny(tmp_path / "model", "phimoe"), capsys, "--keep", "4")
    assert all(row["reachable_top_k"] == [2] for row in found["rows"] if row["budget"])


def test_what_fits_is_the_largest_that_does(model, capsys):
    sizes = {}
    for keep in range(2, 9):
        row = row_of(planned(model, capsys, "--keep", str(keep)), "random", keep=keep)
        sizes[keep] = row["serve"]["total_bytes"]
    memory = int((sizes[5] + sizes[6]) / 2 / 0.92)
    found = planned(model, capsys, "--fit", f"{memory}B", "--method", "random")
    assert [row["budget"] for row in found["rows"]] == [{"keep": 5}]
    whole = planned(model, capsys, "--fit", "1GiB")
    assert [row["kind"] for row in whole["rows"]] == ["as it is"]


@pytest.mark.parametrize("how", ["constant", "lowrank:2"])
def test_stand_ins_are_not_shared_out_by_expert_parallelism(tmp_path, capsys, how):
    model, out = write_tiny(tmp_path / "model", "mixtral"), tmp_path / "out"
    text = ("--data", "builtin:gen:1", "--window", "32")
    cut = ("--method", "random", "--keep", "4", "--replace", how, *text)
    assert main(["prune", str(model), *cut, "-o", str(out)]) == 0
    capsys.readouterr()
    (row,) = planned(out, capsys)["rows"]
    assert row["expert_parallel"] == [1] and row["tensor_parallel"] == [1, 2, 4]


def test_packed_experts_are_split_in_whole_groups_alone(tmp_path, capsys):
    """Experts 64 wide: 32 weights to each of two processes, none of 16."""
    model, packed = write_tiny(tmp_path / "model", "qwen3_moe"), tmp_path / "packed"
    rows = planned(model, capsys, "--method", "wanda")["rows"]
    split = {row["loads_in"]: (row["tensor_parallel"], row["expert_parallel"]) for row in rows}
    assert split == {"vllm": ([1, 2, 4], [1, 2, 4, 8]), "leanmoe serve": ([1, 2], [1])}
    assert main(["plan", str(model), "--tflops", "1", "--method", "wanda"]) == 0
    assert "tensor-parallel sizes: 1, 2, 4 (packed: 1, 2)" in capsys.readouterr().out
    how = ("--method", "magnitude", "--pattern", "16:32", "--compress")
    assert main(["prune", str(model), *how, "-o", str(packed)]) == 0
    capsys.readouterr()
    found = planned(packed, capsys)
    assert found["tensor_parallel"] == [1, 2] and found["rows"][0]["expert_parallel"] == [1]


def test_a_layout_is_served_by_leanmoe_and_cut_by_plans(model, tmp_path, capsys):
    file, out = tmp_path / "plan.json", tmp_path / "out"
    file.write_text(json.dumps({"layers": {"1": {"keep": [0, 1, 2]}}}))
    assert main(["prune", str(model), "--plan", str(file), "-o", str(out)]) == 0
    capsys.readouterr()
    found = planned(out, capsys)
    assert [row["loads_in"] for row in found["rows"]] == ["leanmoe serve"]
    assert found["rows"][0]["expert_parallel"] == [1]
    assert "cut by --plan" in found["notes"][0]


def test_the_table_names_its_estimates(model, capsys):
    assert main(["plan", str(model), "--fit", "300MB"]) == 0
    said = capsys.readouterr().out
    assert "* estimates" in said and "measured here" in said and "The whole model fits" in said


def test_every_method_has_its_kind():
    # "matrices" decides nothing: it applies a file, like --plan.
    assert sorted({*METHOD_NAMES, "matrices"}) == sorted(METHODS)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--fit", "80 gigs"], "15 digits with one of the units B, KB"),
        (["--fit", "9" * 400 + "GiB"], "expected a number of up to 15 digits with one of"),
        (["--fit", "many"], "--fit is 'many'"),
        (["--fit", "1MiB"], "the smallest cut (keep 2 by random) needs about"),
        (["--keep", "1"], "below the top-2 routing"),
        (["--keep", "9"], "more than the 8 experts"),
        (["--keep", "4", "--fit", "1GiB"], "--fit finds the budget and --keep gives it"),
        (["--tokens", "0"], "--tokens is 0"),
        (["--kv-tokens", "-3"], "--kv-tokens is -3"),
        (["--tflops", "nan"], "--tflops is nan"),
        (["--tflops", "1e-320"], "expected a millionth or more and less than a million"),
    ],
)
def test_what_cannot_be_planned(model, capsys, more, words):
    assert main(["plan", str(model), *more]) == 2
    said = capsys.readouterr().err
    assert words in said and said.count("\n") == 1


@pytest.mark.parametrize("family", ["olmoe", "granitemoe"])
def test_cuts_of_a_packed_model_are_laid_out_dense_and_packed(family, tmp_path, capsys):
    model, packed = write_tiny(tmp_path / "model", family), tmp_path / "packed"
    how = ["--method", "magnitude", "--pattern", "16:32", "--compress"]
    assert main(["prune", str(model), *how, "-o", str(packed)]) == 0
    capsys.readouterr()
    found = planned(packed, capsys, "--keep", "6")
    assert "those named packed are as --compress writes them" in found["notes"][0]
    for more, budget, where in (
        ((), {"keep": 6}, "vllm"),
        (("--compress",), {"keep": 6, "packed": True}, "leanmoe serve"),
    ):
        out = tmp_path / where
        keep = ["--method", "random", "--keep", "6", *more]
        assert main(["prune", str(packed), *keep, "-o", str(out)]) == 0
        capsys.readouterr()
        row = row_of(found, "random", **budget)
        assert row["weight_bytes"] == row["serve"]["weights_bytes"] == weight_bytes(out)
        assert row["loads_in"] == where
    assert main(["plan", str(packed), "--tflops", "1", "--method", "naee"]) == 0
    assert "keep 6 packed" in capsys.readouterr().out


def test_smaller_cuts_of_a_packed_model_are_not_denied(tmp_path, capsys):
    model, out = write_tiny(tmp_path / "model", "olmoe"), tmp_path / "packed"
    few = ["--method", "magnitude", "--sparsity", "0.5", "--compress"]
    assert main(["prune", str(model), *few, "-o", str(out)]) == 0
    for path, unseen in ((out, True), (model, False)):
        assert main(["plan", str(path), "--fit", "1MiB", "--tflops", "1"]) == 2
        said = capsys.readouterr().err
        assert ("cuts with --compress, which may be smaller, are not laid out" in said) == unseen


def test_no_model(tmp_path, capsys):
    assert main(["plan", str(tmp_path)]) == 2
    assert "has no config.json" in capsys.readouterr().err


def test_the_bundle_takes_the_disk_that_was_planned(model, tmp_path, capsys):
    out = tmp_path / "scores"
    assert main(["score", str(model), "--data", CALIBRATION, "-o", str(out), "--json"]) == 0
    tokens = json.loads(capsys.readouterr().out)["tokens"]
    found = planned(model, capsys, "--keep", "4", "--tokens", str(tokens))
    row = row_of(found, "reap", keep=4)
    taken = sum(file.stat().st_size for file in out.iterdir())
    assert row["make"]["disk_bytes"] - row["weight_bytes"] == pytest.approx(taken, rel=0.05)
