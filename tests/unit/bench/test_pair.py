"""The handle on an engine's process, without an engine."""

from types import ModuleType

import pytest

from leanmoe.errors import LeanMoEError
from leanmoe_bench.engines.pair import RemoteArm

FAILS = """
from leanmoe_bench.engines.arm_process import serve

class Arm:
    def work(self):
        raise RuntimeError("no kernel image")

raise SystemExit(serve(Arm))
"""


@pytest.fixture
def arm(tmp_path, monkeypatch):
    (tmp_path / "failing_arm.py").write_text(FAILS)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=":")
    one = RemoteArm("ours", plugin=False, log=tmp_path / "log", module=ModuleType("failing_arm"))
    yield one
    one.close(5)


def test_an_error_comes_with_where_it_was_raised(arm):
    arm.call("start")
    with pytest.raises(LeanMoEError, match="ours engine failed: RuntimeError: no kernel") as told:
        arm.call("work")
    assert "in work" in str(told.value)


def test_a_process_that_has_ended_is_told_in_words(arm):
    arm.group.process.kill()
    arm.group.process.wait()
    with pytest.raises(LeanMoEError, match="ours engine failed: the engine process ended"):
        for _ in range(3):
            arm.send("work", padding="x" * (1 << 17))
