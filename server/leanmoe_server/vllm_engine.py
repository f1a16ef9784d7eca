"""The only module of the server that imports vLLM: its arguments, its app, its workers."""

from __future__ import annotations

import asyncio
import logging
import math
import os
import secrets
import sys
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import uvloop
import vllm
from vllm import envs
from vllm.entrypoints.launchers.api_server.entry import run_server_worker, setup_server
from vllm.inputs import TokensPrompt
from vllm.logger import configure_logging_from_args
from vllm.platforms import current_platform
from vllm.sampling_params import SamplingParams
from vllm.utils.argparse_utils import FlexibleArgumentParser
from vllm.utils.system_utils import decorate_logs, set_process_title

from leanmoe import __version__
from leanmoe.errors import InputError, LeanMoEError, RuntimeSeamError
from leanmoe.messages import (
    ExpertFactors,
    HandshakeReport,
    LevelTable,
    PolicyInForce,
    PolicyUpdate,
    RequestCounts,
    RequestNames,
    SkipSnapshot,
)
from leanmoe.process.environment import is_cpu_build
from leanmoe.seams import check, find
from leanmoe.tuned_tables import card_in_file_names
from leanmoe_server import seams
from leanmoe_server.admission import Admission
from leanmoe_server.api_processes.process_set import ProcessSet
from leanmoe_server.api_processes.supervision import supervise
from leanmoe_server.cache_space import full_cache
from leanmoe_server.client_errors import leave_out_client_tracebacks
from leanmoe_server.connection import BoundedConnection
from leanmoe_server.door import Door
from leanmoe_server.in_force import InForce
from leanmoe_server.keys.key_source import SECRET_VARIABLES, VLLM_KEY_VARIABLE
from leanmoe_server.log_lines import CONFIG_VARIABLE, leave_out_polls
from leanmoe_server.marking import Marking
from leanmoe_server.number_format import multiplies_slowly
from leanmoe_server.refusals import refuse_unsupported
from leanmoe_server.service import PLACE_ARGUMENT, PROCESSES_ARGUMENT, SERVICE_ARGUMENT
from leanmoe_server.settings import ServeSettings
from leanmoe_server.shadow.estimate import TopLogprobs
from leanmoe_server.shadow.sampling import Sampler
from leanmoe_server.stopping import stopped_while_loading
from leanmoe_server.table_folder import EngineShape, TableSources, tables_for
from leanmoe_server.tenants.tenant_generation import for_tenants

_ADMISSION = f"{Admission.__module__}.{Admission.__qualname__}"
_DOOR = f"{Door.__module__}.{Door.__qualname__}"
_MARKING = f"{Marking.__module__}.{Marking.__qualname__}"
# After the drain, a client that does not read its last bytes may not hold the exit.
_CLOSE_SECONDS = 5
_OUR_CONNECTIONS: dict[str, Any] = {
    "timeout_graceful_shutdown": _CLOSE_SECONDS,
    "http": BoundedConnection,
}
# A worker answers between two engine steps; a long prefill on a slow machine takes a while.
_RPC_SECONDS = 120.0
# vLLM's scheduler takes smaller numbers first.
_LAST = 1 << 30


