"""What the server builds on in vLLM: its parsers, its app, its engine client.

``vllm_engine`` checks the first table before it starts; packaging/vllm_check.py reads all of them
against the sources of a wheel. Where versions keep a symbol in different places, the newest comes
first and ``leanmoe.seams.find`` takes the one that is there.
"""

from __future__ import annotations

from leanmoe.seams import Passage, Seam

# Since 0.33, and where 0.32 has them.
_ARGUMENTS = ("vllm.entrypoints.common.cli_args", "vllm.entrypoints.launchers.cli_args")
_STARTUP = ("vllm.entrypoints.common.startup", "vllm.entrypoints.serve.utils.api_utils")
_ENTRY = "vllm.entrypoints.launchers.api_server.entry"
_CLIENT = "vllm.v1.engine.async_llm"

MAKE_ARG_PARSER = Seam(_ARGUMENTS, "make_arg_parser", leading=("parser",))
VALIDATE_ARGUMENTS = Seam(_ARGUMENTS, "validate_parsed_serve_args", leading=("args",))
CLI_ENV_SETUP = Seam(_STARTUP, "cli_env_setup")

_SEVERAL = "vllm.entrypoints.cli.serve"
RUN_API_PROCESSES = Seam.at(_SEVERAL, "run_multi_api_server", leading=("args",))
# Looked up in the module of that function, where ours stands in for it.
API_PROCESS_MANAGER = Seam.at(_SEVERAL, "APIServerProcessManager", members=("shutdown",))

# With --api-server-count above 1.
SEVERAL_API_PROCESSES: tuple[Seam, ...] = (
    RUN_API_PROCESSES,
    API_PROCESS_MANAGER,
    Seam.at(
        _SEVERAL,
        "APIServerProcessManager.__init__",
        leading=("self", "listen_address", "sock", "args", "num_servers"),
        takes=("target_server_fn",),
    ),
    Seam.at("vllm.utils.system_utils", "set_process_title", leading=("name", "suffix")),
)

AT_START: tuple[Seam, ...] = (
    MAKE_ARG_PARSER,
    VALIDATE_ARGUMENTS,
    CLI_ENV_SETUP,
    Seam.at(_ENTRY, "setup_server", leading=("args",), takes=("reuse_port",)),
    Seam.at(
        _ENTRY,
        "run_server_worker",
        leading=("listen_address", "sock", "args", "client_config", "uvicorn_kwargs"),
    ),
    Seam.at("vllm.utils.system_utils", "decorate_logs", leading=("process_name",)),
    Seam.at("vllm.logger", "configure_logging_from_args", leading=("args",)),
    Seam.at("vllm.utils.argparse_utils", "FlexibleArgumentParser", members=("error", "parse_args")),
    Seam.at(
        "vllm.sampling_params",
        "SamplingParams",
        members=("max_tokens", "ignore_eos", "detokenize", "extra_args", "prompt_logprobs"),
    ),
    Seam.at("vllm.inputs", "TokensPrompt", members=("prompt_token_ids", "cache_salt")),
    Seam.at(
        _CLIENT,
        "AsyncLLM.generate",
        leading=("self", "prompt", "sampling_params", "request_id"),
        takes=("data_parallel_rank", "priority"),
    ),
    # The answers of all data-parallel engines, of which collective_rpc gives the first one's.
    Seam.at(
        "vllm.v1.engine.core_client",
        "AsyncMPClient.call_utility_all_async",
        leading=("self", "method"),
    ),
    Seam.at("vllm.v1.engine.core_client", "DPLBAsyncMPClient", base="DPAsyncMPClient"),
    Seam.at(_CLIENT, "AsyncLLM.collective_rpc", takes=("method", "args")),
    Seam.at(
        _CLIENT,
        "AsyncLLM.reset_prefix_cache",
        takes=("reset_running_requests", "reset_connector"),
    ),
    Seam.at(_CLIENT, "AsyncLLM.pause_generation", takes=("mode", "clear_cache")),
    Seam.at(_CLIENT, "AsyncLLM", members=("errored",)),
)

_BODY = ("vllm_xargs", "cache_salt")
_OPENAI = "vllm.entrypoints.openai"

