"""EEP at the command line: what it writes, that it goes on, what it refuses."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from leanmoe.cli import main
from leanmoe_pruning.checkpoints.opening import open_model
from leanmoe_pruning.checkpoints.shards import ShardReader
from leanmoe_pruning.cutting import cutter
from leanmoe_pruning.data.tasks.loading import load_task
from leanmoe_pruning.evaluation.resident import ResidentModel
from leanmoe_pruning.evaluation.task_scoring import score_task
from leanmoe_pruning.forward.stream import DecoderStream
from leanmoe_pruning.methods.eep import store
from leanmoe_pruning.methods.eep.fitness import Judge
from leanmoe_pruning.methods.eep.individual import Individual
from leanmoe_pruning.methods.eep.merged_model import Applied, stored_dtype
from tests.tiny import write_tiny_mixtral
from tests.tiny_families import write_tiny
from tests.tiny_tasks import write_choices, write_open

SMALL = ("--prune-evaluations", "5", "--evaluations", "9", "--groups", "2")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("eep")
    (path / "model").mkdir()
    write_tiny_mixtral(path / "model", layers=2)
    write_choices(path / "task.jsonl")
    return path


def arguments(folder: Path, out: Path, *more: str) -> list[str]:
    options = ["--method", "eep", "--keep", "4", "--task", str(folder / "task.jsonl")]
    return ["prune", str(folder / "model"), *options, *SMALL, "-o", str(out), *more]


@pytest.fixture(scope="module")
def whole(folder) -> Path:
    assert main(arguments(folder, folder / "whole", "--dump", str(folder / "dump"))) == 0
    return folder / "whole"


def weights(out: Path) -> bytes:
    return b"".join(file.read_bytes() for file in sorted(out.glob("*.safetensors")))


def test_two_runs_give_identical_bytes_and_leave_nothing_else(folder, whole, tmp_path):
    assert main(arguments(folder, tmp_path / "again")) == 0
    assert weights(tmp_path / "again") == weights(whole)
    assert [path.name for path in tmp_path.iterdir()] == ["again"]


def test_a_plan_alone_is_the_same_decision_and_leaves_nothing_else(folder, whole, tmp_path):
    plan = tmp_path / "plan.json"
    assert main([*arguments(folder, plan), "--plan-only"]) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["plan.json"]
    out = tmp_path / "out"
    assert main(["prune", str(folder / "model"), "--plan", str(plan), "-o", str(out)]) == 0
    assert weights(out) == weights(whole)


@pytest.mark.parametrize(
    ("method", "option", "said"),
    [
        ("random", ["--top-k", "1"], "--top-k is an option of --method eep, matrices; leave it"),
        ("naee", ["--gate", "raw"], "--gate is an option of --method frequency, soft-activation"),
        ("eep", ["--layers", "2"], "--layers is an option of --method cd-moe"),
        ("m-smoe", ["--pattern", "2:4"], "--pattern is an option of --method moe-pruner, wanda"),
        ("frequency", ["--align"], "--align is an option of --method m-smoe"),
    ],
)
def test_options_of_another_method_are_refused(folder, tmp_path, capsys, method, option, said):
    command = ["prune", str(folder / "model"), "--method", method, "--keep", "4", *option]
    assert main([*command, "-o", str(tmp_path / "out")]) == 2
    assert said in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_every_individual_is_dumped_and_none_twice(folder, whole):
    found = load_file(folder / "dump" / "results.safetensors")
    assert found["population.EM"].shape == (9, 2, 4, 8)
    members = {Individual(*pair).digest() for pair in zip(*map(found.get, MATRICES), strict=True)}
    assert len(members) == 9


MATRICES = ("population.EM", "population.RM")


def test_what_was_judged_is_what_is_written(folder, whole):
    """The best individual's training score, by the checkpoint that came out of it."""
    settings = open_model(whole).manifest.settings
    train, dev, _ = load_task(str(folder / "task.jsonl")).split(12, 4)
    model = ResidentModel.load(DecoderStream(open_model(whole)))
    with torch.inference_mode():
        assert 100 * score_task(model, train).accuracy == settings["found"]["score"]
        assert 100 * score_task(model, dev).accuracy == settings["found"]["held_out_score"]


