"""What the plugin builds on in vLLM: the table that ``compat`` checks when it registers.

``packaging/vllm_check.py`` reads the same table against the sources of a wheel. What is in
``FROM_SOURCES`` and ``PASSAGES`` comes to the plugin as objects of a running engine, or is the
behaviour of a function: sources tell it, an import does not.
"""

from __future__ import annotations

from typing import Any

from leanmoe.seams import Passage, Seam

_MOE = "vllm.model_executor.layers.fused_moe"
_FOLDER = "model_executor/layers/fused_moe"


def _in(module: str, name: str, **parts: Any) -> Seam:
    return Seam((module,), name, **parts)


# Checked when the plugin registers: all of these are imported by then.
AT_START: tuple[Seam, ...] = (
    _in(
        f"{_MOE}.router.base_router",
        "BaseRouter._compute_routing",
        leading=("self", "hidden_states", "router_logits", "indices_type"),
    ),
    _in(
        f"{_MOE}.routed_experts",
        "RoutedExperts.forward_modular",
        leading=(
            *("self", "x", "topk_weights", "topk_ids"),
            *("shared_experts", "shared_experts_input"),
        ),
    ),
    _in(
        f"{_MOE}.routed_experts",
        "RoutedExperts.__init__",
        leading=("self", "layer_name", "params_dtype", "moe_config", "quant_config"),
    ),
    _in(
        f"{_MOE}.routed_experts",
        "RoutedExperts",
        members=(
            *("expert_map", "register_oot", "get_expert_mapping", "build_expert_params_mapping"),
            "_map_global_expert_id_to_local_expert_id",
        ),
        attributes=(
            *("ckpt_gate_proj_name", "ckpt_down_proj_name", "ckpt_up_proj_name"),
            *("lora_base_layer_prefix", "params_dtype"),
            *("layer_name", "moe_config", "quant_method", "top_k", "global_num_experts"),
            *("local_num_experts", "renormalize", "scoring_func", "custom_routing_function"),
            *("use_grouped_topk", "num_expert_group", "e_score_correction_bias"),
            *("activation", "apply_router_weight_on_input", "intermediate_size_per_partition"),
        ),
        base="PluggableLayer",
    ),
    _in(
        f"{_MOE}.runner.moe_runner",
        "MoERunner.__init__",
        leading=("self", "layer_name", "moe_config", "router", "routed_experts"),
    ),
    _in(
        f"{_MOE}.runner.moe_runner",
        "MoERunner",
        members=("register_oot", "load_weights"),
        attributes=("layer_name", "router", "routed_experts"),
        base="PluggableLayer",
    ),
    _in(
        f"{_MOE}.router.gate_linear",
        "GateLinear.__init__",
        leading=("self", "input_size", "output_size"),
        takes=("prefix",),
    ),
    _in(
        f"{_MOE}.router.gate_linear",
        "GateLinear",
        members=("register_oot", "forward"),
        attributes=("return_bias", "quant_method"),
        base="PluggableLayer",
    ),
    _in(
        f"{_MOE}.layer",
        "FusedMoEFactory",
        leading=("num_experts", "top_k", "hidden_size", "intermediate_size"),
        takes=(
            *("prefix", "enable_eplb", "use_grouped_topk", "num_expert_group", "topk_group"),
            *("shared_experts", "apply_routed_scale_to_output", "reduce_results"),
            *("is_sequence_parallel", "e_score_correction_bias", "gate"),
            *("renormalize", "routed_scaling_factor", "routed_experts_cls"),
        ),
    ),
    _in("vllm.model_executor.custom_op", "PluggableLayer.register_oot", takes=("name",)),
    _in("vllm.compilation.backends", "set_model_tag", leading=("tag",)),
    _in(f"{_MOE}.config", "RoutingMethodType", members=("Unspecified", "DeepseekV4")),
    _in(
        f"{_MOE}.config",
        "FusedMoEConfig",
        members=(
            *("routing_method", "num_logical_experts", "hidden_dim", "hidden_dim_unpadded"),
            "tp_rank",
        ),
    ),
    _in(
        "vllm.utils.torch_utils",
        "direct_register_custom_op",
        leading=("op_name", "op_func", "mutates_args", "fake_impl", "target_lib"),
        takes=("dispatch_key",),
    ),
    _in(
        "vllm._custom_ops",
        "cpu_fused_moe",
        leading=(
            *("out", "input", "w13", "w2", "w13_bias", "w2_bias"),
            *("topk_weights", "topk_ids", "act", "isa", "skip_weighted"),
        ),
    ),
    _in(
        f"{_MOE}.fused_moe_method_base",
        "FusedMoEMethodBase.create_weights",
        leading=(
            *("self", "layer", "num_experts", "hidden_size"),
            *("intermediate_size_per_partition", "params_dtype"),
        ),
    ),
    _in(
        f"{_MOE}.fused_moe_method_base",
        "FusedMoEMethodBase.apply",
        leading=(
            *("self", "layer", "x", "topk_weights", "topk_ids"),
            *("shared_experts", "shared_experts_input"),
        ),
    ),
    _in(
        f"{_MOE}.fused_moe",
        "fused_experts",
        leading=("hidden_states", "w1", "w2", "topk_weights", "topk_ids"),
        takes=("activation", "global_num_experts", "expert_map"),
    ),
    _in(
        f"{_MOE}.config",
        "FusedMoEParallelConfig",
        members=("tp_size", "tp_rank", "use_ep", "enable_eplb"),
    ),
    _in(
        f"{_MOE}.config",
        "FusedMoEConfig",
        members=("is_lora_enabled", "moe_parallel_config", "dp_size"),
    ),
    _in(
        "vllm.model_executor.layers.quantization.base_config",
        "QuantizationConfig",
        members=(
            *("get_name", "get_supported_act_dtypes", "get_min_capability", "from_config"),
            *("get_config_filenames", "get_quant_method", "maybe_update_config"),
            *("override_quantization_method", "apply_vllm_mapper"),
        ),
    ),
    _in(
        "vllm.model_executor.layers.quantization.base_config",
        "QuantizationConfig.override_quantization_method",
        takes=("hf_quant_cfg", "user_quant", "hf_config"),
    ),
    _in(
        "vllm.model_executor.layers.quantization.base_config",
        "QuantizationConfig.maybe_update_config",
        leading=("self", "model_name", "hf_config", "revision"),
    ),
    _in(f"{_MOE}.activation", "MoEActivation", members=("SILU", "GELU")),
    _in(
        "vllm.model_executor.layers.quantization.fp8",
        "Fp8Config",
        members=("from_config", "get_quant_method", "apply_vllm_mapper"),
    ),
    _in(
        "vllm.model_executor.layers.linear",
        "UnquantizedLinearMethod.create_weights",
        leading=(
            *("self", "layer", "input_size_per_partition", "output_partition_sizes"),
            *("input_size", "output_size", "params_dtype"),
        ),
    ),
    _in(
        "vllm.model_executor.layers.linear",
        "register_weight_loader_v2_supported_method",
        leading=("cls",),
    ),
    _in(
        "vllm.model_executor.kernels.linear.scaled_mm.cpu",
        "CPUFp8BlockScaledMMKernel",
        members=("is_supported",),
    ),
    _in(
        "vllm.model_executor.layers.quantization",
        "register_quantization_config",
        leading=("quantization",),
    ),
    _in(
        "vllm.v1.worker.worker_base",
        "WorkerBase.__init__",
        leading=("self", "vllm_config", "local_rank", "rank"),
    ),
)

