"""The GPU run without a GPU: its door, its deadline, its rows, its arithmetic."""

import json
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from leanmoe.errors import InputError, LeanMoEError
from leanmoe.messages import LayerCounts
from leanmoe_bench.engines.cases import Case
from leanmoe_bench.engines.measures import Counted, decode, prefill
from leanmoe_bench.gpu import (
    cells,
    command,
    fit,
    layer_probe,
    parts,
    profiles,
    session,
    speed,
    tokens,
)
from leanmoe_bench.gpu import kernels as kernel_part
from leanmoe_bench.gpu import run as whole
from leanmoe_bench.gpu.deadline import Deadline, OutOfTime, TooLateError
from leanmoe_bench.gpu.fit import GIB, Card
from leanmoe_bench.gpu.gpu_arm import draw
from leanmoe_bench.gpu.models import CHECKED, MODELS, Qwen3Shape
from leanmoe_bench.gpu.parts import PARTS, Part
from leanmoe_bench.gpu.routing import Choice, gate_statistics, recount
from leanmoe_bench.gpu.settings import Settings
from leanmoe_bench.gpu.summary import show
from leanmoe_bench.gpu.targets import TARGETS, target
from leanmoe_bench.shapes import write_checkpoint

DOOR = Path(__file__).parents[3] / "benchmarks" / "gpu_check.py"
QWEN3, MIXTRAL = MODELS["qwen3-30b-a3b"], MODELS["mixtral-8x7b"]
REHEARSAL = Settings(card=None)


def card(gib: float) -> Card:
    return Card("card", int(gib * GIB), int(gib * GIB), "9.0", "13.0")


# The door


def test_without_a_gpu_it_ends_with_code_2_and_one_sentence(monkeypatch, capsys):
    monkeypatch.setattr(command, "find_card", lambda: None)
    assert command.main([]) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.count("\n") == 1 and "no CUDA GPU" in said.err


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--out", "no/such/folder/f.jsonl"], "is no folder"),
        (["speed:gpt"], "no part 'speed:gpt'; --list says"),
        (["--decode", "1,65"], "--decode has 65, expected 1 to 64"),
        (["--prefill", "9000"], "--prefill has 9000, expected 1 to 8000"),
        (["--rounds", "0"], "--rounds is 0"),
        (["--limit", "0"], "--limit is 0"),
        (["speed:mixtral-8x7b", "--layers", "21"], "--layers is 21, and mixtral-8x7b has 1 to 20"),
    ],
)
def test_bad_input_is_one_sentence_and_code_2(monkeypatch, capsys, arguments, told):
    monkeypatch.setattr(command, "find_card", lambda: card(140))
    assert command.main(arguments) == 2
    said = capsys.readouterr()
    assert told in said.err and said.err.count("\n") == 1 and said.out == ""


def test_a_gpu_too_small_is_refused_before_any_engine_with_a_depth_that_fits(monkeypatch, capsys):
    monkeypatch.setattr(command, "find_card", lambda: card(80))
    assert command.main(["speed:qwen3-30b-a3b"]) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and "need 126 GiB" in told and "has 80 GiB free of 80" in told
    advised = int(told.rsplit("--layers ", 1)[1])
    fit.check(QWEN3.of_depth(advised), card(80))
    with pytest.raises(InputError, match=f"give --layers {advised}"):
        fit.check(QWEN3.of_depth(advised + 1), card(80))
    with pytest.raises(InputError, match="take a larger GPU"):
        fit.check(QWEN3, card(8))
    for model in MODELS.values():
        fit.check(model, card(139))
        assert fit.share(model, card(139)) < 0.5


