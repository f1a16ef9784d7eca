"""One line of a plan: a kind of method at a budget, what it takes and what it leaves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from leanmoe.layout import LayerLayout
from leanmoe_pruning.cutting.cutter import Cutter
from leanmoe_pruning.planning.headers import HeaderModel
from leanmoe_pruning.planning.kinds import Kind
from leanmoe_pruning.planning.parallel import expert_parallel, tensor_parallel

# What vLLM works on at once, and samples for, unless told otherwise.
_BATCHED_TOKENS, _SEQUENCES = 8192, 256


@dataclass(frozen=True)
class Serving:
    """Memory of one engine; estimates but for the weights of a 16-bit file."""

    weights: int
    kv: int
    workspace: int

    @property
    def total(self) -> int:
        return self.weights + self.kv + self.workspace

    def facts(self) -> dict[str, int]:
        return {
            "weights_bytes": self.weights,
            "kv_bytes": self.kv,
            "workspace_bytes": self.workspace,
            "total_bytes": self.total,
        }


@dataclass(frozen=True)
class Row:
    """A cut that was laid out from headers; ``kind`` is ``None`` for the model as it is."""

    kind: Kind | None
    budget: int
    weight_bytes: int
    layouts: dict[int, LayerLayout]
    is_packed: bool
    has_stand_ins: bool
    needs_runtime: bool
    serving: Serving

    @property
    def loads_in(self) -> str:
        return "leanmoe serve" if self.needs_runtime else "vllm"


def row_of(model: HeaderModel, kind: Kind | None, budget: int, kv_tokens: int) -> Row:
    """The sizes of one cut, by the cutter's own pieces."""
    plans = {} if kind is None else kind.plans(model, budget)
    packer = None if kind is None else kind.packer(model, budget)
    orders = None if kind is None else kind.input_orders(model)
    cutter = Cutter(model.checkpoint, plans, input_orders=orders, packer=packer)
    written = cutter.weight_bytes if kind else model.weight_bytes
    kept_packed = kind is None and model.checkpoint.packing is not None
    held = written if kept_packed else cutter.weight_bytes
    kv = kv_tokens * model.kv_bytes_per_token
    serving = Serving(int(held * model.served_share), kv, workspace(model))
    packed, stand_ins = cutter.is_packed or kept_packed, cutter.has_stand_ins
    own_runtime = cutter.has_layout or packed or stand_ins
    return Row(kind, budget, written, cutter.layouts, packed, stand_ins, own_runtime, serving)


def workspace(model: HeaderModel) -> int:
    """Intermediate results of one batch in two bytes a number, and logits in four: an estimate."""
    shape, config = model.checkpoint.shape, model.checkpoint.config
    wide, narrow = shape.expert_ffn_size, shape.hidden_size
    per_token = shape.top_k * (max(2 * wide, narrow) + wide) + 4 * narrow
    return 2 * _BATCHED_TOKENS * per_token + 4 * _SEQUENCES * int(config["vocab_size"])


def reachable_top_k(model: HeaderModel, row: Row) -> list[int]:
    """What a plan may set a routing layer's top-k to, the model's own last."""
    routing = [own for own in row.layouts.values() if not own.condensed]
    if not routing:
        return []
    most = min(own.top_k for own in routing)
    return [most] if model.checkpoint.family.fixed_top_k else list(range(1, most + 1))


def _expert_parallel(row: Row) -> list[int]:
    """Sizes that share out whole experts; our runtime takes one where it holds them its own way."""
    if row.is_packed or row.has_stand_ins:
        return [1]
    return expert_parallel(own.n_experts for own in row.layouts.values())


def facts_of(model: HeaderModel, row: Row, tokens: int, rate: float | None) -> dict[str, Any]:
    """A row as ``--json`` prints it."""
    facts: dict[str, Any] = {
        "kind": row.kind.name if row.kind else "as it is",
        "methods": list(row.kind.methods_of(model)) if row.kind else [],
        "budget": row.kind.facts(row.budget) if row.kind else {},
        "weight_bytes": row.weight_bytes,
        "share_of_source": row.weight_bytes / model.weight_bytes,
        "serve": row.serving.facts(),
        "reachable_top_k": reachable_top_k(model, row),
        "loads_in": row.loads_in,
        "tensor_parallel": tensor_parallel(model.checkpoint, row.is_packed),
        "expert_parallel": _expert_parallel(row),
    }
    if row.kind is not None:
        facts["make"] = _making(model, row, row.kind, tokens, rate)
    return facts


def _making(
    model: HeaderModel, row: Row, kind: Kind, tokens: int, rate: float | None
) -> dict[str, float | None]:
    cost = kind.cost_of(model, kind.workload(model, row.budget, tokens))
    return {
        "ram_bytes": cost.ram_bytes,
        "disk_bytes": cost.disk_bytes + row.weight_bytes,
        "seconds": None if rate is None else round(cost.operations / rate, 1),
    }