# Only workers need the modules of the model runners.
FIRST_RUNNER: tuple[Seam, ...] = (
    _in(
        "vllm.v1.worker.gpu_model_runner",
        "GPUModelRunner._prepare_inputs",
        leading=("self", "scheduler_output", "num_scheduled_tokens"),
    ),
    _in(
        "vllm.v1.worker.gpu_model_runner",
        "GPUModelRunner",
        members=("_dummy_run", "capture_model", "get_model"),
        attributes=("input_batch", "requests"),
    ),
)
SECOND_RUNNER: tuple[Seam, ...] = (
    _in(
        "vllm.v1.worker.gpu.model_runner",
        "GPUModelRunner.prepare_inputs",
        leading=("self", "scheduler_output", "batch_req_state"),
    ),
    _in(
        "vllm.v1.worker.gpu.model_runner",
        "GPUModelRunner",
        members=("_dummy_run", "capture_model", "get_model"),
        attributes=("req_states",),
    ),
    _in(
        "vllm.v1.worker.gpu.model_runner",
        "BatchReqState",
        members=(
            *("req_ids", "num_scheduled_tokens"),
            *("num_computed_prefill_tokens_np", "idx_mapping_np"),
        ),
    ),
)

# Only a CPU's data-parallel workers need these.
_COMMUNICATORS = "vllm.distributed.device_communicators"
CPU_RANKS: tuple[Seam, ...] = (
    _in(
        f"{_COMMUNICATORS}.base_device_communicator",
        "DeviceCommunicatorBase.all_gatherv",
        leading=("self", "input_", "dim", "sizes"),
    ),
    _in(
        f"{_COMMUNICATORS}.base_device_communicator",
        "DeviceCommunicatorBase.reduce_scatterv",
        leading=("self", "input_", "dim", "sizes"),
    ),
    _in(
        f"{_COMMUNICATORS}.base_device_communicator",
        "DeviceCommunicatorBase",
        attributes=("device_group", "world_size", "rank_in_group"),
    ),
    _in(f"{_COMMUNICATORS}.cpu_communicator", "CpuCommunicator", base="DeviceCommunicatorBase"),
)

