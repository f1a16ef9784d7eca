"""Which of vLLM's own arguments this server refuses, and why."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping
from typing import Any

from leanmoe.errors import InputError
from leanmoe.process.environment import is_cpu_build

_OTHER_MODEL = "the model would be another than the one that was checked"


def _other_balancers(args: Namespace) -> dict[str, tuple[Any, str]]:
    """Ways of data parallelism in which this server would not see every engine."""
    here = args.data_parallel_size_local
    why = "some engines would be another server's, and no level could be verified on them"
    return {
        "--data-parallel-rank": (args.data_parallel_rank is not None, why),
        "--data-parallel-start-rank": (args.data_parallel_start_rank is not None, why),
        "--data-parallel-external-lb": (args.data_parallel_external_lb, why),
        "--data-parallel-hybrid-lb": (args.data_parallel_hybrid_lb, why),
        "--data-parallel-multi-port-external-lb": (args.data_parallel_multi_port_external_lb, why),
        "--data-parallel-size-local below --data-parallel-size": (
            here is not None and here != args.data_parallel_size,
            "engines on other machines are started with --headless, which leanmoe serve has not",
        ),
        "--enable-elastic-ep": (
            args.enable_elastic_ep,
            "engines that join later would not know the level",
        ),
    }


def _several_processes(
    args: Namespace, environment: Mapping[str, str]
) -> dict[str, tuple[Any, str]]:
    """What one API process would know and the others not."""
    count = 1 if args.api_server_count is None else args.api_server_count
    with_variable = {
        "VLLM_ENABLE_RESPONSES_API_STORE": "each process would store its own responses, and find "
        "no other's",
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "an adapter loaded through one process would be "
        "unknown to the others",
        "VLLM_USE_RUST_FRONTEND": "vLLM's Rust frontend takes the place of all API processes",
    }
    refused = {
        f"--api-server-count {count} with {name}": (count > 1 and is_on(environment, name), why)
        for name, why in with_variable.items()
    }
    none = (count < 1, "nobody would answer; give 1 or more, or leave it out")
    return {f"--api-server-count {count}": none, **refused}


def is_on(environment: Mapping[str, str], name: str) -> bool:
    """True where vLLM would read ``name`` as set."""
    return environment.get(name, "0").strip() not in ("", "0")


def refuse_unsupported(args: Namespace, environment: Mapping[str, str]) -> None:
    """``InputError`` for the first of vLLM's arguments that this server cannot take."""
    refused = {
        "--enable-return-routed-experts": (
            args.enable_return_routed_experts,
            "it reports expert ids as unsigned numbers, in which a skipped one turns into another",
        ),
        **_other_balancers(args),
        "Ray on a CPU": (
            is_cpu_build()
            and "ray" in (args.distributed_executor_backend, args.data_parallel_backend),
            "vLLM's CPU platform has no Ray device ('current platform cpu does not support ray'); "
            "leave --distributed-executor-backend and --data-parallel-backend out",
        ),
        **_several_processes(args, environment),
        "--kv-transfer-config": (
            args.kv_transfer_config,
            "its store would mix keys and values of different levels",
        ),
        "--kv-offloading-size": (
            args.kv_offloading_size,
            "its store would mix keys and values of different levels",
        ),
        "--speculative-config with multi-token prediction": (
            "mtp" in str((args.speculative_config or {}).get("method", "")),
            "a cut checkpoint has none of its layers, and on a source nobody has verified them "
            "beside skipping; use the method ngram, suffix or draft_model",
        ),
        "--enable-expert-parallel on a CPU": (
            args.enable_expert_parallel and is_cpu_build(),
            "vLLM's CPU kernels crash on it, in stock vLLM too; leave it out",
        ),
        "--enable-lora on a CPU": (
            args.enable_lora and is_cpu_build(),
            "vLLM computes the experts of such engines by Triton, which its CPU build has not, in "
            "stock vLLM too; merge the adapter into the checkpoint",
        ),
        "--hf-overrides": (args.hf_overrides, _OTHER_MODEL),
        "--hf-config-path": (args.hf_config_path, _OTHER_MODEL),
        "--headless": (args.headless, "the skip level needs the API process"),
        "--grpc": (args.grpc, "the skip level is controlled over HTTP"),
    }
    for flag, (given, why) in refused.items():
        if given:
            raise InputError(f"leanmoe serve cannot take {flag}: {why}")
