"""The operator ``leanmoe::direct_experts`` (direct.cpp): level 0 on a CPU without Python.

A layer whose kernel can be called directly goes through it. The first layer of each of an engine's
passes, every layer's first call and every layer that may skip it hands on to ``leanmoe::experts``
with its body in Python; that says whether the rest of the pass is steady: traffic, no request with
a level of its own, no budget. The other layers then are counted and computed in C++ while their
beta is 0. It is linked to the torch beside it, so no wheel can bring it: where it cannot be built,
all layers have their body in Python, at some cost per layer and step.
"""

from __future__ import annotations

import ctypes
import logging

import torch

from leanmoe.errors import RuntimeSeamError
from leanmoe_runtime.engine import Engine
from leanmoe_runtime.native import library, operator_library
from leanmoe_runtime.state import LayerState

_LOG = logging.getLogger(__name__)


def direct_experts(fragment: torch.library.Library) -> DirectExperts | None:
    """The operator; ``None``, with a warning, where there is neither its library nor a compiler."""
    try:
        return DirectExperts(fragment, operator_library())
    except RuntimeSeamError as error:
        _LOG.warning("level 0 costs more than it has to, for %s", error)
        return None


class DirectExperts:
    """What Python tells the operator; one per process, as the operator is."""

    def __init__(self, fragment: torch.library.Library, loaded: ctypes.CDLL) -> None:
        self._add = loaded.leanmoe_add_layer
        self._add.argtypes = [
            *(ctypes.c_int64, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p),
            *(ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p),
        ]
        self._add.restype = None
        self._count = ctypes.cast(library().leanmoe_count_whole, ctypes.c_void_p)
        fragment._register_fake("direct_experts", _fake)  # type: ignore[no-untyped-call]

    def add(self, slot: int) -> None:
        """Take a layer that neither skips nor counts."""
        self._add(slot, None, None, None, 0, 0, self._count)

    def attach(self, slot: int, state: LayerState, engine: Engine) -> None:
        """Let a layer skip and count; the first of an engine's begins its passes."""
        if engine.first_slot is None:
            engine.first_slot = slot
        engine.steady.value = 0
        counts, betas = state.counters_address, state.betas.data_ptr()
        steady, begins = ctypes.addressof(engine.steady), engine.first_slot == slot
        self._add(slot, counts, betas, steady, state.n_experts, begins, self._count)


def _fake(x: torch.Tensor, *rest: object) -> torch.Tensor:
    return torch.empty_like(x)