# What ``TritonExperts`` call by name; only workers on CUDA need its module.
TRITON_CALLS: tuple[Seam, ...] = (
    _in(
        f"{_MOE}.experts.triton_moe",
        "_prepare_expert_assignment",
        leading=(
            *("topk_ids", "config", "num_tokens", "top_k_num"),
            *("global_num_experts", "expert_map"),
        ),
        takes=("use_int8_w8a16", "use_int4_w4a16"),
    ),
    _in(
        f"{_MOE}.experts.triton_moe",
        "invoke_fused_moe_triton_kernel",
        leading=(
            *("A", "B", "C", "A_scale", "B_scale", "topk_weights", "sorted_token_ids"),
            *("expert_ids", "num_tokens_post_padded", "mul_routed_weight", "top_k", "config"),
        ),
    ),
    _in(
        f"{_MOE}.experts.triton_moe",
        "TritonExperts.moe_sum",
        leading=("self", "input", "output", "topk_ids", "expert_map"),
    ),
)

FROM_SOURCES: tuple[Seam, ...] = (
    _in(
        f"{_MOE}.fused_moe",
        "try_get_optimal_moe_config",
        leading=("w1_shape", "w2_shape", "top_k", "dtype", "M"),
        takes=("block_shape",),
    ),
    _in(
        f"{_MOE}.router.fused_topk_router",
        "FusedTopKRouter",
        attributes=("renormalize", "scoring_func"),
        base="BaseRouter",
    ),
    _in(
        f"{_MOE}.router.fused_topk_bias_router",
        "FusedTopKBiasRouter",
        attributes=(
            *("e_score_correction_bias", "renormalize", "scoring_func", "routed_scaling_factor"),
            *("_hash_indices_table", "num_fused_shared_experts", "bias_vl"),
        ),
        base="BaseRouter",
    ),
    _in(
        f"{_MOE}.router.grouped_topk_router",
        "GroupedTopKRouter",
        attributes=(
            *("num_expert_group", "topk_group", "renormalize", "scoring_func"),
            *("routed_scaling_factor", "e_score_correction_bias", "num_fused_shared_experts"),
            "skip_padding",
        ),
        base="BaseRouter",
    ),
    _in(
        "vllm.v1.worker.gpu_input_batch",
        "InputBatch",
        attributes=("req_ids", "num_computed_tokens_cpu", "num_prompt_tokens"),
    ),
    _in(
        "vllm.v1.worker.gpu.states",
        "RequestState",
        attributes=("prompt_len", "req_id_to_index"),
    ),
    _in("vllm.v1.core.sched.output", "NewRequestData", members=("req_id", "sampling_params")),
    _in("vllm.sampling_params", "SamplingParams", members=("extra_args",)),
    _in(
        "vllm.v1.core.sched.output",
        "SchedulerOutput",
        members=("finished_req_ids", "scheduled_new_reqs"),
    ),
    _in(
        "vllm.forward_context",
        "set_forward_context",
        leading=("attn_metadata", "vllm_config"),
        takes=("num_tokens",),
    ),
    _in("vllm.forward_context", "ForwardContext", members=("attn_metadata", "is_padding")),
    _in("vllm.v1.worker.workspace", "WorkspaceManager", attributes=("_current_workspaces",)),
    _in(
        "vllm.config",
        "ParallelConfig",
        members=(
            *("data_parallel_size", "prefill_context_parallel_size", "enable_expert_parallel"),
            *("use_sequence_parallel_moe", "use_ubatching", "data_parallel_index"),
        ),
    ),
    _in("vllm.config", "SchedulerConfig", members=("max_num_batched_tokens",)),
    _in(
        "vllm.config",
        "CompilationConfig",
        members=(
            "max_cudagraph_capture_size",
            "static_all_moe_layers",
            "static_forward_context",
        ),
    ),
    _in(
        "vllm.config",
        "VllmConfig",
        members=(
            *("model_config", "parallel_config", "scheduler_config"),
            *("compilation_config", "speculative_config", "load_config"),
        ),
    ),
    _in("vllm.config", "LoadConfig", members=("load_format",)),
    _in("vllm.config", "SpeculativeConfig", members=("draft_model_config",)),
    _in("vllm.config", "ModelConfig", members=("model",), attributes=("hf_text_config",)),
    _in(
        f"{_MOE}.fused_moe_method_base",
        "FusedMoEMethodBase",
        members=("apply", "is_monolithic", "supports_internal_mk", "get_fused_moe_quant_config"),
        attributes=("moe_kernel", "moe"),
    ),
    _in(
        "vllm.model_executor.layers.quantization.base_config",
        "QuantizationConfig",
        attributes=("packed_modules_mapping",),
    ),
    _in(
        "vllm.v1.worker.worker_base",
        "WorkerBase",
        attributes=("vllm_config", "rank", "model_runner"),
    ),
    _in(
        "vllm.platforms.interface",
        "Platform",
        members=(
            *("device_type", "is_cpu", "is_cuda"),
            *("has_device_capability", "get_device_capability"),
        ),
    ),
    _in("vllm.envs", "VLLM_USE_FUSED_MOE_GROUPED_TOPK"),
    _in(
        f"{_MOE}.modular_kernel",
        "FusedMoEKernel",
        members=("fused_experts", "prepare_finalize", "is_monolithic"),
    ),
    _in(
        f"{_MOE}.experts.cpu_moe",
        "CPUUnquantizedExperts",
        members=("isa", "w1_bias", "w2_bias"),
        attributes=("_use_zentorch",),
    ),
    _in(
        f"{_MOE}.experts.triton_moe",
        "TritonExperts",
        members=("quant_dtype", "block_shape", "a2_scale", "per_act_token_quant"),
        attributes=("quant_config", "quantization_emulation", "moe_config"),
        base="FusedMoEExpertsModular",
    ),
    # Experts of another engine's router: `lean_experts` leaves them alone by their module's name.
    _in(
        "vllm.model_executor.models.transformers.moe",
        "TransformersRoutedExperts",
        base="RoutedExperts",
    ),
)

