"""What the plugin holds for one engine; a process may run several.

vLLM has one ``CompilationConfig`` per engine, which lists the engine's layers and which the configs
derived from the engine's (of a draft, of the language model inside a multimodal one) share. Ours
hangs on it: what ends with the engine ends with it, too.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import torch

from leanmoe_runtime.compat import get_current_vllm_config
from leanmoe_runtime.device.rows import StepRows
from leanmoe_runtime.requests import RequestRows
from leanmoe_runtime.sparse.workspace import Workspace
from leanmoe_runtime.state import SkipState
from leanmoe_runtime.tally import HostSkipped, Tally

_NAME = "leanmoe_engine"


class Engine:
    """One engine's policy and counters, and what its layers share within a step."""

    def __init__(self) -> None:
        self.state = SkipState()
        self.requests = RequestRows(self.state)
        # A CPU's layers count each token's skipped assignments there.
        self.skipped = HostSkipped()
        # Made with the first step, which knows whether a device counts.
        self._tally: Tally | None = None
        # Layer number -> what gives a layer's router logits.
        self.logits: dict[int, Callable[[torch.Tensor], torch.Tensor]] = {}
        # An accelerator's buffers, from its first layer's making on.
        self.step: StepRows | None = None
        # Where packed experts are written out dense, on a GPU.
        self.workspace = Workspace()
        # Read by direct.cpp: this pass is traffic, all at the engine's level, without a budget.
        self.steady = ctypes.c_int64(0)
        # The layer whose experts begin a pass.
        self.first_slot: int | None = None

    @property
    def tally(self) -> Tally:
        """Accounts of single requests."""
        if self._tally is None:
            self._tally = Tally(self.skipped if self.step is None else self.step.counted)
        return self._tally


def engine_of(vllm_config: Any) -> Engine:
    """The engine that a ``VllmConfig`` is of, its own or one derived from it."""
    held = vars(vllm_config.compilation_config)
    if _NAME not in held:
        held[_NAME] = Engine()
    engine: Engine = held[_NAME]
    return engine


def current_engine() -> Engine:
    """The engine whose model is being built."""
    return engine_of(get_current_vllm_config())