def test_a_killed_search_goes_on_to_the_same_bytes(folder, whole, tmp_path):
    """Killed by itself with SIGKILL in its fifth evaluation."""
    script = (
        "import os, signal, sys\n"
        "from leanmoe_pruning.methods.eep.fitness import Judge\n"
        "from leanmoe.cli import main\n"
        "score, asked = Judge.score, []\n"
        "def dying(self, *a):\n"
        "    asked.append(a)\n"
        "    if len(asked) == 5: os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return score(self, *a)\n"
        "Judge.score = dying\n"
        "main(sys.argv[1:])\n"
    )
    command = arguments(folder, tmp_path / "out")
    killed = subprocess.run([sys.executable, "-c", script, *command], check=False)
    assert killed.returncode == -signal.SIGKILL
    [store] = tmp_path.iterdir()
    assert len(list(store.iterdir())) == 4
    kept = {path: path.stat().st_mtime_ns for path in store.iterdir()}
    asked = []
    with pytest.MonkeyPatch.context() as patch:
        original = Judge.score

        def counting(self, *given):
            asked.append({path: path.stat().st_mtime_ns for path in kept})
            return original(self, *given)

        patch.setattr(Judge, "score", counting)
        assert main(command) == 0
    # Five evaluations were left of nine, then all nine were judged on held-out items.
    assert len(asked) == 5 + 9 and all(times == kept for times in asked)
    assert weights(tmp_path / "out") == weights(whole)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("evaluated", [0, 1, 9])
def test_an_interrupt_says_what_is_kept_of_a_search(
    folder, whole, tmp_path, capsys, monkeypatch, evaluated
):
    """In the first evaluation's file nothing; in the second's the first; of the checkpoint all."""
    command, seen = arguments(folder, tmp_path / "out"), []
    real, module = (store.write_tensors, store) if evaluated < 9 else (cutter.write_shard, cutter)

    def stopped(path, *given):
        seen.append(path)
        path.write_text("half")
        if len(seen) == (evaluated + 1 if evaluated < 9 else 1):
            os.kill(os.getpid(), signal.SIGINT)
        return real(path, *given)

    with monkeypatch.context() as patch:
        patch.setattr(module, real.__name__, stopped)
        assert main(command) == 130
    said = capsys.readouterr().err.splitlines()[-1]
    kept = list(tmp_path.iterdir())
    if not evaluated:
        assert kept == [] and "nothing half-written is left" in said
        return
    [left] = kept
    assert f"what is finished is kept in {left}: run the same command again" in said
    assert not list(left.glob("*.part"))
    assert len(list(left.glob("train-*"))) == evaluated
    assert main(command) == 0
    assert weights(tmp_path / "out") == weights(whole)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_mixture_in_memory_has_the_bits_of_the_one_written(folder, tmp_path):
    draw = torch.Generator().manual_seed(1)
    matrices = {
        "x.W_EM": torch.randn(2, 3, 8, generator=draw) / 3,
        "x.W_RM": torch.rand(2, 3, 8, generator=draw),
    }
    from safetensors.torch import save_file

    save_file(matrices, tmp_path / "m.safetensors")
    out = tmp_path / "out"
    given = ["--method", "matrices", "--matrices", f"{tmp_path / 'm.safetensors'}:x"]
    assert main(["prune", str(folder / "model"), *given, "-o", str(out)]) == 0
    source = open_model(folder / "model")
    applied = Applied({0: 0, 1: 1}, 2, stored_dtype(source))
    reader, family = ShardReader(out), source.family
    individual = Individual(matrices["x.W_EM"], matrices["x.W_RM"])
    for layer in DecoderStream(source).layers():
        merged = applied.to_layer(layer, individual, layer.index)
        for slot in range(3):
            for projection in ("gate_proj", "up_proj", "down_proj"):
                name = family.expert_name(layer.index, slot, projection)
                assert torch.equal(getattr(merged.experts, projection)[slot], reader.read(name))


