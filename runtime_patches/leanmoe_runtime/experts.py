"""``LeanRoutedExperts``: the experts of one layer, computing only what is kept.

On CPU, Dynamo traces the whole model once with its guards off, so a Python-side
threshold would freeze in the graph. The layer therefore ends in one opaque
operator, ``leanmoe::experts``, whose body runs at every step, or in
``leanmoe::direct_experts`` (direct.py), which spares the body where nothing is
skipped; everything around it compiles as in stock vLLM. Elsewhere the router has
masked already (router.py) and the stock path runs.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from itertools import count
from typing import Any, NamedTuple
from weakref import WeakValueDictionary

import torch

from leanmoe.errors import RuntimeSeamError
from leanmoe.messages import SkipMode, UnionMode
from leanmoe_runtime.collectives import add_cpu_collectives
from leanmoe_runtime.compat import (
    CPUUnquantizedExperts,
    MoEPrepareAndFinalizeNoDPEPModular,
    RoutedExperts,
    current_platform,
    device_of_worker,
    direct_register_custom_op,
    get_forward_context,
    is_draft_built,
)
from leanmoe_runtime.device.blocks import Blocks
from leanmoe_runtime.device.masking import SkipExpertsMixin
from leanmoe_runtime.direct import DirectExperts, direct_experts
from leanmoe_runtime.engine import current_engine
from leanmoe_runtime.layers import own_stand_ins
from leanmoe_runtime.skip.cpu import REDIRECT_MAX_ROWS, SHAPES_STAY, Budget, Kernel, Planner, run
from leanmoe_runtime.stand_ins import StandIns, beside
from leanmoe_runtime.state import LayerState

_LIBRARY = torch.library.Library("leanmoe", "FRAGMENT")  # type: ignore[no-untyped-call]
# What the operators are told a layer by; an engine's layers go with it.
_SLOTS = count()
_LAYERS: WeakValueDictionary[int, LeanRoutedExperts] = WeakValueDictionary()
# One runs at a time in a process: vLLM's forward context is the process's, too.
_planner = cache(Planner)


@cache
def _direct() -> DirectExperts | None:
    return direct_experts(_LIBRARY)


class LeanRoutedExperts(SkipExpertsMixin, RoutedExperts):  # type: ignore[misc]
    """Replaces vLLM's ``RoutedExperts`` by class name wherever a model builds one."""

    stand_ins: StandIns | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.engine = current_engine()
        self.skip_state: LayerState | None = None
        self.condensed = False
        # A draft proposes what the model then decides at its own level: it stays exact, by stock.
        self.of_draft = is_draft_built()
        self._logits: Callable[[torch.Tensor], torch.Tensor] | None = None
        self._kernel: Kernel | None = None
        self.redirect_max_rows = REDIRECT_MAX_ROWS
        self._slot = _slot_of(self)
        self.stand_ins = _stand_ins_of(self)
        self._direct: DirectExperts | None = None
        if current_platform.is_cpu():
            # What cannot be built must fail here, not at the first change of level.
            _planner()
            self._direct = _direct()
            if self._direct is not None:
                self._direct.add(self._slot)
            if self.moe_config.dp_size > 1:
                add_cpu_collectives()

    def forward_modular(
        self,
        x: torch.Tensor,
        topk_weights: torch.Tensor,
        topk_ids: torch.Tensor,
        shared_experts: Any = None,
        shared_experts_input: torch.Tensor | None = None,
    ) -> Any:
        """Stock ``forward_modular``; on CPU through the opaque operator."""
        if self.of_draft:
            return super().forward_modular(
                x, topk_weights, topk_ids, shared_experts, shared_experts_input
            )
        if current_platform.is_cpu():
            # The runner has run shared experts already: it leaves them to the kernel only where
            # dispatch is asynchronous, which it is nowhere on a CPU.
            routed, operators = (x, topk_weights, topk_ids), torch.ops.leanmoe
            arguments = _direct_arguments(self)
            if arguments is None or self._direct is None or self.stand_ins is not None:
                return operators.experts(*routed, self._slot)
            return operators.direct_experts(*routed, *arguments, self._slot)
        if self.condensed and self.skip_state is not None:
            self.skip_state.calls += 1  # its router does not count
        self.before_experts()
        if self.stand_ins is None:
            return super().forward_modular(
                x, topk_weights, topk_ids, shared_experts, shared_experts_input
            )
        rows, weights = self._rows_on_device(self.stand_ins, topk_weights, topk_ids)
        output = super().forward_modular(x, weights, rows, shared_experts, shared_experts_input)
        return self._plus_stand_ins(self.stand_ins, output, x, topk_weights, topk_ids)

    def _rows_on_device(
        self, stand_ins: StandIns, weights_TK: torch.Tensor, ids_TK: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """What the kernel is given: no row for removed experts, or row 0 with weight 0."""
        rows_TK = stand_ins.rows(ids_TK)
        if self.device_mode() is SkipMode.MASK:
            return rows_TK, weights_TK
        return rows_TK.clamp(min=0), weights_TK.masked_fill(rows_TK < 0, 0.0)

    def _plus_stand_ins(
        self,
        stand_ins: StandIns,
        output: Any,
        x_TD: torch.Tensor,
        weights_TK: torch.Tensor,
        ids_TK: torch.Tensor,
    ) -> torch.Tensor:
        """The experts' output with the stand-ins', which one of the ranks to be summed adds."""
        if not isinstance(output, torch.Tensor):
            raise RuntimeSeamError(
                f"{self.layer_name} gives {type(output).__name__} where stand-ins are to be added; "
                "serve this checkpoint with vLLM's default MoE kernels"
            )
        if self.moe_config.tp_rank == 0:
            width = stand_ins.width
            added_TD = stand_ins.output(x_TD[:, :width], weights_TK, ids_TK)
            output[:, :width] += added_TD.to(output.dtype)
        return output

    def empty_blocks(self, tokens: int, logits_TE: torch.Tensor) -> Blocks | None:
        """None beside stand-ins: the launch would lay out the router's numbers, not our rows."""
        return None if self.stand_ins is not None else super().empty_blocks(tokens, logits_TE)

    def _map_global_expert_id_to_local_expert_id(self, expert_id: int) -> int:
        """Where a checkpoint's expert is held; -1 for none of ours."""
        row = expert_id if self.stand_ins is None else self.stand_ins.row(expert_id)
        if row < 0:
            return row
        local: int = super()._map_global_expert_id_to_local_expert_id(row)
        return local

    def get_expert_mapping(self, *args: Any, **kwargs: Any) -> Any:
        """Beside stand-ins, names of all experts that the router scores: kept ones have theirs."""
        if self.stand_ins is None:
            return super().get_expert_mapping(*args, **kwargs)
        return self.build_expert_params_mapping(
            self.ckpt_gate_proj_name,
            self.ckpt_down_proj_name,
            self.ckpt_up_proj_name,
            num_experts=self.stand_ins.n_experts,
            routed_experts_prefix="",
            lora_base_layer_prefix=self.lora_base_layer_prefix,
        )

    def attach(self, state: LayerState, *, condensed: bool) -> None:
        """Take what the runner knows; without a gate that fits, no assignment can be moved."""
        self.skip_state, self.condensed = state, condensed
        logits = self.engine.logits.get(state.layer)
        self._logits = logits if logits is not None and self.can_move() else None
        if self._direct is not None and not condensed:
            self._direct.attach(self._slot, state, self.engine)

    def can_move(self) -> bool:
        """Whether router logits say what another expert would weigh."""
        plain = self.scoring_func == "softmax" and self.custom_routing_function is None
        whole = not self.use_grouped_topk or self.num_expert_group in (None, 1)
        return plain and whole and self.e_score_correction_bias is None

    def keeps_shapes(self) -> bool:
        """Whether the kernel carries tokens between ranks, which expect rows and top-k of all."""
        kernel: Any = getattr(self.quant_method, "moe_kernel", None)
        carrier = getattr(kernel, "prepare_finalize", None)
        return carrier is not None and not isinstance(carrier, MoEPrepareAndFinalizeNoDPEPModular)

    def sees_other_ranks(self) -> bool:
        """Whether the router is given the tokens of all data-parallel ranks."""
        gathers = not getattr(self.quant_method, "supports_internal_mk", False)
        return self.moe_config.dp_size > 1 and gathers

    def budget(self, x: torch.Tensor) -> Budget | None:
        """The budget on distinct experts in force, with the scores that moving needs."""
        union = self.engine.state.union
        if union is None:
            return None
        if union.mode is UnionMode.VANISH or self._logits is None:
            return Budget(union.experts)
        return Budget(union.experts, self._logits(x))

    def kernel(self) -> Kernel:
        """The stock grouped kernel as a function of (x, weights, ids); chosen at first use."""
        if self._kernel is None:
            self._kernel = _direct_kernel(self) or self._through_quant_method
            if self.stand_ins is not None:
                self._kernel = beside(self.stand_ins, self._kernel, self.moe_config.tp_rank == 0)
            self.redirect_max_rows = SHAPES_STAY if self.keeps_shapes() else REDIRECT_MAX_ROWS
        return self._kernel

    def _through_quant_method(
        self, x: torch.Tensor, weights: torch.Tensor, ids: torch.Tensor
    ) -> torch.Tensor:
        out: torch.Tensor = self.quant_method.apply(
            layer=self,
            x=x,
            topk_weights=weights,
            topk_ids=ids,
            shared_experts=None,
            shared_experts_input=None,
        )
        return out


def _slot_of(layer: LeanRoutedExperts) -> int:
    slot = next(_SLOTS)
    _LAYERS[slot] = layer
    return slot


def _stand_ins_of(experts: LeanRoutedExperts) -> StandIns | None:
    own = None if experts.of_draft else own_stand_ins(experts.layer_name)
    if own is None:
        return None
    config = experts.moe_config
    return StandIns(
        *own,
        n_experts=config.num_logical_experts + len(own.ids),
        width=config.hidden_dim_unpadded or config.hidden_dim,
        dtype=experts.params_dtype,
        device=device_of_worker(),
    )


# The Transformers backend routes by the library's own modules: no layer's own numbers reach them.
_FOREIGN_ROUTERS = "vllm.model_executor.models.transformers."


@cache
def lean_experts(stock: Any) -> Any:
    """A model's own subclass of ``RoutedExperts`` with our ``forward_modular``.

    One that computes in its own way is left as it is; the handshake names it.
    """
    if issubclass(stock, LeanRoutedExperts) or not issubclass(stock, RoutedExperts):
        return stock
    if stock.forward_modular is not RoutedExperts.forward_modular:
        return stock
    if stock.__module__.startswith(_FOREIGN_ROUTERS):
        return stock
    return type(f"Lean{stock.__name__}", (LeanRoutedExperts, stock), {})


class _DirectArguments(NamedTuple):
    """What the C++ kernel is given beside a step's own tensors."""

    w13: torch.Tensor
    w2: torch.Tensor
    w13_bias: torch.Tensor | None
    w2_bias: torch.Tensor | None
    activation: str
    isa: str


def _direct_arguments(layer: LeanRoutedExperts) -> _DirectArguments | None:
    """For the C++ kernel itself where nothing but plumbing lies between, else ``None``.

    Stock compiles that plumbing away; inside an opaque operator it would cost
    tens of microseconds per layer and step.
    """
    modular: Any = getattr(layer.quant_method, "moe_kernel", None)
    experts: Any = getattr(modular, "fused_experts", None)
    plain = (
        isinstance(experts, CPUUnquantizedExperts)
        and not experts._use_zentorch
        and isinstance(modular.prepare_finalize, MoEPrepareAndFinalizeNoDPEPModular)
        and not layer.apply_router_weight_on_input
    )
    if not plain:
        return None
    weights, biases = (layer.w13_weight, layer.w2_weight), (experts.w1_bias, experts.w2_bias)
    return _DirectArguments(*weights, *biases, layer.activation.value, experts.isa)


def _direct_kernel(layer: LeanRoutedExperts) -> Kernel | None:
    arguments = _direct_arguments(layer)
    if arguments is None:
        return None
    operator = torch.ops._C.cpu_fused_moe.default
    isa, activation = arguments.isa, arguments.activation
    biases = (arguments.w13_bias, arguments.w2_bias)

    def kernel(x: torch.Tensor, weights: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        out = torch.empty_like(x)
        # Looked up at every call, as stock does: weights may be loaded anew.
        w13, w2 = layer.w13_weight, layer.w2_weight
        operator(out, x, w13, w2, *biases, weights, ids, False, activation, isa)
        return out

    return kernel


def _experts(
    x: torch.Tensor, topk_weights: torch.Tensor, topk_ids: torch.Tensor, slot: int
) -> torch.Tensor:
    layer = _LAYERS[slot]
    state, kernel = layer.skip_state, layer.kernel()
    # Profile and warm-up runs carry no attention metadata and are not traffic.
    traffic = get_forward_context().attn_metadata is not None
    engine, rows_T = layer.engine, layer.engine.state.token_rows_T
    engine.steady.value = traffic and rows_T is None and engine.state.union is None
    if state is None:
        return kernel(x, topk_weights, topk_ids)
    state.calls += 1
    if layer.condensed or not traffic:
        return kernel(x, topk_weights, topk_ids)
    plan = _planner().plan(
        topk_weights,
        topk_ids,
        state,
        rows_T,
        layer.budget(x),
        layer.redirect_max_rows,
        skipped_T=engine.skipped.skipped_T,
    )
    return kernel(x, topk_weights, topk_ids) if plan is None else run(kernel, x, plan)


def _experts_fake(
    x: torch.Tensor, topk_weights: torch.Tensor, topk_ids: torch.Tensor, slot: int
) -> torch.Tensor:
    return torch.empty_like(x)


def register_operator() -> None:
    """Define ``leanmoe::experts`` once per process."""
    if hasattr(torch.ops.leanmoe, "experts"):
        return
    direct_register_custom_op(
        op_name="experts",
        op_func=_experts,
        fake_impl=_experts_fake,
        target_lib=_LIBRARY,
        dispatch_key="CPU",
    )
