"""Every tensor the plugin makes is where its code says, whatever torch's default device is.

vLLM builds a model with the GPU as torch's default device: a tensor made without a device lands
there, and pinned memory can only be asked for on the host.
"""

import ast
from pathlib import Path

import pytest
import torch
import torch._dynamo.device_interface  # needs the true torch.Event, for which one test has another
from torch._subclasses.fake_tensor import FakeTensorMode

import leanmoe_runtime
from leanmoe.messages import UnionBudget
from leanmoe_bench.gpu import layer_probe
from leanmoe_runtime.device import rows
from leanmoe_runtime.device import table as table_module
from leanmoe_runtime.device.blocks import empty_blocks
from leanmoe_runtime.device.rows import StepRows, Union
from leanmoe_runtime.device.table import DeviceTable
from leanmoe_runtime.skip.cpu import Planner
from leanmoe_runtime.state import LayerState

MAKERS = {"arange", "empty", "full", "ones", "rand", "randint", "randn", "tensor", "zeros"}


@pytest.fixture
def another_default():
    """As inside vLLM's model loader, with a device that every machine has."""
    with torch.device("meta"):
        yield


def test_host_tensors_stay_on_the_host(another_default):
    layer = LayerState(layer=0, top_k=2, renormalize=True, n_experts=8)
    planner, step, union = Planner(), StepRows(16, "cpu"), Union(4, "cpu")
    union.set(UnionBudget(experts=4))
    step.begin(torch.zeros(3, dtype=torch.int32, device="cpu"), 3)
    held = [layer.betas, *planner._parts, step.rows_T, union.values]
    held += [slot.staged for slot in step._ring]
    assert {tensor.device.type for tensor in held} == {"cpu"}
    plan = planner.plan(torch.rand(3, 2, device="cpu"), torch.zeros(3, 2, device="cpu"), layer)
    assert plan is None  # level 0, on tensors of the host


def test_device_tensors_are_on_the_device_and_staging_is_not(monkeypatch):
    """Fake tensors of a GPU that is not there: none of them has memory, all have a place."""
    copied, pinned = [], []
    for module in (rows, table_module):
        # A build of torch for the CPU cannot copy to a GPU, not even pretend to.
        monkeypatch.setattr(module, "on_device", lambda *pair: copied.append(pair))
    empty = torch.empty

    def noted(*args, pin_memory=False, **named):
        # Where there is no GPU nothing can be pinned; what asks for it must name the host.
        if pin_memory:
            assert torch.device(named["device"]).type == "cpu"
            pinned.append(named["device"])
        return empty(*args, **named)

    monkeypatch.setattr(torch, "empty", noted)
    monkeypatch.setattr(torch, "Event", lambda kind: None)
    with FakeTensorMode(allow_non_fake_inputs=True), torch.device("cuda"):
        layer = LayerState(layer=0, top_k=2, renormalize=True, n_experts=8)
        table = DeviceTable.make(layer.betas, 8, "cuda")
        step, blocks = StepRows(16, "cuda"), empty_blocks(4, 2, 16, torch.device("cuda"))
        step.union.set(UnionBudget(experts=4))
        table.push(layer.betas)
        on_device = [value for value in vars(table).values() if isinstance(value, torch.Tensor)]
        on_device += [*blocks[1:], step.rows_T, step.union.values, step.counted.skipped_T]
        staging = [*step._ring, *step.counted._ring]
        assert {tensor.device.type for tensor in on_device} == {"cuda"}
        assert layer.betas.device.type == "cpu" and len(pinned) == len(staging)
        assert {slot.staged.device.type for slot in staging} == {"cpu"}
        places = {(values.device.type, target.device.type) for values, target in copied}
        assert places == {("cpu", "cuda")} and len(copied) == 3


def calls_without_a_device(path: Path) -> list[str]:
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            continue
        named = {word.arg for word in node.keywords}
        made_by = ast.unparse(node.func.value)
        is_new = made_by == "torch" and node.func.attr in MAKERS
        if is_new and "device" not in named:
            found.append(f"{path.name}:{node.lineno} torch.{node.func.attr}")
    return found


def test_no_tensor_of_the_plugin_is_made_without_naming_its_device():
    root = Path(leanmoe_runtime.__file__).parent
    files = [*root.rglob("*.py"), Path(layer_probe.__file__)]  # the probe runs in an engine, too
    assert [call for path in files for call in calls_without_a_device(path)] == []


@pytest.mark.parametrize("line", ["torch.zeros(3)", "x = torch.tensor([1], dtype=torch.int32)"])
def test_a_stray_tensor_would_be_found(tmp_path, line):
    path = tmp_path / "new.py"
    path.write_text(f"import torch\n{line}\n")
    assert len(calls_without_a_device(path)) == 1
