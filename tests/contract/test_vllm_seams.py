"""Every vLLM symbol the plugin touches is what the plugin was written for."""

import subprocess
import sys

import pytest
import torch

from leanmoe.environment import engine_environment
from leanmoe.errors import RuntimeSeamError
from leanmoe_runtime import compat


def test_the_installed_vllm_passes():
    compat.check_seams()


def test_another_version_is_refused_by_name(monkeypatch):
    monkeypatch.setattr(compat, "vllm_version", lambda: "0.33.1")
    with pytest.raises(RuntimeSeamError, match=r"vLLM 0\.33\.1 is installed.*0\.32"):
        compat.check_seams()


def test_a_changed_signature_is_refused_by_symbol(monkeypatch):
    def compute_routing(self, hidden_states, logits):
        return logits

    monkeypatch.setattr(compat, "_SIGNATURES", ((compute_routing, ("self", "router_logits")),))
    with pytest.raises(RuntimeSeamError, match="compute_routing"):
        compat.check_seams()


def test_the_model_runner_s_input_step_is_where_it_was(monkeypatch):
    runner = compat.model_runner_class()
    monkeypatch.setattr(runner, "_prepare_inputs", lambda self, scheduled: None)
    with pytest.raises(RuntimeSeamError, match=r"takes .*scheduled"):
        compat.model_runner_class()


def test_another_plugin_on_the_same_seam_is_refused(monkeypatch):
    class Other:
        pass

    monkeypatch.setitem(compat.op_registry_oot, "MoERunner", Other)
    with pytest.raises(RuntimeSeamError, match=r"another plugin.*MoERunner.*Other"):
        compat.check_seams()


def test_a_missing_symbol_names_itself():
    code = (
        "import vllm.model_executor.custom_op as m; del m.op_registry_oot\n"
        "import leanmoe_runtime.compat"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env=engine_environment(plugin=False),
        check=False,
    )
    assert done.returncode != 0
    assert "RuntimeSeamError" in done.stderr and "op_registry_oot" in done.stderr


def test_register_replaces_both_layers_once_and_adds_the_worker_methods():
    code = (
        "from leanmoe_runtime.plugin import register; register(); register()\n"
        "from leanmoe_runtime.compat import op_registry_oot, WorkerBase\n"
        "print(op_registry_oot['MoERunner'].__name__, op_registry_oot['RoutedExperts'].__name__,"
        " hasattr(WorkerBase, 'leanmoe_handshake'), op_registry_oot['GateLinear'].__name__)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env=engine_environment(),
        check=True,
    )
    assert done.stdout.split()[-4:] == ["LeanRunner", "LeanRoutedExperts", "True", "LeanGateLinear"]


def test_models_find_our_factory_whichever_module_they_take_it_from():
    code = (
        "import vllm.model_executor.models.olmoe as early\n"
        "from leanmoe_runtime.plugin import register; register()\n"
        "import vllm.model_executor.models.mixtral as late\n"
        "import vllm.model_executor.layers.fused_moe as package\n"
        "found = {m.FusedMoEFactory for m in (early, late, package, package.layer)}\n"
        "print(len(found), found.pop().leanmoe)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env=engine_environment(),
        check=True,
    )
    assert done.stdout.split()[-2:] == ["1", "True"]


def test_a_factory_that_takes_other_arguments_is_refused_by_name(monkeypatch):
    def factory(num_experts, top_k, hidden_size, intermediate_size, gate):
        return None

    monkeypatch.setattr(compat, "FusedMoEFactory", factory)
    with pytest.raises(RuntimeSeamError, match="FusedMoEFactory takes no 'prefix'"):
        compat.check_seams()


def test_without_being_named_the_plugin_leaves_vllm_as_it_is():
    code = (
        "from leanmoe_runtime.plugin import register; register()\n"
        "from vllm.model_executor.custom_op import op_registry_oot; print(list(op_registry_oot))"
    )
    environment = engine_environment(plugin=False)
    for named in ("", "other"):
        done = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            env={**environment, "VLLM_PLUGINS": named},
            check=True,
        )
        assert done.stdout.split()[-1] == "[]"


def test_the_cpu_kernel_takes_any_number_of_ids_per_row():
    """``run_kept`` relies on it: top-k 2 equals the sum of two top-k 1 calls."""
    from vllm._custom_ops import cpu_fused_moe, cpu_prepack_moe_weight

    generator = torch.Generator().manual_seed(0)
    w13 = torch.randn(4, 128, 64, generator=generator).to(torch.bfloat16) * 0.1
    w2 = torch.randn(4, 64, 64, generator=generator).to(torch.bfloat16) * 0.1
    packed = (cpu_prepack_moe_weight(w13, "vec"), cpu_prepack_moe_weight(w2, "vec"))
    x = torch.randn(5, 64, generator=generator).to(torch.bfloat16)
    ids = torch.tensor([[0, 1], [2, 3], [1, 0], [3, 3], [2, 0]], dtype=torch.int32)
    weights = torch.rand(5, 2, generator=generator)

    def run(weights, ids):
        out = torch.empty_like(x)
        cpu_fused_moe(out, x, *packed, None, None, weights, ids, "silu", "vec", False)
        return out.float()

    parts = [run(weights[:, [k]].contiguous(), ids[:, [k]].contiguous()) for k in range(2)]
    torch.testing.assert_close(run(weights, ids), sum(parts), rtol=2e-2, atol=2e-2)