def test_the_list_names_every_part_and_what_it_needs(capsys):
    assert command.main(["--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(PARTS)
    assert all(line.endswith(")") for line in lines)
    assert {"tokens", "speed", "profile", "packed"} == {
        name.split(":")[0] for name, part in PARTS.items() if part.model == "mixtral-8x7b"
    }


@pytest.mark.slow
def test_the_rehearsed_kernels_are_checked_and_layer_checks_say_why_they_did_not_run(tmp_path):
    """``selfcheck.py``: routing with groups, bias and blocks, the budget, the sum."""
    out = tmp_path / "gpu.jsonl"
    out.write_text('{"row": "earlier"}\n')
    wanted = ["kernels", "layers:triton-bf16"]
    done = subprocess.run(
        [sys.executable, DOOR, "--rehearse", *wanted, "--limit", "1800", "--out", out],
        capture_output=True,
        text=True,
        check=True,
    )
    assert out.read_text() == '{"row": "earlier"}\n' + done.stdout
    environment, kernels, first, layers, second = map(json.loads, done.stdout.splitlines())
    assert environment["command_line"][1:3] == wanted
    assert (
        environment["rehearsal"] and "card" not in environment and "torch" in environment["tools"]
    )
    assert kernels["passed"] and kernels["on"] == "interpreter" and kernels["cases"] > 50
    assert layers["status"] == "not run" and "no GPU" in layers["reason"]
    assert first["status"] == second["status"] == "done"
    assert "kernels" in done.stderr and "passed" in done.stderr


def test_a_kernel_that_does_not_even_run_is_a_failure(monkeypatch):
    monkeypatch.setattr(kernel_part, "__name__", "leanmoe_bench.no_such_module")
    (found,) = kernel_part.check("cpu")
    assert found["status"] == "failed" and "no_such_module" in found["reason"]
    assert found["row"] == "kernels" and found["on"] == "interpreter" and not found["passed"]


# Parts under their deadlines


def part(*steps, name="part") -> Part:
    """A part whose steps are rows to yield or functions to call."""

    def run(context, deadline):
        for step in steps:
            if callable(step):
                step(deadline)
            else:
                yield step

    return Part(name, "about", run)


def ran(*parts, limit=600.0):
    rows = whole.Rows()
    whole.run(parts, replace(REHEARSAL, limit=limit), rows)
    return rows


def ends(rows):
    return [row["status"] for row in rows.kept if row["row"] == "part"]


def test_a_part_that_hangs_is_cut_off_keeps_its_rows_and_the_next_one_runs():
    def hang(deadline):
        threading.Event().wait(30)  # the alarm comes first

    rows = ran(part({"row": "a"}, hang, {"row": "b"}), part({"row": "c"}), limit=0.3)
    assert [row["row"] for row in rows.kept] == ["environment", "a", "part", "c", "part"]
    assert ends(rows) == ["cut off", "done"] and not rows.failed


def test_a_part_stops_by_itself_where_the_next_measure_would_not_fit():
    rows = ran(part({"row": "a"}, lambda deadline: deadline.need(1e6, "decode_b64"), {"row": "b"}))
    assert ends(rows) == ["cut off"] and "decode_b64" in rows.kept[-1]["reason"]
    assert [row["row"] for row in rows.kept] == ["environment", "a", "part"]


@pytest.mark.parametrize("error", [LeanMoEError("engine failed"), RuntimeError("CUDA error")])
def test_one_part_s_failure_is_told_and_the_others_run(error):
    def fail(deadline):
        raise error

    rows = ran(part({"row": "a"}, fail), part({"row": "c"}))
    assert ends(rows) == ["failed", "done"] and rows.failed
    assert str(error) in rows.kept[2]["reason"]


def test_a_check_that_fails_fails_the_run_and_a_target_missed_does_not():
    assert ran(part({"row": "check", "passed": False})).failed
    assert not ran(part({"row": "speed", "met": False})).failed
    assert not ran(part({"row": "layers", "status": "cannot run"})).failed


def test_a_row_is_in_the_file_as_soon_as_it_is_there(tmp_path):
    file = tmp_path / "rows"
    seen = []
    with file.open("a") as out:
        rows = whole.Rows(out)
        look = part({"row": "a"}, lambda deadline: seen.extend(file.read_text().splitlines()))
        whole.run([look], REHEARSAL, rows)
    assert [json.loads(line)["row"] for line in seen] == ["environment", "a"]


def test_a_deadline_counts_and_an_alarm_ends_a_wait():
    clock = iter([0.0, 10.0, 10.0, 10.0]).__next__
    deadline = Deadline(30, clock)
    assert deadline.left() == 20
    deadline.need(20, "it")
    with pytest.raises(TooLateError):
        deadline.need(21, "it")
    with pytest.raises(OutOfTime), Deadline(0.2).enforced():
        threading.Event().wait(20)
        pytest.fail("the alarm did not end the wait")


# Layer cells


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


def test_a_cell_that_neither_starts_cannot_run_and_one_that_only_stock_starts_failed():
    flags = cells._flags(cells.CELLS["deep_gemm-fp8-block"])
    refusal = cells.start(Arm(fails="start"), flags, Path("m"), 0)
    assert refusal == "start failed: no kernel"
    assert cells.refused(refusal, refusal) == {"status": "cannot run", "reason": refusal}
    started = Arm()
    assert cells.start(started, flags, Path("m"), 0) is None
    assert started.flags["moe_backend"] == "deep_gemm" and started.flags["enforce_eager"]
    found = cells.refused(refusal, None)
    assert found["status"] == "failed" and not found["passed"] and refusal in found["reason"]


def test_a_cell_passes_when_all_its_checks_do():
    cell = cells.CELLS["triton-bf16"]
    told = {"mode": "mask", "routing_us": {"1": {"stock_us": 2.0}}}
    for good in (True, False):
        arm = Arm({**told, "checks": {"a": {"passed": True}, "b": {"passed": good}}})
        found = cells.probe(arm, cell)
        assert (found["status"], found["passed"], found["mode"]) == ("ran", good, "mask")
    untimed = {**told, "checks": {"a": {"passed": True}}, "routing_us": {"error": "CUDA error"}}
    assert not cells.probe(Arm(untimed), cell)["passed"]
    assert not cells.probe(Arm(fails="rpc"), cell)["passed"]


def test_a_device_that_a_check_broke_leaves_the_checks_told():
    class Broken:
        def inputs(self, tokens, seed):
            raise RuntimeError("CUDA error: an illegal memory access was encountered")

    assert "illegal memory access" in layer_probe.routing_times(Broken())["error"]


def test_the_checked_model_has_a_path_without_alignment():
    assert 4 * CHECKED.top_k * 4 <= CHECKED.experts < 5 * CHECKED.top_k * 4


# Models


def test_the_models_are_as_large_as_the_real_ones():
    assert QWEN3.weight_bytes / 2 == pytest.approx(30.5e9, rel=0.01)
    full = replace(MIXTRAL, shape=replace(MIXTRAL.shape, layers=32))
    assert full.weight_bytes / 2 == pytest.approx(46.7e9, rel=0.01)
    assert QWEN3.config()["moe_intermediate_size"] == 768
    assert QWEN3.of_depth(None) is QWEN3 and not QWEN3.of_depth(24).whole


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_a_step_that_reads_all_experts_reads_every_tensor_of_a_checkpoint(model, tmp_path):
    tiny = model.tiny()
    folder = write_checkpoint(tiny.shape, tmp_path / "m", 0)
    tensors = {k: v for file in folder.glob("*.safetensors") for k, v in load_file(file).items()}
    # Its embedding is tied to the head, which a step reads; norms are left out.
    held = sum(tiny.width * tensor.numel() for tensor in tensors.values() if tensor.dim() > 1)
    assert tiny.step_bytes(tiny.shape.experts) == held
    one = tiny.width * tiny.shape.layers * tiny.shape.expert_parameters
    assert tiny.step_bytes(3) == held - (tiny.shape.experts - 3) * one


def test_a_qwen_checkpoint_has_qwen_s_names(tmp_path):
    shape = QWEN3.tiny().shape
    assert isinstance(shape, Qwen3Shape)
    model = write_checkpoint(shape, tmp_path / "q", 0)
    names = set(json.loads((model / "model.safetensors.index.json").read_text())["weight_map"])
    prefix = "model.layers.0"
    assert f"{prefix}.mlp.experts.3.gate_proj.weight" in names
    assert f"{prefix}.mlp.gate.weight" in names and f"{prefix}.self_attn.q_norm.weight" in names
    config = json.loads((model / "config.json").read_text())
    assert config["model_type"] == "qwen3_moe" and config["num_experts"] == 16


def test_drawn_weights_keep_a_layer_s_size_and_spread_the_router():
    def drawn(name, *shape):
        weight = torch.empty(shape, dtype=torch.bfloat16)
        draw(name, weight, spread=1.8)
        return weight.float()

    experts = drawn("model.layers.0.block_sparse_moe.experts.w13_weight", 4, 64, 256)
    assert experts.std() == pytest.approx(256**-0.5, rel=0.05)
    router = drawn("model.layers.0.mlp.gate.weight", 64, 256)
    assert router.std() == pytest.approx(1.8 * 256**-0.5, rel=0.05)
    assert drawn("model.embed_tokens.weight", 64, 256).std() == pytest.approx(1.0, rel=0.05)
    assert bool((drawn("model.norm.weight", 256) == 1).all())
    assert torch.equal(router, drawn("model.layers.0.mlp.gate.weight", 64, 256))
    assert not torch.equal(router, drawn("model.layers.1.mlp.gate.weight", 64, 256))


def test_targets_are_for_whole_models_and_one_for_the_compiled_mode_only():
    assert target(QWEN3, "top1", "decode_b16", "full") == 2.2
    assert target(MIXTRAL, "median", "decode_b1", "compiled") == 1.15
    assert target(QWEN3.of_depth(4), "top1", "decode_b16", "full") is None
    assert target(QWEN3, "skip40", "prefill_2048", "full") is None
    assert target(QWEN3, "skip40", "prefill_2048", "compiled") == 1.1
    names = {
        model.name: {case.name for case in (*model.cases, *model.budget_cases, *model.packed_cases)}
        for model in MODELS.values()
    }
    measures = {measure.name for measure in Settings(card=card(140)).measures}
    assert all(case in names[model] and measure in measures for model, case, measure in TARGETS)


# Arithmetic


def choices(*logits):
    return [Choice.of(torch.tensor(rows, dtype=torch.float32), 2) for rows in logits]


def test_a_recount_keeps_what_reaches_the_threshold():
    two, one = torch.tensor(2.0).log().item(), 0.0
    heard = choices([[two, one, -9.0], [one, two, -9.0]], [[-9.0, 3.0, 3.0]])
    at = {beta: recount(heard, beta) for beta in (0.0, 0.4, 0.6, 1.0)}
    assert [at[beta]["skipped"] for beta in at] == [0, 0, 2, 2]
    assert [at[beta]["distinct_experts"] for beta in at] == [4, 4, 4, 4]
    assert all(
        one["routed"] == 6 and one["tokens"] == 3 and one["steps"] == 2 for one in at.values()
    )
    assert all(one["near"] == 0 for one in at.values())
    assert recount(heard, 0.5)["near"] == 2


def test_gate_statistics_name_the_threshold_that_skips_a_share():
    logits = torch.randn(4000, 8, generator=torch.Generator().manual_seed(0)) * 1.8
    found = gate_statistics([Choice.of(logits, 2)], (0.25, 0.4, 0.9))
    assert found["median_second_to_first"] == pytest.approx(0.45, abs=0.05)
    skipped = recount([Choice.of(logits, 2)], found["thresholds"]["25%"])["skipped"]
    assert skipped / 8000 == pytest.approx(0.25, abs=0.01)
    assert "90%" not in found["thresholds"]  # the first of two is never skipped


def counts(**fields) -> LayerCounts:
    return LayerCounts(layer=0, **{"tokens": 0, "routed": 0, "skipped": 0, **fields})


def test_a_count_that_differs_from_the_recount_is_named():
    again = {"tokens": 4, "routed": 8, "skipped": 3, "steps": 1, "distinct_experts": 5, "near": 0}
    right = counts(tokens=4, routed=8, skipped=3, steps=1, distinct_experts=5)
    assert tokens.difference(counts(), right, again) is None
    wrong = right.model_copy(update={"skipped": 4})
    assert tokens.difference(counts(), wrong, again) == "skipped 4, recounted 3"
    assert tokens.difference(counts(), wrong, {**again, "near": 1}) is None
    # A device that was given nothing to skip counts no experts, and is not asked for them.
    host_only = counts(tokens=4, routed=8, skipped=3)
    assert tokens.difference(counts(), host_only, again) is None
    fewer = right.model_copy(update={"distinct_experts": 4})
    assert tokens.difference(counts(), fewer, again) == "distinct_experts 4, recounted 5"


class Idle:
    """What a row needs of a session."""

    expert_share = 1.0

    def __init__(self, model):
        self.model, self.settings = model, Settings(card=card(140))

    def bytes_share(self, distinct, seconds):
        return None if distinct is None else 0.5


def timed(speeds, **counted):
    return speed.Timed(speeds, Counted(**counted))


def test_a_prefill_at_level_0_that_launched_nothing_has_a_row_without_what_was_not_counted():
    found = {
        "stock": timed([100.0, 200.0, 100.0]),
        "level0": timed([99.0, 202.0, 100.0], routed=8),
        "top1": timed([150.0, 250.0, 160.0], routed=8, skipped=4, steps=2, distinct=6),
    }
    row = speed._row(Idle(QWEN3), Case("level0"), prefill(2048), found)
    assert (row["ratio"], row["low"], row["high"]) == (1.0, 0.99, 1.01)
    assert row["target"] == 0.99 and row["met"] is True and row["skip_rate"] == 0
    absent = {"distinct", "ours_gpu_busy", "ours_of_bandwidth", "stock_of_bandwidth", "passed"}
    assert not absent & row.keys()
    top1 = speed._row(Idle(QWEN3), Case("top1", beta=1.0), prefill(2048), found)
    assert top1["distinct"] == 3 and top1["ours_of_bandwidth"] == 0.5 and "target" not in top1
    uncounted = {"stock": timed([1.0]), "level0": timed([1.0])}
    assert "skip_rate" not in speed._row(Idle(QWEN3), Case("level0"), prefill(2048), uncounted)


class Refusing(Idle):
    """A session in which ours takes no budget."""

    def policy(self, case):
        if case.union is not None:
            raise LeanMoEError("ours engine failed: no budget here\nits log")
        return {0: 0.0}


class Refused:
    """Engines that do not start."""

    def session(self, model, *, budget=False):
        raise LeanMoEError("ours engine failed: CompilationError in weigh_kernel")


def test_a_budget_that_ours_does_not_take_is_a_row_with_the_reason():
    rows = list(speed.compare(Refusing(QWEN3), QWEN3.budget_cases[1:], Deadline(60)))
    told = "ours engine failed: no budget here"
    assert rows == [{"row": "speed", "case": "budget", "status": "cannot run", "reason": told}]
    assert "cannot run" in show([{**rows[0], "part": "budget"}])


def test_engines_that_do_not_start_with_a_budget_are_a_failure():
    context = parts.Context(REHEARSAL, Refused(), Path("work"))
    with pytest.raises(LeanMoEError, match="weigh_kernel"):
        list(PARTS["budget:qwen3-30b-a3b"].run(context, Deadline(60)))


class Ended:
    """A session whose pair's ours has ended, or answers everything with its device's error."""

    settings, model = REHEARSAL, QWEN3.tiny()
    control = SimpleNamespace(
        report=SimpleNamespace(request_levels_unavailable=None), update=lambda betas: betas
    )

    def policy(self, case):
        raise LeanMoEError("ours engine failed: CUDA error: an illegal memory access\nits log")

    def compute(self):
        self.policy(None)


def test_a_check_that_broke_its_engines_leaves_new_ones_to_the_next(monkeypatch):
    engines, started = session.Engines(REHEARSAL, print), []

    def start(model, budget, packed):
        started.append(model.name)
        engines._session = Ended()

    monkeypatch.setattr(engines, "_start", start)
    rows = list(tokens.check(engines, QWEN3.tiny()))
    assert [row["passed"] for row in rows] == [False] * 4
    assert all("illegal memory access\nits log" in row["reason"] for row in rows)
    assert len(started) == 4 and engines._session is None
    monkeypatch.setattr(Ended, "compute", lambda self: None)  # only the check was refused
    list(tokens.check(engines, QWEN3.tiny()))
    assert len(started) == 5


def test_a_budget_that_is_not_held_fails_where_it_could_be():
    case = QWEN3.budget_cases[1]
    for distinct, rows, held in ((64, 16, True), (65, 16, False), (65, 65, None)):
        one = timed([1.0], routed=1, steps=1, distinct=distinct)
        found = {"stock": timed([1.0]), "budget_off": one, "budget": one}
        row = speed._row(Idle(QWEN3), case, decode(rows, 4), found)
        assert row.get("passed") is held


def test_a_profile_is_summed_per_step_and_layer():
    kernels = [("gemm", 600.0, 120), ("topk", 90.0, 60), ("Memcpy HtoD", 10.0, 30)]
    found = profiles.summed(kernels, steps=10, layers=3, seconds=100e-6)
    assert found["gpu_us_per_step"] == 70 and found["gpu_busy"] == 0.7
    assert found["launches_per_step"] == 18 and found["launches_per_layer"] == 6
    assert found["kernels"][0] == {
        "name": "gemm",
        "us_per_step": 60.0,
        "launches_per_step": 12.0,
        "launches_per_layer": 4.0,
    }