class VllmEngine:
    """``Engine`` over vLLM's ``AsyncLLM``: its one engine, or all of its data-parallel ones."""

    def __init__(self, client: Any) -> None:
        self._client = client
        self._engines: int = client.vllm_config.parallel_config.data_parallel_size

    def generate_for_tenants(self, control: InForce) -> None:
        """From now on what routes compute is at their tenant's level, in its caches, counted."""
        self._client.generate = for_tenants(self._client.generate, control)

    def sample_answers(self, sampler: Sampler) -> None:
        """From now on finished answers pass by ``sampler``."""
        self._client.generate = sampler.around(self._client.generate)

    @property
    def slow_format(self) -> str | None:
        """What to say where this processor multiplies the model's numbers slowly."""
        return multiplies_slowly(self._client.vllm_config.model_config.dtype)

    @property
    def has_priorities(self) -> bool:
        return bool(self._client.vllm_config.scheduler_config.policy == "priority")

    async def score(
        self, tokens: Sequence[int], extra: dict[str, int], salt: str, top: int
    ) -> list[TopLogprobs]:
        sampling = SamplingParams(
            max_tokens=1, prompt_logprobs=top, detokenize=False, extra_args=dict(extra)
        )
        prompt = TokensPrompt(prompt_token_ids=list(tokens), cache_salt=salt)
        name = f"leanmoe-shadow-{secrets.token_hex(8)}"
        priority = _LAST if self.has_priorities else 0
        found: list[Any] = []
        async for output in self._client.generate(prompt, sampling, name, priority=priority):
            found = output.prompt_logprobs or found
        return [{token: one.logprob for token, one in held.items()} for held in found[1:]]

    async def _ask(self, method: str, *arguments: str) -> list[str]:
        answers: list[str] = await asyncio.wait_for(self._answers(method, arguments), _RPC_SECONDS)
        return answers

    async def _answers(self, method: str, arguments: tuple[str, ...]) -> list[str]:
        """One text per worker, of the first engine's first."""
        if self._engines == 1:
            answers: list[str] = await self._client.collective_rpc(method, args=arguments)
            return answers
        # ``collective_rpc`` reaches all engines, too, and returns the answers of the first.
        per_engine = await self._client.engine_core.call_utility_all_async(
            "collective_rpc", method, None, arguments, None
        )
        if len(per_engine) != self._engines:
            raise RuntimeSeamError(f"{len(per_engine)} of {self._engines} engines answered")
        return [answer for answers in per_engine for answer in answers]

    async def warm_up(self) -> None:
        # All at once: data-parallel engines step together.
        await asyncio.gather(*map(self._warm_up, range(self._engines)))

    async def _warm_up(self, engine: int) -> None:
        sampling = SamplingParams(max_tokens=2, ignore_eos=True, detokenize=False)
        prompt = TokensPrompt(prompt_token_ids=[0])
        chosen = {"data_parallel_rank": engine} if self._engines > 1 else {}
        name = f"leanmoe-warm-up-{engine}"
        async for _ in self._client.generate(prompt, sampling, request_id=name, **chosen):
            pass

    async def handshake(self) -> list[HandshakeReport]:
        answers = await self._ask("leanmoe_handshake")
        return [HandshakeReport.model_validate_json(answer) for answer in answers]

    async def set_policy(self, update: PolicyUpdate) -> list[PolicyInForce]:
        answers = await self._ask("leanmoe_set_policy", update.model_dump_json())
        return [PolicyInForce.model_validate_json(answer) for answer in answers]

    async def set_levels(self, table: LevelTable) -> list[PolicyInForce]:
        answers = await self._ask("leanmoe_set_levels", table.model_dump_json())
        return [PolicyInForce.model_validate_json(answer) for answer in answers]

    async def set_factors(self, factors: ExpertFactors) -> list[PolicyInForce]:
        answers = await self._ask("leanmoe_set_factors", factors.model_dump_json())
        return [PolicyInForce.model_validate_json(answer) for answer in answers]

    async def snapshot(self) -> list[SkipSnapshot]:
        answers = await self._ask("leanmoe_snapshot")
        return [SkipSnapshot.model_validate_json(answer) for answer in answers]

    async def request_counts(self, names: Sequence[str]) -> list[RequestCounts]:
        asked = RequestNames(names=list(names)).model_dump_json()
        answers = await self._ask("leanmoe_request_counts", asked)
        return [RequestCounts.model_validate_json(answer) for answer in answers]

    async def reset_prefix_cache(self) -> bool:
        # Running requests are preempted and recomputed: they hold KV of the old level.
        return bool(
            await self._client.reset_prefix_cache(reset_running_requests=True, reset_connector=True)
        )

    def seats(self) -> int:
        return int(self._client.vllm_config.scheduler_config.max_num_seqs) * self._engines

    def dead(self) -> bool:
        return bool(self._client.errored)

    async def abort_all(self) -> None:
        await self._client.pause_generation(mode="abort", clear_cache=False)


