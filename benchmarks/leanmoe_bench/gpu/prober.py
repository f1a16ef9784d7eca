"""The worker extension that probes a layer, light: an engine is told its name."""

from __future__ import annotations

import json
from typing import Any


class LayerProber:
    """Mixed into vLLM's worker by ``worker_extension_cls``; eager mode only."""

    def leanmoe_probe_layer(self: Any, tolerance: float) -> str:
        """JSON: what was found of the first MoE layer."""
        # Here, as the process that names this class has no use for an engine.
        from leanmoe_bench.gpu.layer_probe import probe_layer

        return json.dumps(probe_layer(self.vllm_config, self.device, tolerance))
