"""What measures packed experts on a GPU, as far as a CPU can tell: steps, weights, rows."""

from itertools import islice

import numpy as np
import pytest
import torch

from leanmoe.cli import main
from leanmoe.errors import LeanMoEError, RuntimeSeamError
from leanmoe.sparse.sparse_format import SparseFormat
from leanmoe_bench.gpu import packed_check, packed_part
from leanmoe_bench.gpu.deadline import Deadline
from leanmoe_bench.gpu.models import MODELS, PACKED, PACKED_SHARE
from leanmoe_bench.gpu.packed_check import Trial
from leanmoe_bench.gpu.summary import show
from leanmoe_bench.kernel import card_packed
from leanmoe_bench.kernel import command as kernel_command
from leanmoe_runtime.sparse.gpu import Kernels
from tests.unit.runtime.packed_host import CPU, dense_experts, host_library

LAYER = {"experts": 4, "top_k": 2, "hidden": 96, "ffn": 64, "seed": 1}
TIMED = {
    "rows": 1,
    "dense_bytes": 4.0e9,
    "copied_bytes": 2.0e9,
    "seconds": {"dense": [2e-3] * 3, "16:32": [1e-3] * 3, "copy": [1e-3] * 3},
    "errors": {"16:32": 0.001},
    "ways": {"16:32": "gather"},
}


def dense(*given):
    return dense_experts(*given).to(given[0].dtype)


@pytest.mark.parametrize(("pattern", "dtype"), [("16:32", torch.bfloat16), ("2:4", torch.float16)])
def test_the_check_of_a_card_passes_on_a_cpu_and_fails_on_wrong_weights(pattern, dtype):
    trial = Trial(pattern, (96, 64), dtype, CPU, Kernels(host_library()), dense)
    assert trial.writes()
    assert all(trial.computes(tokens) for tokens in (1, 5, 70))
    trial.block.down.values[:, 3, 2] += 1
    assert not trial.writes()
    assert not trial.computes(5)


def test_large_outputs_may_be_rounded_as_their_type_rounds_them():
    """Widest layers give up to 1.9, where vLLM's own kernel is off by 0.016 in bfloat16."""
    trial = Trial("16:32", (96, 64), torch.bfloat16, CPU, Kernels(host_library()), dense)
    x, weights, ids = trial.step(70)
    step = (8 * x, weights, ids)
    exact = dense_experts(*step[:1], trial.gate_up, trial.down, weights, ids + 1)
    assert exact.abs().max() > 4
    assert trial.close(exact.to(torch.bfloat16), step)
    assert not trial.close((1.03 * exact).to(torch.bfloat16), step)


@pytest.mark.parametrize("pattern", ["16:32", "2:4"])
def test_random_layers_hold_their_pattern_and_agree_with_themselves_dense(pattern):
    how = SparseFormat.of_pattern(pattern, "bfloat16")
    block = card_packed.block(LAYER, pattern, CPU, Kernels(host_library()), dense)
    w13, _ = block.write_out(0, 4)
    assert (w13 != 0).sum().item() == pytest.approx(w13.numel() * how.keep / 32, rel=0.01)
    (step, *others) = card_packed.steps(LAYER, 3, CPU)
    assert len(others) == 7
    assert all(len(set(row)) == 2 for row in step[2].tolist())
    assert card_packed.error(block, step) < 0.02
    assert np.bitwise_count(card_packed.masks(how, np.random.default_rng(0)).view("u4")).any()


def test_rows_of_a_card_say_ratio_share_of_a_copy_way_and_target(monkeypatch):
    monkeypatch.setattr(kernel_command, "_timed", lambda module, layer: [TIMED])
    monkeypatch.setattr(packed_part, "check", lambda: iter([{"row": "check", "passed": True}]))
    monkeypatch.setattr(packed_part, "PATTERNS", ("16:32",))
    check, mixtral, qwen3 = packed_part.kernels(3, 0, Deadline(600))
    assert check["passed"]
    assert mixtral["ratio"] == pytest.approx(2.0) and mixtral["met"]
    assert mixtral["of_copy"] == pytest.approx(0.5625 * 4e12 / 2e12)
    assert (mixtral["target"], qwen3["target"]) == (1.6, 1.35)
    assert "gather" in show([{**mixtral, "part": "packed"}])


def test_a_check_that_does_not_even_run_is_a_failure(monkeypatch):
    monkeypatch.setattr(packed_part, "__name__", "leanmoe_bench.no_such_module")
    (found,) = packed_part.check()
    assert found["status"] == "failed" and "no_such_module" in found["reason"]
    assert found["check"] == "packed_kernels" and not found["passed"]


def test_every_case_of_a_card_is_named_before_a_kernel_is_built(monkeypatch):
    def no_kernels():
        raise AssertionError("a kernel was built to name its cases")

    device = torch.device("cuda")
    names = [name for name, _ in packed_check.cases(device, no_kernels)]
    layers = len(packed_check.PATTERNS) * len(packed_check.SIZES) * 2
    assert len(set(names)) == len(names) == layers * (len(packed_check.TOKENS) + 2)
    named = packed_check.cases(CPU, lambda: Kernels(host_library()), dense)
    (first, writes), (second, computes) = islice(named, 2)
    assert first.startswith("dense 16:32") and writes()
    assert second.startswith("1 tokens 16:32") and computes()


def test_a_library_that_is_not_to_be_had_is_looked_for_once(monkeypatch):
    tries = []

    def no_library():
        tries.append(1)
        raise RuntimeSeamError("packed.cu could not be built")

    monkeypatch.setattr(packed_check, "gpu_library", no_library)
    packed_check._found.cache_clear()
    for _ in range(2):
        with pytest.raises(RuntimeSeamError, match="could not be built"):
            packed_check._library()
    packed_check._found.cache_clear()
    assert len(tries) == 1


def test_times_that_fail_for_one_shape_leave_the_other_s(monkeypatch):
    def timed(module, layer):
        yield TIMED
        if layer["experts"] == 8:
            raise LeanMoEError("the kernel measurement ended with code 1\nCUDA error")

    monkeypatch.setattr(kernel_command, "_timed", timed)
    monkeypatch.setattr(packed_part, "check", lambda: iter(()))
    monkeypatch.setattr(packed_part, "PATTERNS", ("16:32",))
    mixtral, failed, qwen3 = packed_part.kernels(3, 0, Deadline(600))
    assert (mixtral["shape"], qwen3["shape"]) == ("mixtral", "qwen3")
    assert failed["check"] == "packed_times_mixtral" and not failed["passed"]
    assert "CUDA error" in failed["reason"]


def test_the_packed_model_says_so_and_takes_fewer_bytes():
    model = MODELS["mixtral-8x7b"]
    config = model.packed_config()
    assert config["quantization_config"]["quant_method"] == "leanmoe_sparse"
    assert SparseFormat.of_pattern(PACKED, "bfloat16").bytes_per_weight(2) / 2 == PACKED_SHARE
    experts = model.step_bytes(8) - model.step_bytes(0)
    assert 1 - (1 - PACKED_SHARE) * experts / model.weight_bytes < packed_part.MOST_BYTES


@pytest.mark.parametrize(
    ("arguments", "told"),
    [((), "name one with --pattern"), (("--pattern", "16:32"), "no CUDA GPU")],
)
def test_a_card_that_is_not_there_is_one_sentence(arguments, told, capsys, monkeypatch):
    monkeypatch.setattr(kernel_command, "find_card", lambda: None)
    assert main(["bench", "kernel", "--device", "cuda", *arguments]) == 2
    assert told in capsys.readouterr().err
