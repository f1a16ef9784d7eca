"""What the plugin builds on in vLLM: the table that ``compat`` checks when it registers.

``packaging/vllm_check.py`` reads the same table against the sources of a wheel, and
``source_seams`` beside it.
"""

from __future__ import annotations

from leanmoe.seams import Seam

_MOE = "vllm.model_executor.layers.fused_moe"

# Checked when the plugin registers: all of these are imported by then.
AT_START: tuple[Seam, ...] = (
    Seam.at(
        f"{_MOE}.router.base_router",
        "BaseRouter._compute_routing",
        leading=("self", "hidden_states", "router_logits", "indices_type"),
    ),
    Seam.at(
        f"{_MOE}.routed_experts",
        "RoutedExperts.forward_modular",
        leading=(
            *("self", "x", "topk_weights", "topk_ids"),
            *("shared_experts", "shared_experts_input"),
        ),
    ),
    Seam.at(
        f"{_MOE}.routed_experts",
        "RoutedExperts.__init__",
        leading=("self", "layer_name", "params_dtype", "moe_config", "quant_config"),
    ),
    Seam.at(
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
    Seam.at(
        f"{_MOE}.runner.moe_runner",
        "MoERunner.__init__",
        leading=("self", "layer_name", "moe_config", "router", "routed_experts"),
    ),
    Seam.at(
        f"{_MOE}.runner.moe_runner",
        "MoERunner",
        members=("register_oot", "load_weights"),
        attributes=("layer_name", "router", "routed_experts"),
        base="PluggableLayer",
    ),
    Seam.at(
        f"{_MOE}.router.gate_linear",
        "GateLinear.__init__",
        leading=("self", "input_size", "output_size"),
        takes=("prefix",),
    ),
    Seam.at(
        f"{_MOE}.router.gate_linear",
        "GateLinear",
        members=("register_oot", "forward"),
        attributes=("return_bias", "quant_method"),
        base="PluggableLayer",
    ),
    Seam.at(
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
    Seam.at("vllm.model_executor.custom_op", "PluggableLayer.register_oot", takes=("name",)),
    Seam.at("vllm.compilation.backends", "set_model_tag", leading=("tag",)),
    Seam.at(f"{_MOE}.config", "RoutingMethodType", members=("Unspecified", "DeepseekV4")),
    Seam.at(
        f"{_MOE}.config",
        "FusedMoEConfig",
        members=(
            *("routing_method", "num_logical_experts", "hidden_dim", "hidden_dim_unpadded"),
            *("tp_rank", "dp_size", "is_lora_enabled", "moe_parallel_config"),
        ),
    ),
    Seam.at(
        "vllm.utils.torch_utils",
        "direct_register_custom_op",
        leading=("op_name", "op_func", "mutates_args", "fake_impl", "target_lib"),
        takes=("dispatch_key",),
    ),
    Seam.at(
        "vllm._custom_ops",
        "cpu_fused_moe",
        leading=(
            *("out", "input", "w13", "w2", "w13_bias", "w2_bias"),
            *("topk_weights", "topk_ids", "act", "isa", "skip_weighted"),
        ),
    ),
    Seam.at(
        f"{_MOE}.fused_moe_method_base",
        "FusedMoEMethodBase.create_weights",
        leading=(
            *("self", "layer", "num_experts", "hidden_size"),
            *("intermediate_size_per_partition", "params_dtype"),
        ),
    ),
    Seam.at(
        f"{_MOE}.fused_moe_method_base",
        "FusedMoEMethodBase.apply",
        leading=(
            *("self", "layer", "x", "topk_weights", "topk_ids"),
            *("shared_experts", "shared_experts_input"),
        ),
    ),
    Seam.at(
        f"{_MOE}.fused_moe",
        "fused_experts",
        leading=("hidden_states", "w1", "w2", "topk_weights", "topk_ids"),
        takes=("activation", "global_num_experts", "expert_map"),
    ),
    Seam.at(
        f"{_MOE}.config",
        "FusedMoEParallelConfig",
        members=("tp_size", "tp_rank", "use_ep", "enable_eplb"),
    ),
    Seam.at(
        "vllm.model_executor.layers.quantization.base_config",
        "QuantizationConfig",
        members=(
            *("get_name", "get_supported_act_dtypes", "get_min_capability", "from_config"),
            *("get_config_filenames", "get_quant_method", "maybe_update_config"),
            *("override_quantization_method", "apply_vllm_mapper"),
        ),
    ),
    Seam.at(
        "vllm.model_executor.layers.quantization.base_config",
        "QuantizationConfig.override_quantization_method",
        takes=("hf_quant_cfg", "user_quant", "hf_config"),
    ),
    Seam.at(
        "vllm.model_executor.layers.quantization.base_config",
        "QuantizationConfig.maybe_update_config",
        leading=("self", "model_name", "hf_config", "revision"),
    ),
    Seam.at(f"{_MOE}.activation", "MoEActivation", members=("SILU", "GELU")),
    Seam.at(
        "vllm.model_executor.layers.quantization.fp8",
        "Fp8Config",
        members=("from_config", "get_quant_method", "apply_vllm_mapper"),
    ),
    Seam.at(
        "vllm.model_executor.layers.linear",
        "UnquantizedLinearMethod.create_weights",
        leading=(
            *("self", "layer", "input_size_per_partition", "output_partition_sizes"),
            *("input_size", "output_size", "params_dtype"),
        ),
    ),
    Seam.at(
        "vllm.model_executor.layers.linear",
        "register_weight_loader_v2_supported_method",
        leading=("cls",),
    ),
    Seam.at(
        "vllm.model_executor.kernels.linear.scaled_mm.cpu",
        "CPUFp8BlockScaledMMKernel",
        members=("is_supported",),
    ),
    Seam.at(
        "vllm.model_executor.layers.quantization",
        "register_quantization_config",
        leading=("quantization",),
    ),
    Seam.at(
        "vllm.v1.worker.worker_base",
        "WorkerBase.__init__",
        leading=("self", "vllm_config", "local_rank", "rank"),
    ),
)

# Only workers need the modules of the model runners.
FIRST_RUNNER: tuple[Seam, ...] = (
    Seam.at(
        "vllm.v1.worker.gpu_model_runner",
        "GPUModelRunner._prepare_inputs",
        leading=("self", "scheduler_output", "num_scheduled_tokens"),
    ),
    Seam.at(
        "vllm.v1.worker.gpu_model_runner",
        "GPUModelRunner",
        members=("_dummy_run", "capture_model", "get_model"),
        attributes=("input_batch", "requests"),
    ),
)
SECOND_RUNNER: tuple[Seam, ...] = (
    Seam.at(
        "vllm.v1.worker.gpu.model_runner",
        "GPUModelRunner.prepare_inputs",
        leading=("self", "scheduler_output", "batch_req_state"),
    ),
    Seam.at(
        "vllm.v1.worker.gpu.model_runner",
        "GPUModelRunner",
        members=("_dummy_run", "capture_model", "get_model"),
        attributes=("req_states",),
    ),
    Seam.at(
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
    Seam.at(
        f"{_COMMUNICATORS}.base_device_communicator",
        "DeviceCommunicatorBase.all_gatherv",
        leading=("self", "input_", "dim", "sizes"),
    ),
    Seam.at(
        f"{_COMMUNICATORS}.base_device_communicator",
        "DeviceCommunicatorBase.reduce_scatterv",
        leading=("self", "input_", "dim", "sizes"),
    ),
    Seam.at(
        f"{_COMMUNICATORS}.base_device_communicator",
        "DeviceCommunicatorBase",
        attributes=("device_group", "world_size", "rank_in_group"),
    ),
    Seam.at(f"{_COMMUNICATORS}.cpu_communicator", "CpuCommunicator", base="DeviceCommunicatorBase"),
)

# What ``TritonExperts`` call by name; only workers on CUDA need its module.
TRITON_CALLS: tuple[Seam, ...] = (
    Seam.at(
        f"{_MOE}.experts.triton_moe",
        "_prepare_expert_assignment",
        leading=(
            *("topk_ids", "config", "num_tokens", "top_k_num"),
            *("global_num_experts", "expert_map"),
        ),
        takes=("use_int8_w8a16", "use_int4_w4a16"),
    ),
    Seam.at(
        f"{_MOE}.experts.triton_moe",
        "invoke_fused_moe_triton_kernel",
        leading=(
            *("A", "B", "C", "A_scale", "B_scale", "topk_weights", "sorted_token_ids"),
            *("expert_ids", "num_tokens_post_padded", "mul_routed_weight", "top_k", "config"),
        ),
    ),
    Seam.at(
        f"{_MOE}.experts.triton_moe",
        "TritonExperts.moe_sum",
        leading=("self", "input", "output", "topk_ids", "expert_map"),
    ),
)
