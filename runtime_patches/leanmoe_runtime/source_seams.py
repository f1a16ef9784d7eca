"""What the plugin builds on in vLLM that an import does not tell, and its sources do.

It comes to the plugin as objects of a running engine, or is the behaviour of a function.
``packaging/vllm_check.py`` reads it against the sources of a wheel; nothing does at a start.
"""

from __future__ import annotations

from leanmoe.seams import Passage, Seam

_MOE = "vllm.model_executor.layers.fused_moe"
_FOLDER = "model_executor/layers/fused_moe"

FROM_SOURCES: tuple[Seam, ...] = (
    Seam.at(
        f"{_MOE}.fused_moe",
        "try_get_optimal_moe_config",
        leading=("w1_shape", "w2_shape", "top_k", "dtype", "M"),
        takes=("block_shape",),
    ),
    Seam.at(
        f"{_MOE}.router.fused_topk_router",
        "FusedTopKRouter",
        attributes=("renormalize", "scoring_func"),
        base="BaseRouter",
    ),
    Seam.at(
        f"{_MOE}.router.fused_topk_bias_router",
        "FusedTopKBiasRouter",
        attributes=(
            *("e_score_correction_bias", "renormalize", "scoring_func", "routed_scaling_factor"),
            *("_hash_indices_table", "num_fused_shared_experts", "bias_vl"),
        ),
        base="BaseRouter",
    ),
    Seam.at(
        f"{_MOE}.router.grouped_topk_router",
        "GroupedTopKRouter",
        attributes=(
            *("num_expert_group", "topk_group", "renormalize", "scoring_func"),
            *("routed_scaling_factor", "e_score_correction_bias", "num_fused_shared_experts"),
            "skip_padding",
        ),
        base="BaseRouter",
    ),
    Seam.at(
        "vllm.v1.worker.gpu_input_batch",
        "InputBatch",
        attributes=("req_ids", "num_computed_tokens_cpu", "num_prompt_tokens"),
    ),
    Seam.at(
        "vllm.v1.worker.gpu.states",
        "RequestState",
        attributes=("prompt_len", "req_id_to_index"),
    ),
    Seam.at("vllm.v1.core.sched.output", "NewRequestData", members=("req_id", "sampling_params")),
    Seam.at("vllm.sampling_params", "SamplingParams", members=("extra_args",)),
    Seam.at(
        "vllm.v1.core.sched.output",
        "SchedulerOutput",
        members=("finished_req_ids", "scheduled_new_reqs"),
    ),
    Seam.at(
        "vllm.forward_context",
        "set_forward_context",
        leading=("attn_metadata", "vllm_config"),
        takes=("num_tokens",),
    ),
    Seam.at("vllm.forward_context", "ForwardContext", members=("attn_metadata", "is_padding")),
    Seam.at("vllm.v1.worker.workspace", "WorkspaceManager", attributes=("_current_workspaces",)),
    Seam.at(
        "vllm.config",
        "ParallelConfig",
        members=(
            *("data_parallel_size", "prefill_context_parallel_size", "enable_expert_parallel"),
            *("use_sequence_parallel_moe", "use_ubatching", "data_parallel_index"),
        ),
    ),
    Seam.at("vllm.config", "SchedulerConfig", members=("max_num_batched_tokens",)),
    Seam.at(
        "vllm.config",
        "CompilationConfig",
        members=(
            "max_cudagraph_capture_size",
            "static_all_moe_layers",
            "static_forward_context",
        ),
    ),
    Seam.at(
        "vllm.config",
        "VllmConfig",
        members=(
            *("model_config", "parallel_config", "scheduler_config"),
            *("compilation_config", "speculative_config", "load_config"),
        ),
    ),
    Seam.at("vllm.config", "LoadConfig", members=("load_format",)),
    Seam.at("vllm.config", "SpeculativeConfig", members=("draft_model_config",)),
    Seam.at("vllm.config", "ModelConfig", members=("model",), attributes=("hf_text_config",)),
    Seam.at(
        f"{_MOE}.fused_moe_method_base",
        "FusedMoEMethodBase",
        members=("apply", "is_monolithic", "supports_internal_mk", "get_fused_moe_quant_config"),
        attributes=("moe_kernel", "moe"),
    ),
    Seam.at(
        "vllm.model_executor.layers.quantization.base_config",
        "QuantizationConfig",
        attributes=("packed_modules_mapping",),
    ),
    Seam.at(
        "vllm.v1.worker.worker_base",
        "WorkerBase",
        attributes=("vllm_config", "rank", "model_runner"),
    ),
    Seam.at(
        "vllm.platforms.interface",
        "Platform",
        members=(
            *("device_type", "is_cpu", "is_cuda"),
            *("has_device_capability", "get_device_capability"),
        ),
    ),
    Seam.at("vllm.envs", "VLLM_USE_FUSED_MOE_GROUPED_TOPK"),
    Seam.at(
        f"{_MOE}.modular_kernel",
        "FusedMoEKernel",
        members=("fused_experts", "prepare_finalize", "is_monolithic"),
    ),
    Seam.at(
        f"{_MOE}.experts.cpu_moe",
        "CPUUnquantizedExperts",
        members=("isa", "w1_bias", "w2_bias"),
        attributes=("_use_zentorch",),
    ),
    Seam.at(
        f"{_MOE}.experts.triton_moe",
        "TritonExperts",
        members=("quant_dtype", "block_shape", "a2_scale", "per_act_token_quant"),
        attributes=("quant_config", "quantization_emulation", "moe_config"),
        base="FusedMoEExpertsModular",
    ),
    # Experts of another engine's router: `lean_experts` leaves them alone by their module's name.
    Seam.at(
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
