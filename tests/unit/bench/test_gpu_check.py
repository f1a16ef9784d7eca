"""The GPU run's door, its deadline and its one JSON object, without a GPU."""

import json
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from leanmoe.errors import LeanMoEError
from leanmoe_bench.gpu import backends, command, run
from leanmoe_bench.gpu import kernel as kernel_part
from leanmoe_bench.gpu import throughput as throughput_part
from leanmoe_bench.gpu.budget import CLOSING_SECONDS, Budget, OutOfTime
from leanmoe_bench.gpu.models import CHECKED, TIMED, Qwen3Shape
from leanmoe_bench.shapes import write_checkpoint

DOOR = Path(__file__).parents[3] / "benchmarks" / "gpu_check.py"


def test_without_a_gpu_it_ends_with_code_2_and_one_sentence(monkeypatch, capsys):
    monkeypatch.setattr(command, "has_gpu", lambda: False)
    assert command.main([]) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.count("\n") == 1 and "no CUDA GPU" in said.err


def test_an_output_that_cannot_be_written_is_told_before_the_run(tmp_path, capsys):
    assert command.main(["--dry-run", "--out", str(tmp_path / "no" / "f.json")]) == 2
    assert "is no folder" in capsys.readouterr().err


def test_the_dry_run_interprets_the_kernel_and_says_what_it_left_out(tmp_path):
    out = tmp_path / "gpu.json"
    done = subprocess.run(
        [sys.executable, DOOR, "--dry-run", "--out", out],
        capture_output=True,
        text=True,
        check=True,
    )
    report = json.loads(done.stdout)
    assert report == json.loads(out.read_text())
    assert report["dry_run"] and report["passed"] and not report["complete"]
    assert report["kernel"] == {
        "status": "ran",
        "on": "interpreter",
        "passed": True,
        "cases": 30,
        "failed": [],
    }
    assert [cell["backend"] for cell in report["backends"]][:4] == [
        "triton",
        "marlin",
        "cutlass",
        "deep_gemm",
    ]
    for part in (*report["backends"], *report["throughput"]):
        assert part["status"] == "not run" and "dry run" in part["reason"]
    assert [part["shape"] for part in report["throughput"]] == ["mixtral", "qwen3-moe"]
    assert all(len(part["planned"]) == 8 for part in report["throughput"])


def test_a_kernel_that_does_not_even_run_is_a_failure(monkeypatch):
    monkeypatch.setattr(kernel_part, "_MODULE", "leanmoe_runtime.no_such_module")
    found = kernel_part.check("cpu")
    assert found["status"] == "failed" and "no_such_module" in found["reason"]


def rows(*names):
    def compare(shape, work, seed):
        for name in names:
            yield {"case": "level0", "measure": name, "ratio": 1.0, "passed": name != "bad"}

    return compare


@pytest.fixture
def parts(monkeypatch):
    """A run whose parts are stood in for."""
    monkeypatch.setattr(run, "_gpu", lambda: {"name": "none"})
    monkeypatch.setattr(kernel_part, "check", lambda device: {"status": "ran", "passed": True})
    monkeypatch.setattr(
        backends, "check", lambda cell, work, seed: {"status": "ran", "passed": True}
    )
    monkeypatch.setattr(throughput_part, "compare", rows("decode_b1"))
    return monkeypatch


def test_a_run_in_which_all_went_well_passes_and_is_complete(parts):
    report = run.run(600, seed=0)
    assert report["passed"] and report["complete"] and not report["dry_run"]
    assert [len(part["rows"]) for part in report["throughput"]] == [1, 1]


def test_what_did_not_fit_is_named_and_the_rest_is_kept(parts):
    report = run.run(CLOSING_SECONDS + 60, seed=0)
    assert [part["status"] for part in report["backends"]] == ["ran"] * len(backends.CELLS)
    assert all(part["reason"] == "out of time" for part in report["throughput"])
    assert report["passed"] and not report["complete"]