FROM_SOURCES: tuple[Seam, ...] = (
    # What `leanmoe demo` starts as stock vLLM.
    Seam.at(_ENTRY, "main"),
    Seam.at(
        "vllm.plugins.endpoint_plugins.interface",
        "EndpointPlugin",
        members=("name", "required_tasks", "attach_router", "init_state"),
    ),
    Seam.at(
        "vllm.engine.arg_utils",
        "EngineArgs",
        members=(
            *("model", "enable_return_routed_experts", "data_parallel_size"),
            *("data_parallel_rank", "data_parallel_start_rank", "data_parallel_size_local"),
            *("data_parallel_external_lb", "data_parallel_hybrid_lb", "enable_elastic_ep"),
            *("data_parallel_multi_port_external_lb", "data_parallel_backend"),
            *("distributed_executor_backend",),
            *("kv_transfer_config", "kv_offloading_size", "hf_overrides", "hf_config_path"),
            *("speculative_config", "enable_dbo", "prefill_context_parallel_size"),
            *("shutdown_timeout", "additional_config", "pipeline_parallel_size"),
            "otlp_traces_endpoint",
        ),
    ),
    Seam(_ARGUMENTS, "FrontendArgs", members=("middleware", "api_key")),
    # Replays of shadow quality come last where the scheduler knows priorities.
    Seam.at("vllm.config.scheduler", "SchedulerConfig", members=("policy",)),
    # What a request's own level is written into.
    Seam.at(f"{_OPENAI}.chat_completion.protocol", "ChatCompletionRequest", members=_BODY),
    Seam.at(f"{_OPENAI}.completion.protocol", "CompletionRequest", members=_BODY),
    Seam.at(f"{_OPENAI}.responses.protocol", "ResponsesRequest", members=_BODY),
    # What is stored of responses, by their ids.
    Seam.at(
        f"{_OPENAI}.responses.serving",
        "OpenAIServingResponses",
        attributes=("response_store", "msg_store", "event_store", "background_tasks"),
    ),
)

_METRICS = tuple(
    Passage("v1/metrics/", (f'"vllm:{name}"',), "the metrics page and load tests read it")
    for name in (
        *("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc"),
        *("prompt_tokens", "generation_tokens", "num_preemptions"),
        # What the governor acts on.
        *("time_to_first_token_seconds", "inter_token_latency_seconds", "iteration_tokens_total"),
    )
)
_ENGINES = "what reaches one engine reaches all of them"

PASSAGES: tuple[Passage, ...] = (
    Passage(
        "v1/engine/core_client.py",
        ("return (await self.call_utility_all_async(method, *args))[0]",),
        f"{_ENGINES}, and the answer is the first one's: pausing",
    ),
    Passage(
        "v1/engine/core_client.py",
        (
            'await self.call_utility_all_async( "reset_prefix_cache", reset_running_requests, '
            "reset_connector )",
        ),
        f"{_ENGINES}, and one that fails is seen: emptying the prefix cache",
    ),
    Passage(
        "v1/engine/core.py",
        ("def collective_rpc( self, method:",),
        "workers are asked through an engine's utility calls",
    ),
    Passage(
        "logger.py",
        ("envs.VLLM_LOGGING_CONFIG_PATH",),
        "what --log-format json writes is read in every process",
    ),
    Passage(
        "entrypoints/cli/serve.py",
        ("api_server_manager = APIServerProcessManager( listen_address=",),
        "API processes are started through a name that ours can stand in for, by keywords",
    ),
    Passage(
        "entrypoints/cli/serve.py",
        ("setup_multiprocess_prometheus()",),
        "where there are several API processes their series are added up",
    ),
    Passage(
        "v1/utils.py",
        ("args=(listen_address, sock, args, client_config)",),
        "what a process is started with: its own number is in client_config",
    ),
    Passage(
        "v1/utils.py",
        ("died with exit code {proc.exitcode}",),
        "an API process that fails ends the server",
    ),
    Passage(
        "v1/core/sched/scheduler.py",
        ("# Return stats to only one of the front-ends.",),
        "an engine's gauges reach one API process a step, so that nothing counts twice",
    ),
    *_METRICS,
)
