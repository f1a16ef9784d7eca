"""A worker extension that takes the devices' path on a CPU, with Triton's interpreter.

Imported by a worker before it builds its model: from then on the layers skip as on a device, by
mode *zero*, which every kernel can take.
"""

from __future__ import annotations

from leanmoe_runtime import compat, runner


class _Device:
    """A platform that is no CPU and computes on one."""

    device_type = "cpu"

    @staticmethod
    def is_cpu() -> bool:
        return False


class Interpreted:
    """Named by ``worker_extension_cls``; needs TRITON_INTERPRET=1 and eager mode."""


runner.current_platform = _Device()
assert compat.device_of_worker() == "cpu"
