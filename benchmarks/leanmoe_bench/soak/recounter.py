"""The worker extension that counts a second time, light: a server is told its name."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any


class Recounter:
    """Mixed into vLLM's worker by ``--worker-extension-cls``; eager mode only."""

    def leanmoe_recount_start(self: Any) -> int:
        """Listen to every layer that can skip; the number of layers."""
        # Here, as the process that names this class has no use for an engine.
        from leanmoe_bench.soak.recount import listen_to_all

        self.recounted, layers = listen_to_all(self.vllm_config)
        return layers

    def leanmoe_recount(self: Any) -> str:
        """JSON: layer -> what was counted since the start of listening."""
        return json.dumps({layer: asdict(one) for layer, one in self.recounted.items()})
