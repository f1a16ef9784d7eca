"""What the benchmarks build on in vLLM's offline engine, for packaging/vllm_check.py."""

from __future__ import annotations

from leanmoe.seams import Seam

FROM_SOURCES: tuple[Seam, ...] = (
    Seam.at(
        "vllm",
        "LLM.__init__",
        takes=("model", "skip_tokenizer_init", "seed"),
    ),
    Seam.at("vllm", "LLM.generate", leading=("self", "prompts", "sampling_params")),
    Seam.at("vllm", "LLM.collective_rpc", takes=("method", "args")),
    Seam.at("vllm", "LLM", members=("get_metrics",)),
    Seam.at(
        "vllm",
        "SamplingParams",
        members=("temperature", "max_tokens", "ignore_eos", "detokenize", "extra_args"),
    ),
    Seam.at("vllm.engine.arg_utils", "EngineArgs", members=("disable_log_stats",)),
    Seam.at(
        "vllm.v1.metrics.stats",
        "RequestStateStats",
        members=("first_token_ts", "last_token_ts"),
    ),
)