def test_a_part_that_runs_past_the_deadline_is_cut_off_and_keeps_its_rows(parts):
    def slow(shape, work, seed):
        yield {"case": "level0", "measure": "decode_b1", "ratio": 1.0}
        threading.Event().wait(30)  # the alarm comes first
        yield {"case": "late", "measure": "decode_b1", "ratio": 1.0}

    parts.setattr(throughput_part, "compare", slow)
    parts.setattr(throughput_part, "NEEDS_SECONDS", 0.1)
    parts.setattr(backends, "CELLS", ())
    parts.setattr(run, "Budget", lambda seconds: Budget(CLOSING_SECONDS + 1))
    report = run.run(600, seed=0)
    cut, never = report["throughput"]
    assert cut["reason"] == never["reason"] == "out of time"
    assert len(cut["rows"]) == 1 and never["rows"] == []


@pytest.mark.parametrize("error", [LeanMoEError("engine failed"), RuntimeError("CUDA error")])
def test_one_part_s_failure_is_told_and_the_others_run(parts, error):
    def check(cell, work, seed):
        if cell.backend == "marlin":
            raise error
        return {"status": "ran", "passed": True}

    parts.setattr(backends, "check", check)
    report = run.run(600, seed=0)
    failed = [part for part in report["backends"] if part["status"] == "failed"]
    assert [part["backend"] for part in failed] == ["marlin"] and str(error) in failed[0]["reason"]
    assert not report["passed"] and report["throughput"][0]["status"] == "ran"


def test_tokens_that_differ_from_stock_fail_the_run(parts):
    parts.setattr(throughput_part, "compare", rows("decode_b1", "bad"))
    assert not run.run(600, seed=0)["passed"]


class Arm:
    """An engine that answers as told, or fails at an operation."""

    def __init__(self, answer=None, fails=""):
        self.answer, self.fails, self.flags = answer, fails, {}

    def call(self, operation, **arguments):
        if operation == self.fails:
            raise LeanMoEError(f"{operation} failed: no kernel")
        if operation == "start":
            self.flags = arguments["engine"]
        return {"results": [json.dumps(self.answer)]}


def test_a_backend_that_cannot_start_is_named_with_the_reason():
    cell = backends.CELLS[1]
    found = backends._on_engine(Arm(fails="start"), cell, Path("model"), 0)
    assert found["status"] == "cannot run" and "no kernel" in found["reason"]
    assert "cannot run" in found["bf16"]


def test_a_backend_passes_when_all_its_checks_do():
    cell = backends.CELLS[0]
    for good in (True, False):
        arm = Arm({"mode": "mask", "checks": {"a": {"passed": True}, "b": {"passed": good}}})
        found = backends._on_engine(arm, cell, Path("model"), 0)
        assert (found["status"], found["passed"], found["mode"]) == ("ran", good, "mask")
        assert arm.flags["moe_backend"] == "triton" and arm.flags["enforce_eager"]
    assert backends._on_engine(Arm(fails="rpc"), cell, Path("model"), 0)["status"] == "failed"


def test_too_little_time_begins_nothing_and_an_alarm_ends_a_wait():
    clock = iter([0.0, 10.0]).__next__
    with pytest.raises(OutOfTime), Budget(CLOSING_SECONDS + 20, clock).part(needs=15):
        pytest.fail("the part began")
    with pytest.raises(OutOfTime), Budget(CLOSING_SECONDS + 0.2).part(needs=0.1):
        threading.Event().wait(20)
        pytest.fail("the alarm did not end the wait")


def test_the_checked_model_has_a_path_without_alignment():
    assert 4 * CHECKED.top_k * 4 <= CHECKED.experts < 5 * CHECKED.top_k * 4


def test_a_qwen_checkpoint_has_qwen_s_names(tmp_path):
    shape = Qwen3Shape(
        name="q",
        hidden=32,
        ffn=16,
        experts=4,
        top_k=2,
        layers=1,
        heads=2,
        kv_heads=1,
        head_dim=16,
        vocabulary=64,
    )
    model = write_checkpoint(shape, tmp_path / "q", 0)
    names = set(json.loads((model / "model.safetensors.index.json").read_text())["weight_map"])
    prefix = "model.layers.0"
    assert f"{prefix}.mlp.experts.3.gate_proj.weight" in names
    assert f"{prefix}.mlp.gate.weight" in names and f"{prefix}.self_attn.q_norm.weight" in names
    config = json.loads((model / "config.json").read_text())
    assert config["model_type"] == "qwen3_moe" and config["num_experts"] == 4
    assert TIMED[1].config()["moe_intermediate_size"] == 768