def _raise_input_error(message: str) -> NoReturn:
    raise InputError(f"{message}; arguments not in `leanmoe serve --help` are vLLM's own")


def parse_vllm_arguments(argv: Sequence[str]) -> Namespace:
    """vLLM's own namespace for ``argv``; ``InputError`` for what it or we cannot take."""
    parser = find(seams.MAKE_ARG_PARSER)(FlexibleArgumentParser(prog="leanmoe serve"))
    parser.error = _raise_input_error
    try:
        args: Namespace = parser.parse_args(list(argv))
        find(seams.VALIDATE_ARGUMENTS)(args)
    except (TypeError, ValueError) as error:
        raise InputError(f"vLLM refuses these arguments: {error}") from None
    refuse_unsupported(args, os.environ)
    return args


def _union_unavailable(least: int) -> str | None:
    if is_cpu_build() or least:
        return None
    return "on a GPU captured graphs must hold it; start the server with --union-budget N"


def _drafts_with_experts(speculative: Any) -> bool:
    """False where a draft surely leaves the order of the model's tokens as it was.

    A draft model's own experts stay exact and see no levels (``LeanRoutedExperts.of_draft``).
    """
    method = (speculative or {}).get("method")
    return speculative is not None and method not in ("ngram", "suffix", "draft_model")


def _request_levels_unavailable(args: Namespace) -> str | None:
    """What keeps a step's tokens from being told apart by request, or ``None``.

    On other devices the workers say more in the handshake.
    """
    breaking = {
        "--speculative-config": _drafts_with_experts(args.speculative_config),
        "--enable-dbo": args.enable_dbo,
        "--prefill-context-parallel-size": args.prefill_context_parallel_size > 1,
    }
    given = [flag for flag, is_given in breaking.items() if is_given]
    return f"with {given[0]} a step's tokens lie in another order" if given else None


def _take_user_keys(args: Namespace) -> list[str]:
    """vLLM's keys, which it is not told: our door asks for them, on every route.

    The engine's processes inherit the environment and need no secret either.
    """
    given = [one for one in (args.api_key or [os.environ.get(VLLM_KEY_VARIABLE)]) if one]
    args.api_key = None
    for name in SECRET_VARIABLES:
        os.environ.pop(name, None)
    return given


def with_our_parts(args: Namespace, settings: ServeSettings) -> Namespace:
    """Add our ASGI layers, drain time, cache fingerprint and settings to vLLM's arguments."""
    keys = settings.keys.with_users(_take_user_keys(args))
    # Outermost of all: added last, a middleware stands before those added earlier.
    args.middleware = [*args.middleware, _ADMISSION, _DOOR, _MARKING]
    # Engine processes that get the signal themselves must drain as well.
    args.shutdown_timeout = args.shutdown_timeout or math.ceil(settings.drain_seconds)
    union = settings.policy.union
    least_union = 0 if union is None or is_cpu_build() else union.experts
    # Hashed into vLLM's compile cache key: stock artefacts must never serve the plugin.
    fingerprint = {"plugin": __version__, **({"union_budget": least_union} if least_union else {})}
    args.additional_config = {**(args.additional_config or {}), "leanmoe": fingerprint}
    args.leanmoe = replace(
        settings,
        keys=keys,
        every_worker_holds_all_layers=args.pipeline_parallel_size == 1,
        request_levels_unavailable=_request_levels_unavailable(args),
        union_unavailable=settings.union_unavailable or _union_unavailable(least_union),
        least_union=least_union,
    )
    # Known only now: what this build and these flags cannot do.
    args.leanmoe.resolve(settings.policy)
    return args


def _tables_unavailable(args: Namespace) -> str | None:
    if envs.VLLM_BATCH_INVARIANT:
        return "VLLM_BATCH_INVARIANT fixes its tiles"
    if args.enable_lora:
        # One folder holds both kinds, and an engine with a folder takes LoRA's tiles from there.
        return "with --enable-lora a folder of tables also replaces the tiles of adapters"
    return "with --enable-eplb its ranks hold copies of experts" if args.enable_eplb else None


