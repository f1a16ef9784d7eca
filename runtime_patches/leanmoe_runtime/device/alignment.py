"""Where a step's tokens can be told apart by request on a device, and where they cannot."""

from __future__ import annotations

from typing import Any


def request_rows_unavailable(vllm_config: Any) -> str | None:
    """Why single requests can have no level of their own under this ``VllmConfig``, or ``None``.

    The rows are laid out in the order of the model runner's step. What mixes, splits or adds
    tokens between that and the router would hand a request another one's level. Data parallelism
    does so behind the router, where experts have a modular kernel; the handshake refuses others.
    """
    parallel = vllm_config.parallel_config
    breaking = {
        "sequence-parallel experts give each rank a part of the tokens": (
            parallel.use_sequence_parallel_moe
        ),
        "prefill context parallelism gives each rank a part of the prompt": (
            parallel.prefill_context_parallel_size > 1
        ),
        "dual-batch overlap runs a step in two halves": parallel.use_ubatching,
        "speculative decoding lays out tokens that may be dropped, and runs a draft model": (
            vllm_config.speculative_config is not None
        ),
    }
    return next((reason for reason, holds in breaking.items() if holds), None)
