"""How each of vLLM's experts classes leaves an assignment out on CUDA, as data.

*Mask*: id -1, weight 0. *Redirect*: the token's top-1 id with weight 0: fewer weights read, as many
rows computed. *Zero*: id kept, weight 0: right everywhere, saves nothing, hence the default for
what is unknown. Duplicate ids of one token crash FlashInfer's CUTLASS kernels (vLLM issues 39288,
39391), and gpt-oss's bitmatrix cannot hold them: neither may ever be redirected.

A row says how it is known: *measured* on a card, or *read* in the sources of vLLM 0.32 (0.33's
were compared). Rows of mode zero are classes whose ids go to a library, or that nobody followed.
"""

from __future__ import annotations

import logging
from typing import Any, NamedTuple

from leanmoe.messages import SkipMode
from leanmoe_runtime.device.assignment import is_sparse

_LOG = logging.getLogger(__name__)
_READ = "read"
_H200 = "measured on an H200, 2026-11-27, bf16; quantised weights read"


class Row(NamedTuple):
    """``mode`` of a class and how it is ``known``."""

    mode: SkipMode
    known: str = _READ


_MASK, _REDIRECT = Row(SkipMode.MASK), Row(SkipMode.REDIRECT)
_ZERO = Row(SkipMode.ZERO)

MODES: dict[str, Row] = {
    # A sum of our own; its scale over all rows, where there is one, makes it redirect.
    "TritonExperts": Row(SkipMode.MASK, _H200),
    # Its sum over a token's experts gets no ids, so a row left out would be stale workspace.
    "TritonWNA16Experts": _REDIRECT,
    "MarlinExperts": _MASK,
    "CutlassExpertsFp8": _MASK,
    "CutlassExpertsFp4": _MASK,
    "CutlassExpertsW4A8Fp8": _MASK,
    "DeepGemmExperts": _MASK,
    "OAITritonExperts": _MASK,
    "UnfusedOAITritonExperts": _MASK,
    # Nobody followed an id of -1 through these.
    "CutlassExpertsMxfp4": _ZERO,
    "DeepGemmFP4Experts": _ZERO,
    "Int4EmulationTritonExperts": _ZERO,
    "Mxfp8EmulationTritonExperts": _ZERO,
    "Mxfp8NativeTritonExperts": _ZERO,
    "Nvfp4QuantizationEmulationTritonExperts": _ZERO,
    "OCP_MXQuantizationEmulationTritonExperts": _ZERO,
    # Tokens come to these sorted by whoever carries them between ranks.
    "BatchedDeepGemmExperts": _ZERO,
    "BatchedHummingGroupedExperts": _ZERO,
    "BatchedMarlinExperts": _ZERO,
    "BatchedTritonExperts": _ZERO,
    "CutlassBatchedExpertsFp8": _ZERO,
    "FlashInferCuteDSLBatchedExperts": _ZERO,
    "NaiveBatchedExperts": _ZERO,
    # Ids go to a library.
    "B12xExperts": _ZERO,
    "FlashInferB12xExperts": _ZERO,
    "FlashInferCuteDSLExperts": _ZERO,
    "FlashInferExperts": _ZERO,
    "FlashInferMoeEpExperts": _ZERO,
    "HPCExperts": _ZERO,
    "HummingGroupedExperts": _ZERO,
    "HummingIndexedExperts": _ZERO,
    "MoonEPExperts": _ZERO,
    "TrtLlmBf16ExpertsModular": _ZERO,
    "TrtLlmBf16LoRAExperts": _ZERO,
    "TrtLlmFp8ExpertsModular": _ZERO,
    "TrtLlmMxfp4ExpertsModular": _ZERO,
    "TrtLlmNvFp4ExpertsModular": _ZERO,
}
# Choose one of two classes of the table by the shape of a step.
PAIRS = frozenset({"TritonOrCutlassExperts", "TritonOrDeepGemmExperts"})
# Ways of bringing tokens to experts that pass ids of -1 through. Others hand ids to libraries.
PASSES_IDS = frozenset(
    {
        "MoEPrepareAndFinalizeNoDPEPModular",
        "MoEPrepareAndFinalizeNaiveDPEPModular",
        "DeepEPHTPrepareAndFinalize",
        "DeepEPV2PrepareAndFinalize",
    }
)
# Others, read in vLLM 0.32: their libraries were never given an id of -1. Skipped ids stay there
# with weight zero, which is right and saves nothing.
KEEPS_IDS: dict[str, str] = {
    "BatchedPrepareAndFinalize": "sorts tokens by expert id into a buffer per expert",
    "DeepEPLLPrepareAndFinalize": "ids go to DeepEP's low-latency kernels",
    "FlashInferNVLinkOneSidedPrepareAndFinalize": "ids go to FlashInfer",
    "FlashInferNVLinkTwoSidedPrepareAndFinalize": "ids go to FlashInfer",
    "MoonEPPrepareAndFinalize": "gives an invalid id to expert 0",
    "MoriPrepareAndFinalize": "ids go to MoRI",
    "NixlEPPrepareAndFinalize": "ids go to NIXL",
    "PassThroughPrepareAndFinalize": "the experts bring tokens around by themselves",
}
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
    if takes_adapters(experts):
        return SkipMode.ZERO
    pair = [getattr(experts, name, None) for name in ("experts", "fallback_experts")]
    if all(part is not None for part in pair):
        return min(map(experts_mode, pair), key=_WEAKEST_FIRST.index)
    name = type(experts).__name__
    if name == "TritonExperts" and _scale_spans_rows(experts):
        return SkipMode.REDIRECT
    return MODES.get(name, _ZERO).mode


def takes_adapters(experts: Any) -> bool:
    """With --enable-lora ids go to the adapters' kernels too, and nobody followed -1 there."""
    return bool(getattr(getattr(experts, "moe_config", None), "is_lora_enabled", False))


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
    row = MODES.get(experts_class)
    known = "a class that this LeanMoE does not know" if row is None else row.known
    if experts_class in PAIRS:
        known = "the weaker mode of its two classes"
    saves = (
        "" if mode is not SkipMode.ZERO else "; skipping saves nothing, try --moe-backend triton"
    )
    _LOG.warning("experts of class %s skip by mode %s (%s)%s", experts_class, mode, known, saves)