def test_active_experts_alone(folder, tmp_path):
    """All experts stay and one is active: there is nothing to prune, merging starts at identity."""
    out, dump = tmp_path / "out", tmp_path / "dump"
    options = [
        "--method",
        "eep",
        "--keep",
        "8",
        "--top-k",
        "1",
        "--evaluations",
        "6",
        "--groups",
        "2",
    ]
    options += ["--task", str(folder / "task.jsonl"), "--dev-items", "0", "--dump", str(dump)]
    assert main(["prune", str(folder / "model"), *options, "-o", str(out)]) == 0
    first = load_file(dump / "results.safetensors")["population.EM"][0]
    assert torch.equal(first, torch.eye(8).expand(2, 8, 8))
    assert {own.top_k for own in open_model(out).layers.values()} == {1}


def test_a_router_that_does_not_renormalise_keeps_its_lost_mass(tmp_path):
    """A one-hot selection is no plain cut there: what was pruned is lost, not shared out."""
    model = write_tiny(tmp_path / "model", "qwen2_moe")
    write_choices(tmp_path / "task.jsonl")
    options = ["--method", "eep", "--keep", "4", "--task", str(tmp_path / "task.jsonl")]
    options += ["--evaluations", "3", "--prune-evaluations", "3", "--groups", "1"]
    assert main(["prune", str(model), *options, "-o", str(tmp_path / "out")]) == 0
    out = open_model(tmp_path / "out")
    assert all(own.gate_rows == 8 for own in out.layers.values())
    train, _, _ = load_task(str(tmp_path / "task.jsonl")).split(12, 4)
    with torch.inference_mode():
        served = score_task(ResidentModel.load(DecoderStream(out)), train)
    assert 100 * served.accuracy == out.manifest.settings["found"]["score"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--keep", "1"], "below the top-2 routing"),
        (["--keep", "4", "--groups", "9"], "--groups is '9', expected a number from 1 to 2"),
        (["--keep", "4", "--top-k", "3"], "give --top-k from 1 to 2"),
        (["--keep", "4", "--evaluations", "3"], "--prune-evaluations 100 and --evaluations 3"),
        (["--keep", "4", "--workers", "0"], "--workers is 0"),
        (["--keep", "4", "--dev-items", "99"], "give more items or fewer --dev-items"),
        (["--keep", "4", "--data", "builtin:gen"], "leave --data out"),
        (["--ratio", "0.5"], "leave --ratio out"),
        ([], "takes --keep N"),
    ],
)
def test_bad_input_is_one_sentence_and_writes_nothing(folder, tmp_path, capsys, options, said):
    command = ["prune", str(folder / "model"), "--method", "eep", "-o", str(tmp_path / "out")]
    assert main([*command, "--task", str(folder / "task.jsonl"), *options]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("matrix", "value"), [("W_EM", float("nan")), ("W_RM", -1.0)])
def test_matrices_that_no_model_can_have_are_refused(folder, tmp_path, capsys, matrix, value):
    eye = torch.eye(8)[:4].repeat(2, 1, 1)
    held = {"c.W_EM": eye, "c.W_RM": eye.clone()}
    held[f"c.{matrix}"][1, 2] = value
    save_file(held, tmp_path / "found.safetensors")
    how = ["--method", "matrices", "--matrices", f"{tmp_path / 'found.safetensors'}:c"]
    assert main(["prune", str(folder / "model"), *how, "-o", str(tmp_path / "out")]) == 2
    assert "or no finite numbers" in capsys.readouterr().err
    row_of_zero_sum = Individual(torch.zeros(1, 1, 2) / 0.0, torch.ones(1, 1, 2))
    assert row_of_zero_sum.can_route and not row_of_zero_sum.is_finite


def test_merges_are_judged_in_the_numbers_they_are_written_in(folder, tmp_path, capsys):
    (tmp_path / "model").mkdir()
    write_tiny_mixtral(tmp_path / "model", layers=2, dtype="float16")
    command = arguments(folder, tmp_path / "out")
    command[1] = str(tmp_path / "model")
    assert main([*command, "--compute", "bfloat16"]) == 2
    assert "is stored as float16" in capsys.readouterr().err
    assert main([*command, "--compute", "float32"]) == 0


def test_answers_can_be_generated(folder, tmp_path):
    """The same search where the task has no choices but texts to write."""
    task = write_open(tmp_path / "open.jsonl")
    command = arguments(folder, tmp_path / "out")
    command[command.index("--task") + 1] = str(task)
    assert main(command) == 0
    settings = open_model(tmp_path / "out").manifest.settings
    assert settings["task"]["train"]["items"] == 6 and settings["found"]["evaluated"] == 9