def engine_shape(args: Namespace) -> EngineShape | None:
    """What the engine will look for among tuned tables; ``None`` away from CUDA."""
    if not current_platform.is_cuda():
        return None
    ranks = args.tensor_parallel_size * args.prefill_context_parallel_size
    spread = args.enable_expert_parallel
    return EngineShape(
        card=card_in_file_names(current_platform.get_device_name()),
        tables=Path(vllm.__file__).parent / "model_executor/layers/fused_moe/configs",
        tensor=1 if spread else ranks,
        expert=ranks if spread else 1,
        dtype=str(args.dtype),
        quantization=args.quantization,
        ignores=_tables_unavailable(args),
    )


def _take_log_config(args: Namespace) -> None:
    """The log's configuration that this start made, though vLLM read its environment before."""
    ours = os.environ.get(CONFIG_VARIABLE)
    given = getattr(args, "log_config_file", None)
    if ours is None or given == ours:
        return
    if given is not None:
        raise InputError("--log-config-file and --log-format each say how to log; leave out one")
    args.log_config_file = ours


async def _serve(args: Namespace) -> None:
    """vLLM's ``run_server`` without its signal handler, whose interrupt vLLM itself swallows."""
    decorate_logs("APIServer", skip_if_decorated=True)
    address, listening = setup_server(args, reuse_port=False)
    await run_server_worker(address, listening, args, **_OUR_CONNECTIONS)


def _prepare_logs(args: Namespace) -> None:
    configure_logging_from_args(args)
    leave_out_client_tracebacks(logging.getLogger("vllm"))
    leave_out_polls()
    # What the server decides is part of its log, whatever level libraries give the root.
    logging.getLogger("leanmoe_server").setLevel(logging.INFO)


def run_api_process(
    address: str, listening: Any, args: Namespace, client_config: dict[str, Any]
) -> NoReturn:
    """One of several API processes, where vLLM would run its ``run_api_server_worker_proc``."""
    index = int(client_config["client_index"])
    processes: ProcessSet = getattr(args, PROCESSES_ARGUMENT)
    place = processes.take(index, os.getppid(), os.getpid())
    setattr(args, PLACE_ARGUMENT, place)
    _prepare_logs(args)
    set_process_title("APIServer", str(index))
    decorate_logs()
    serving = run_server_worker(address, listening, args, client_config, **_OUR_CONNECTIONS)
    try:
        with stopped_while_loading():
            uvloop.run(serving)
    except KeyboardInterrupt:
        sys.exit(130)
    # One that ends by itself ends the others.
    sys.exit(0 if processes.told_to_stop else 1)


def _run(args: Namespace) -> None:
    """In this process, or in several that it starts."""
    count = args.api_server_count or 1
    if count == 1:
        uvloop.run(_serve(args))
        return
    check(seams.SEVERAL_API_PROCESSES)
    processes = ProcessSet(count)
    setattr(args, PROCESSES_ARGUMENT, processes)
    supervise(args, processes, run_api_process)


def serve(model: str, argv: Sequence[str], settings: ServeSettings, tables: TableSources) -> None:
    """Run vLLM's OpenAI server on ``model`` with ``argv`` and our parts until told to stop."""
    check(seams.AT_START)
    find(seams.CLI_ENV_SETUP)()
    args = parse_vllm_arguments(argv)
    if args.model != model:
        raise InputError(
            f"leanmoe serve was given two models, {model} and {args.model}; name one, first"
        )
    _take_log_config(args)
    _prepare_logs(args)
    args = with_our_parts(args, settings)
    try:
        with tables_for(tables, engine_shape(args)), stopped_while_loading():
            _run(args)
    except (RuntimeError, ValueError, OSError) as error:
        why = full_cache(os.environ) or f"{error}; its own messages above say more"
        raise LeanMoEError(f"vLLM could not serve {args.model}: {why}") from error
    # vLLM ends in the same way when its engine dies.
    service = getattr(args, SERVICE_ARGUMENT, None)
    if service is not None and not service.drain.draining:
        raise LeanMoEError("vLLM's engine stopped by itself; its own messages above say why")
