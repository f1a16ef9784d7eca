"""Layers that differ from what a model's config says once for all of them.

vLLM builds every MoE block from the same few numbers of ``config.json``. The two places
where a layer's own numbers can take their place are the router's weight (``GateLinear``)
and the factory of the experts; both are told the layer's name.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch

from leanmoe.errors import RuntimeSeamError
from leanmoe.layout import (
    LAYOUT_KEY,
    LEAST_PROBABILITY,
    LayerLayout,
    Layout,
    read_layout,
)
from leanmoe.seams import as_ours
from leanmoe.stand_ins import APPROXIMATE_KEY, read_constants
from leanmoe_runtime.compat import (
    FusedMoEFactory,
    GateLinear,
    MoERunner,
    compute_constants_ourselves,
    factory_holders,
    get_current_vllm_config,
    is_draft_built,
    tensor_model_parallel_all_reduce,
)
from leanmoe_runtime.engine import current_engine

_LAYER = re.compile(r"(?:^|\.)layers\.(\d+)\.")


def layer_index(layer_name: str) -> int:
    """Decoder layer number in a module name such as ``model.layers.3.mlp.experts``; -1 if none."""
    match = _LAYER.search(layer_name)
    return int(match[1]) if match else -1


def current_layout() -> Layout:
    """The layout of the model that is being built.

    A draft's head is built under the model's config and numbers its layers anew: it has none.
    """
    return read_layout(*_stated(LAYOUT_KEY))


def _stated(key: str) -> tuple[dict[str, Any], str]:
    """What the config of the model that is being built says under ``key``, and where it says it."""
    config = get_current_vllm_config()
    model, drafts = config.model_config, config.speculative_config
    is_head = is_draft_built() and drafts is not None and model is not drafts.draft_model_config
    if model is None or is_head:
        return {}, ""
    return {key: getattr(model.hf_text_config, key, None)}, f"{model.model}/config.json"


def own_layout(layer_name: str) -> LayerLayout | None:
    """What the layer of that name has of its own, or ``None``."""
    return current_layout().layers.get(layer_index(layer_name))


class OwnStandIns(NamedTuple):
    """Removed experts of a layer, ascending, and the rank of what stands in for them."""

    ids: tuple[int, ...]
    rank: int


def own_stand_ins(layer_name: str) -> OwnStandIns | None:
    """What stands in for removed experts of the layer of that name, or ``None``."""
    own = own_layout(layer_name)
    if own is not None:
        return OwnStandIns(own.stand_ins, own.rank or 0) if own.stand_ins else None
    ids = read_constants(*_stated(APPROXIMATE_KEY)).get(layer_index(layer_name))
    return None if ids is None else OwnStandIns(ids, 0)


def own_constants_stated() -> bool:
    """Whether the model that is being built has constants in the place of experts."""
    return bool(read_constants(*_stated(APPROXIMATE_KEY)))


class LeanGateLinear(GateLinear):  # type: ignore[misc]
    """Replaces vLLM's ``GateLinear`` by class name: a layer's own number of rows, and its transfer.

    With a transfer matrix W [E', E] it gives log(W softmax(l)) instead of l: a softmax over
    these is W softmax(l) up to its sum, which is what EEP routes by.
    """

    def __init__(self, input_size: int, output_size: int, *args: Any, **kwargs: Any) -> None:
        prefix = kwargs.get("prefix", "")
        own = own_layout(prefix)
        rows = output_size if own is None else own.gate_rows or own.n_experts
        super().__init__(input_size, rows, *args, **kwargs)
        self.transfer: torch.nn.Parameter | None = None
        if own is not None:
            # Loaded and never used: stock vLLM stops at it instead of running another model.
            marker = torch.empty(2, dtype=torch.float32, device=self.weight.device)
            self.layout = torch.nn.Parameter(marker, requires_grad=False)
        if own is not None and own.gate_rows is not None:
            size = (own.n_experts, own.gate_rows)
            empty = torch.empty(size, dtype=torch.float32, device=self.weight.device)
            self.transfer = torch.nn.Parameter(empty, requires_grad=False)
        elif own is None and (constants := own_stand_ins(prefix)) is not None:
            self._take_marker(constants)
        if not is_draft_built():
            # The method, not the module: the layer's experts would take that for a part of them.
            current_engine().logits[layer_index(prefix)] = self.logits
        self._rows = rows
        if not rows:
            self.quant_method = None  # a kernel for no rows would be chosen after loading

    def _take_marker(self, constants: OwnStandIns) -> None:
        """Loaded and never used, as the layout is: see ``constants_marker_name``."""
        holder = torch.nn.Module()
        width, device = self.weight.shape[1], self.weight.device
        marker = torch.empty(width, dtype=self.weight.dtype, device=device)
        holder.approx_value = torch.nn.Parameter(marker, requires_grad=False)
        self.add_module(str(constants.ids[0]), holder)

    def forward(self, x: torch.Tensor) -> Any:
        """Router logits ``[T, E']``, with the bias where the stock layer returns one."""
        if not self._rows:
            empty = x.new_empty(*x.shape[:-1], 0)
            return (empty, None) if self.return_bias else empty
        found = super().forward(x)
        if self.transfer is None:
            return found
        logits_TE, *rest = found if isinstance(found, tuple) else (found,)
        mapped_TE = torch.softmax(logits_TE.float(), dim=-1) @ self.transfer.t()
        mapped_TE = mapped_TE.clamp_min(LEAST_PROBABILITY).log()
        return (mapped_TE, *rest) if isinstance(found, tuple) else mapped_TE

    def logits(self, x_TD: torch.Tensor) -> torch.Tensor:
        """Router logits alone."""
        found = self(x_TD)
        logits_TE: torch.Tensor = found[0] if isinstance(found, tuple) else found
        return logits_TE


def keep_transferred_mass(router: Any) -> None:
    """Give back the sum of W softmax(l) that the router's softmax divides by.

    Where a router renormalises the chosen weights the sum cancels; elsewhere it is part of them.
    """
    stock = router._compute_routing

    def compute_routing(
        hidden_states: torch.Tensor, router_logits: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        weights_TK, ids_TK = stock(hidden_states, router_logits, *args, **kwargs)
        mass_T1 = router_logits.float().logsumexp(dim=-1, keepdim=True).exp()
        return weights_TK * mass_T1.to(weights_TK.dtype), ids_TK

    router._compute_routing = compute_routing


def _own_arguments(given: Mapping[str, Any], own: LayerLayout) -> dict[str, Any]:
    """The factory's arguments with a layer's own numbers in place."""
    if given.get("enable_eplb"):
        raise RuntimeSeamError(
            "expert-parallel load balancing needs equally many experts in every layer and this "
            "checkpoint has not; leave --enable-eplb out"
        )
    changed = {**given, "num_experts": own.n_experts, "top_k": own.top_k}
    if own.condensed and given.get("use_grouped_topk"):
        changed |= {"num_expert_group": 1, "topk_group": 1}
    if given.get("e_score_correction_bias") is not None:
        changed["e_score_correction_bias"] = _own_bias(given, own.n_experts)
    return changed


def _without_removed(given: Mapping[str, Any], own: OwnStandIns) -> dict[str, Any]:
    """The factory's arguments with as many experts as have weights; the router scores all."""
    parallel = get_current_vllm_config().parallel_config
    several = {
        "expert parallelism": parallel.enable_expert_parallel,
        "data parallelism": parallel.data_parallel_size > 1,
        "expert-parallel load balancing": given.get("enable_eplb"),
        "sequence parallelism": given.get("is_sequence_parallel"),
    }
    if found := [name for name, is_on in several.items() if is_on]:
        raise RuntimeSeamError(
            f"{given.get('prefix')} has stand-ins in the place of removed experts, which every "
            f"process would have to hold, and {found[0]} is on; serve this checkpoint without it "
            "(tensor parallelism works)"
        )
    return {**given, "num_experts": int(given["num_experts"]) - len(own.ids)}


def _own_bias(given: Mapping[str, Any], n_experts: int) -> torch.nn.Parameter:
    """The gate's correction bias in the layer's own length, put where weights are loaded into."""
    stated = given["e_score_correction_bias"]
    bias = torch.nn.Parameter(stated.data.new_empty(n_experts), requires_grad=False)
    holder = given.get("gate")
    if holder is None or getattr(holder, "e_score_correction_bias", None) is not stated:
        raise RuntimeSeamError(
            f"{given.get('prefix')} has a router bias that is not its gate's, so it cannot be "
            "cut to the layer's own number of experts"
        )
    holder.e_score_correction_bias = bias
    return bias


class SharedOnly(torch.nn.Module):
    """A block without routed experts: its shared expert, in the runner's place.

    It does what ``MoERunner.forward`` does to a shared expert's output, and no more.
    """

    def __init__(self, given: Mapping[str, Any]) -> None:
        super().__init__()
        self.layer_name = str(given.get("prefix", ""))
        shared: torch.nn.Module | None = given.get("shared_experts")
        if shared is None:
            raise RuntimeSeamError(
                f"{self.layer_name} has no routed expert and vLLM built it no shared expert of its "
                "own: nothing would be left of the block"
            )
        self.shared = shared
        self.renormalize = bool(given.get("renormalize", True))
        scale = float(given.get("routed_scaling_factor", 1.0))
        # In float16 such models carry their residual stream divided by the scale.
        self._half_scale = scale if given.get("apply_routed_scale_to_output") else 1.0
        whole = given.get("is_sequence_parallel") or not given.get("reduce_results", True)
        self._reduce = not whole

    def forward(
        self, hidden_states: torch.Tensor, router_logits: torch.Tensor, **unused: Any
    ) -> torch.Tensor:
        """The shared expert's output ``[T, D]``, summed over tensor-parallel workers."""
        output_TD: torch.Tensor = self.shared(hidden_states)
        if self._half_scale != 1.0 and output_TD.dtype == torch.float16:
            output_TD = output_TD * (1.0 / self._half_scale)
        return tensor_model_parallel_all_reduce(output_TD) if self._reduce else output_TD


def lean_factory(
    stock: Callable[..., MoERunner], lean_experts: Callable[[Any], Any]
) -> Callable[..., MoERunner | SharedOnly]:
    """vLLM's factory of MoE layers, told each layer's own number of experts.

    ``lean_experts`` makes a class of experts that a model brings along one of ours.
    """
    signature = inspect.signature(stock)

    def factory(*args: Any, **kwargs: Any) -> MoERunner | SharedOnly:
        given = signature.bind(*args, **kwargs).arguments
        own = own_layout(given.get("prefix", ""))
        changed = dict(given) if own is None else _own_arguments(given, own)
        if own is not None and not own.n_experts:
            return SharedOnly(changed)
        if (stand_ins := own_stand_ins(given.get("prefix", ""))) is not None:
            changed = _without_removed(changed, stand_ins)
        if changed.get("routed_experts_cls") is not None:
            changed["routed_experts_cls"] = lean_experts(changed["routed_experts_cls"])
        return stock(**changed)

    return as_ours(factory)


def replace_factory(lean_experts: Callable[[Any], Any]) -> None:
    """Put our factory wherever a loaded module has vLLM's; models import it by name."""
    ours = lean_factory(FusedMoEFactory, lean_experts)
    for holder in factory_holders(sys.modules):
        holder.FusedMoEFactory = ours
    compute_constants_ourselves(own_constants_stated)
