"""Every vLLM symbol the plugin touches is what the plugin was written for."""

import enum
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from vllm.model_executor.layers import fused_moe
from vllm.model_executor.layers.fused_moe import config, layer
from vllm.model_executor.layers.fused_moe.runner import moe_runner

from leanmoe.cli import main
from leanmoe.engine_versions import Installed
from leanmoe.errors import RuntimeSeamError
from leanmoe.process.environment import engine_environment
from leanmoe_runtime import compat
from leanmoe_runtime.device import modes
from tests.tiny import write_tiny_mixtral


def test_the_installed_vllm_passes():
    compat.check_seams()


def test_another_version_is_refused_by_name(monkeypatch):
    monkeypatch.setattr(compat, "installed_vllm", lambda: Installed("vllm", "0.34.0"))
    with pytest.raises(RuntimeSeamError, match=r"vLLM 0\.34\.0 is installed.*0\.32 and 0\.33"):
        compat.check_seams()


def test_another_version_is_refused_before_a_module_that_moved_is_missed():
    code = (
        "import sys\n"
        "from leanmoe import engine_versions as e\n"
        "e.installed_vllm = lambda: e.Installed('vllm', '0.34.0')\n"
        "sys.modules['vllm.model_executor.custom_op'] = None\n"
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
    assert "RuntimeSeamError: vLLM 0.34.0 is installed" in done.stderr.splitlines()[-1]


def test_a_changed_signature_is_refused_by_symbol(monkeypatch):
    def compute_routing(self, hidden_states, logits):
        return logits

    monkeypatch.setattr(compat.BaseRouter, "_compute_routing", compute_routing)
    with pytest.raises(RuntimeSeamError, match=r"_compute_routing takes .*logits.*expected"):
        compat.check_seams()


class Stand:
    """A runner that vLLM would not look up among replaced ones."""

    register_oot = None

    def __init__(self, layer_name, moe_config, router, routed_experts):
        pass


def test_a_class_that_is_no_layer_of_the_registry_is_refused(monkeypatch):
    monkeypatch.setattr(moe_runner, "MoERunner", Stand)
    with pytest.raises(RuntimeSeamError, match="MoERunner is no PluggableLayer"):
        compat.check_seams()


def test_a_member_that_went_is_refused_by_name(monkeypatch):
    monkeypatch.setattr(config, "RoutingMethodType", enum.Enum("R", ["DeepseekV4"]))
    with pytest.raises(RuntimeSeamError, match="RoutingMethodType has no 'Unspecified'"):
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


def test_a_missing_symbol_names_itself(warm_vllm):
    code = (
        "import vllm.model_executor.custom_op as m; del m.op_registry_oot\n"
        "import leanmoe_runtime.compat"
    )
    done = warm_vllm.run(code, engine_environment(plugin=False))
    assert done.returncode != 0
    assert "RuntimeSeamError" in done.stderr and "op_registry_oot" in done.stderr


def test_register_replaces_both_layers_once_and_adds_the_worker_methods(warm_vllm):
    code = (
        "from leanmoe_runtime.plugin import register; register(); register()\n"
        "from leanmoe_runtime.compat import op_registry_oot, WorkerBase\n"
        "print(op_registry_oot['MoERunner'].__name__, op_registry_oot['RoutedExperts'].__name__,"
        " hasattr(WorkerBase, 'leanmoe_handshake'), op_registry_oot['GateLinear'].__name__)"
    )
    done = warm_vllm.run(code, engine_environment())
    assert done.stdout.split()[-4:] == ["LeanRunner", "LeanRoutedExperts", "True", "LeanGateLinear"]


def test_models_find_our_factory_whichever_module_they_take_it_from(warm_vllm):
    code = (
        "import vllm.model_executor.models.olmoe as early\n"
        "from leanmoe_runtime.plugin import register; register()\n"
        "import vllm.model_executor.models.mixtral as late\n"
        "import vllm.model_executor.layers.fused_moe as package\n"
        "found = {m.FusedMoEFactory for m in (early, late, package, package.layer)}\n"
        "print(len(found), found.pop().leanmoe)"
    )
    done = warm_vllm.run(code, engine_environment())
    assert done.stdout.split()[-2:] == ["1", "True"]


def test_a_factory_that_takes_other_arguments_is_refused_by_name(monkeypatch):
    def factory(num_experts, top_k, hidden_size, intermediate_size, gate):
        return None

    monkeypatch.setattr(layer, "FusedMoEFactory", factory)
    with pytest.raises(RuntimeSeamError, match="FusedMoEFactory takes no 'prefix'"):
        compat.check_seams()


def test_without_being_named_the_plugin_leaves_vllm_as_it_is(warm_vllm):
    code = (
        "from leanmoe_runtime.plugin import register; register()\n"
        "from vllm.model_executor.custom_op import op_registry_oot; print(list(op_registry_oot))"
    )
    environment = engine_environment(plugin=False)
    for named in ("", "other"):
        done = warm_vllm.run(code, {**environment, "VLLM_PLUGINS": named})
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


def test_the_second_model_runner_s_input_step_is_where_it_was(monkeypatch):
    runner = compat.second_model_runner_class()
    monkeypatch.setattr(runner, "prepare_inputs", lambda self, scheduled: None)
    with pytest.raises(RuntimeSeamError, match=r"takes .*scheduled"):
        compat.second_model_runner_class()


def test_every_carrier_of_ids_exists():
    folder = Path(fused_moe.__file__).with_name("prepare_finalize")
    text = "".join(file.read_text() for file in folder.glob("*.py"))
    for name in modes.PASSES_IDS:
        assert f"class {name}(" in text, name


def test_every_way_of_bringing_tokens_to_experts_is_in_the_tables():
    folder = Path(fused_moe.__file__).with_name("prepare_finalize")
    text = "".join(file.read_text() for file in folder.glob("*.py"))
    found = set(re.findall(r"^class (\w+)\((?:mk\.|MoEPrepare)\w*Modular\)", text, re.MULTILINE))
    assert found == modes.PASSES_IDS | set(modes.KEEPS_IDS)
    page = (Path(__file__).parents[2] / "docs" / "serving.md").read_text()
    assert not [name for name in found if f"`{name}`" not in page]


def test_the_map_is_read_from_the_layer_at_every_call():
    assert isinstance(compat.RoutedExperts.expert_map, property)


def test_the_configuration_has_what_decides_whose_tokens_are_whose():
    from vllm.config import CompilationConfig, ParallelConfig, SchedulerConfig, VllmConfig

    for name in ("data_parallel_size", "prefill_context_parallel_size"):
        assert name in ParallelConfig.__dataclass_fields__
    for name in ("use_sequence_parallel_moe", "use_ubatching"):
        assert isinstance(getattr(ParallelConfig, name), property)
    assert "max_num_batched_tokens" in SchedulerConfig.__dataclass_fields__
    assert "max_cudagraph_capture_size" in CompilationConfig.__dataclass_fields__
    assert "speculative_config" in VllmConfig.__dataclass_fields__


def test_the_probe_s_context_and_the_shared_scratch_are_where_they_were():
    from vllm.forward_context import set_forward_context
    from vllm.v1.worker import workspace

    assert {"attn_metadata", "vllm_config", "num_tokens"} <= set(
        inspect.signature(set_forward_context).parameters
    )
    manager = workspace.WorkspaceManager(torch.device("cpu"))
    assert manager._current_workspaces == [None]
    assert callable(workspace.current_workspace_manager)


def test_the_gpu_run_asks_for_backends_and_weights_by_names_vllm_knows():
    from typing import get_args

    from vllm.config.kernel import MoEBackend
    from vllm.model_executor.layers.fused_moe.oracle import fp8, unquantized
    from vllm.model_executor.layers.quantization import QUANTIZATION_METHODS

    from leanmoe_bench.gpu.cells import CELLS

    for cell in CELLS.values():
        assert cell.backend in get_args(MoEBackend)
        assert fp8.map_fp8_backend(cell.backend) is not None
        if cell.quantization is None:
            assert unquantized.map_unquantized_backend(cell.backend) is not None
        else:
            assert cell.quantization in QUANTIZATION_METHODS


def test_cutlass_and_marlin_take_the_weights_the_gpu_run_pairs_them_with_and_no_others():
    from vllm.model_executor.layers.fused_moe.oracle.fp8 import Fp8MoeBackend
    from vllm.model_executor.layers.quantization.online import fp8 as online

    allowed = {
        kind: "allow_vllm_cutlass=True" in inspect.getsource(method.__init__)
        for kind, method in {
            "fp8_per_tensor": online.Fp8PerTensorOnlineMoEMethod,
            "fp8_per_block": online.Fp8PerBlockOnlineMoEMethod,
            "fp8_per_channel": online.Fp8PtpcOnlineMoEMethod,
        }.items()
    }
    assert [kind for kind, cutlass in allowed.items() if cutlass] == ["fp8_per_channel"]
    refused = inspect.getsource(online.Fp8PtpcOnlineMoEMethod.__init__)
    assert f"Fp8MoeBackend.{Fp8MoeBackend.MARLIN.name}" in refused

    from leanmoe_bench.gpu.cells import CELLS

    for cell in CELLS.values():
        assert cell.backend != "cutlass" or allowed[cell.quantization]
        assert cell.backend != "marlin" or cell.quantization != "fp8_per_channel"


def test_a_gpu_run_can_draw_its_weights_and_listen_to_routers():
    from vllm.model_executor.layers.fused_moe.router.base_router import BaseRouter
    from vllm.model_executor.layers.fused_moe.runner.moe_runner import MoERunner
    from vllm.model_executor.model_loader import register_model_loader
    from vllm.model_executor.model_loader.base_loader import BaseModelLoader

    assert callable(register_model_loader)
    assert BaseModelLoader.__abstractmethods__ == {"download_model", "load_weights"}
    names = list(inspect.signature(BaseRouter.select_experts).parameters)
    assert names[:3] == ["self", "hidden_states", "router_logits"]
    assert "self.router.select_experts(" in inspect.getsource(MoERunner)


def test_stock_vllm_stops_at_a_packed_checkpoint(warm_vllm, tmp_path):
    model = write_tiny_mixtral(tmp_path / "model")
    how = ("--method", "magnitude", "--pattern", "16:32", "--compress", "--no-permute")
    assert main(["prune", str(model), *how, "-o", str(tmp_path / "packed")]) == 0
    code = (
        "from vllm.engine.arg_utils import EngineArgs\n"
        f"EngineArgs(model={str(tmp_path / 'packed')!r}).create_engine_config()"
    )
    done = warm_vllm.run(code, engine_environment(plugin=False))
    assert done.returncode != 0
    assert "Unknown quantization method: leanmoe_sparse" in done.stderr
