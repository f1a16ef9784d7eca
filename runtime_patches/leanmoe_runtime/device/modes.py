"""How each of vLLM's experts classes drops an assignment on CUDA, as data.

From reading vLLM 0.32; not yet measured. *mask*: id -1, weight 0, and the class is given an expert
map. *redirect*: the token's top-1 id with weight 0: fewer weights read, as many rows computed.
*zero*: id kept, weight 0: right everywhere, saves nothing, hence the default for what is unknown.
Duplicate ids of one token crash FlashInfer's CUTLASS kernels (vLLM issues 39288, 39391), and
gpt-oss's bitmatrix cannot hold them: neither may ever be redirected.
"""

from __future__ import annotations

import logging
from typing import Any

from leanmoe.messages import SkipMode
from leanmoe_runtime.device.assignment import is_sparse

_LOG = logging.getLogger(__name__)

MODES: dict[str, SkipMode] = {
    "TritonExperts": SkipMode.MASK,
    # Its sum over a token's experts gets no ids, so a dropped row would be stale workspace.
    "TritonWNA16Experts": SkipMode.REDIRECT,
    "MarlinExperts": SkipMode.MASK,
    "CutlassExpertsFp8": SkipMode.MASK,
    "CutlassExpertsFp4": SkipMode.MASK,
    "CutlassExpertsW4A8Fp8": SkipMode.MASK,
    "DeepGemmExperts": SkipMode.MASK,
    "OAITritonExperts": SkipMode.MASK,
    "UnfusedOAITritonExperts": SkipMode.MASK,
}
# Ways of bringing tokens to experts that pass ids of -1 through. Others hand ids to libraries.
PASSES_IDS = frozenset(
    {
        "MoEPrepareAndFinalizeNoDPEPModular",
        "MoEPrepareAndFinalizeNaiveDPEPModular",
        "DeepEPHTPrepareAndFinalize",
        "DeepEPV2PrepareAndFinalize",
    }
)
_WEAKEST_FIRST = (SkipMode.ZERO, SkipMode.REDIRECT, SkipMode.MASK)


def mode_of(kernel: Any) -> SkipMode:
    """The mode of a layer's ``moe_kernel``, *zero* where it has none."""
    experts = getattr(kernel, "fused_experts", None)
    carrier = type(getattr(kernel, "prepare_finalize", None)).__name__
    if experts is None or carrier not in PASSES_IDS:
        return SkipMode.ZERO
    return experts_mode(experts)


def experts_mode(experts: Any) -> SkipMode:
    """The mode of an experts object; a pair that switches by shape takes the weaker one's."""
    pair = [getattr(experts, name, None) for name in ("experts", "fallback_experts")]
    if all(part is not None for part in pair):
        return min(map(experts_mode, pair), key=_WEAKEST_FIRST.index)
    name = type(experts).__name__
    if name == "TritonExperts" and _scale_spans_rows(experts):
        return SkipMode.REDIRECT
    return MODES.get(name, SkipMode.ZERO)


def _scale_spans_rows(experts: Any) -> bool:
    """One dynamic scale for all rows of the second GEMM's input: it would see unwritten rows.

    ``a2_scale_is_global`` of ``TritonExperts.apply``.
    """
    per_row = experts.per_act_token_quant and not experts.quantization_emulation
    return (
        experts.quant_dtype is not None
        and experts.a2_scale is None
        and experts.block_shape is None
        and not per_row
    )


def is_naive(experts: Any, tokens: int, top_k: int, n_experts: int) -> bool:
    """Whether ``TritonExperts`` takes its path without alignment, which wants no expert map.

    ``naive_block_assignment`` of vLLM's ``fused_moe.py``; that path zeroes rows of id -1 itself.
    """
    if type(experts).__name__ != "TritonExperts":
        return False
    config, block = experts.quant_config, experts.block_shape
    grouped = block is not None and block[1] > 0
    weights_only = config.use_int8_w8a16 or config.use_int4_w4a16
    return is_sparse(tokens * top_k, n_experts) and not (weights_only and grouped)


_SAID: set[str] = set()


def say_once(experts_class: str, mode: SkipMode) -> None:
    """One line in the log per experts class."""
    if experts_class in _SAID:
        return
    _SAID.add(experts_class)
    saves = (
        "" if mode is not SkipMode.ZERO else ": skipping saves nothing, try --moe-backend triton"
    )
    _LOG.warning("experts of class %s skip by mode %s%s", experts_class, mode.value, saves)