_TRITON = f"{_FOLDER}/experts/triton_moe.py"
_DRAFTS = "the layers of a draft are known by what vLLM calls the model that it builds"
_WARM_UP = "the requests that vLLM makes up at its start are known by their names"
_LOADED = "a packed matrix comes part by part, each under the end of its name"
_SCALE = "a2_scale_is_global decides which Triton experts may be given an id of none"

PASSAGES: tuple[Passage, ...] = (
    Passage(
        f"{_FOLDER}/fused_moe.py",
        (
            "expert_map is None and num_tokens * top_k_num * 4 <= global_num_experts",
            # 0.33
            "expert_map is None and not weights_host_resident "
            "and num_tokens * top_k_num * 4 <= global_num_experts",
        ),
        "the path without alignment is chosen by shape alone, as `is_naive` does",
    ),
    Passage(
        f"{_FOLDER}/fused_moe.py",
        ("(use_int8_w8a16 or use_int4_w4a16) and block_shape is not None",),
        "the path without alignment is not taken for weights quantised in groups",
    ),
    *(
        Passage(_TRITON, (text,), _SCALE)
        for text in (
            "a2_scale_is_global = (",
            "self.quant_dtype is not None",
            "a2_scale is None",
            "self.block_shape is None",
            "not self.per_act_token_quant or self.quantization_emulation",
        )
    ),
    Passage(
        _TRITON,
        (
            "self.moe_sum(intermediate_cache3, output, topk_ids, expert_map)",
            "self.moe_sum(expert_output, output, topk_ids, expert_map)",  # 0.33
        ),
        "the sum over a token's experts is a method of their own, given the ids",
    ),
    Passage(
        f"{_FOLDER}/router/fused_topk_router.py",
        ("ops.topk_softmax(topk_weights, topk_indices, token_expert_indices, gating_output,",),
        "softmax routers choose in the kernel whose order of operations ours repeats",
    ),
    *(
        Passage(file, (text,), "a request's account is found by the id that its answer carries")
        for file, text in (
            (
                "v1/engine/input_processor.py",
                'request.request_id = f"{request.external_req_id}-{random_uuid():.8}"',
            ),
            ("v1/engine/parallel_sampling.py", 'child_req_id = f"{index}_{self.request_id}"'),
            ("entrypoints/openai/completion/serving.py", 'request_id_item = f"{request_id}-{i}"'),
            (
                "entrypoints/openai/responses/serving.py",
                'sub_request_id = f"{request_id}_{sub_request}"',
            ),
        )
    ),
    Passage(
        "envs.py",
        ("VLLM_MOE_SKIP_PADDING: bool = True",),
        "routers give padding rows the id of none",
    ),
    Passage(
        "envs.py",
        ('"VLLM_MOE_ROUTING_SIMULATION_STRATEGY": lambda',),
        "whether routing is simulated is told by that variable",
    ),
    Passage(
        _TRITON,
        ("self.moe_sum(intermediate_cache3, output)",),
        "experts of 4 and 8 bits add up without ids, so none may be left out there",
    ),
    Passage(
        f"{_FOLDER}/unquantized_fused_moe_method.py",
        ("expert_map=layer.expert_map",),
        "the map is read from the layer at every call",
    ),
    Passage(
        f"{_FOLDER}/modular_kernel.py",
        (
            "moe_config.require_decomposed_backend and cls.is_monolithic()",  # since 0.33
            "not cls._supports_routing_method(moe_config.routing_method,",
        ),
        "a layer can be kept from kernels that route by themselves",
    ),
    Passage(
        f"{_FOLDER}/experts/",
        ("RoutingMethodType.Unspecified",),
        "no kernel that routes by itself takes a routing that is not specified",
        present=False,
    ),
    Passage(
        "v1/worker/gpu/model_runner.py",
        ("self.prepare_inputs(scheduler_output, batch_req_state",),
        "what the rows are laid out from are the arguments of the stock method",
    ),
    Passage(
        f"{_FOLDER}/runner/moe_runner.py",
        ("static_all_moe_layers.append(",),
        "every MoE layer is on the list that the handshake reads",
    ),
    # Packed experts: how vLLM hands their tensors over, and when it asks for a method.
    Passage(
        f"{_FOLDER}/routed_experts.py",
        (
            "param.weight_loader(param=param, loaded_weight=loaded_expert, "
            "weight_name=weight_name, shard_id=shard_id, expert_id=expert_id, "
            "return_success=True,)",
        ),
        "a loader of one's own is given an expert's tensor, its number and its projection",
    ),
    *(
        Passage(f"{_FOLDER}/routed_experts.py", (text,), _LOADED)
        for text in (
            "{routed_experts_prefix}w13_",
            "{routed_experts_prefix}w2_",
            "weight_name = qual_name.replace(weight_name, param_name)",
        )
    ),
    Passage(
        "model_executor/models/granitemoe.py",
        ('"moe.input_linear.weight": "moe.experts.gate_up_proj"',),
        "experts in one tensor are handed over as those of each expert are",
    ),
    Passage(
        "config/model.py",
        ("method.override_quantization_method(quant_cfg, self.quantization, hf_config=",),
        "a method may take a checkpoint that names another one",
    ),
    Passage(
        "config/vllm.py",
        ("quant_config.maybe_update_config(model_config.model, hf_config=",),
        "a method is told the model's folder before layers are built",
    ),
    Passage(
        "model_executor/layers/linear.py",
        (
            "weight_loader=(self.weight_loader_v2 if self.quant_method.__class__.__name__ in "
            "WEIGHT_LOADER_V2_SUPPORTED else self.weight_loader)",
            # 0.33
            "weight_loader = (self.weight_loader_v2 if quant_method.__class__.__name__ in "
            "WEIGHT_LOADER_V2_SUPPORTED else self.weight_loader)",
        ),
        "float8 layers that are restored at loading are given a loader by their method's name",
    ),
    Passage(
        "_custom_ops.py",
        (
            "torch.ops._C.cpu_fused_moe(out, input, w13, w2, w13_bias, w2_bias, topk_weights, "
            "topk_ids, skip_weighted, act, isa,)",
        ),
        "direct.cpp calls the kernel with its arguments in this order",
    ),
    # Stand-ins.
    Passage(
        f"{_FOLDER}/layer.py",
        (
            "expert_substitution = make_expert_substitution(",
            "moe_config = FusedMoEConfig(",  # 0.32, which has no constants
        ),
        "the factory asks by that name whether a layer has constants in the place of experts",
    ),
    *(
        Passage("v1/", (f'with set_model_tag("{tag}"):',), _DRAFTS)
        for tag in ("draft_model", "eagle_head", "dflash_head", "dspark_head")
    ),
    *(
        Passage("v1/worker/gpu/warmup.py", (text,), _WARM_UP)
        for text in ('f"_warmup_{i}_"', 'req_id_prefix: str = "_v2_mixed_warmup"')
    ),
)
