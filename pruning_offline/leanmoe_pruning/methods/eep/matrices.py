"""``--method matrices``: EEP's matrices of every layer out of a file, applied and written.

For matrices found elsewhere (the paper's ``searched_coeff``, golden sets): ``FILE:CASE`` names
tensors ``CASE.W_EM`` and ``CASE.W_RM``, float ``[L, E', E]``, one pair per MoE layer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from leanmoe.errors import InputError
from leanmoe_pruning.cutting.packing import check_sums
from leanmoe_pruning.methods.eep.eep_options import check_merging, check_model, refuse, top_k_of
from leanmoe_pruning.methods.eep.individual import Individual
from leanmoe_pruning.methods.eep.merged_model import Applied, stored_dtype
from leanmoe_pruning.methods.eep.published_formula import Evidence
from leanmoe_pruning.methods.method import Decision, Inputs, Method
from leanmoe_pruning.methods.request import Request
from leanmoe_pruning.options import option


@dataclass(frozen=True)
class Matrices:
    """A checked run."""

    inputs: Inputs
    case: str
    individual: Individual
    top_k: int
    block_input_NTD: torch.Tensor | None

    def settings(self) -> dict[str, Any]:
        return {"keep": self.individual.n_slots, "top_k": self.top_k, "case": self.case}

    def decide(self, dump: bool) -> Decision:
        shape = self.inputs.shape
        group_of = {layer: place for place, layer in enumerate(shape.moe_layers)}
        applied = Applied(group_of, self.top_k, stored_dtype(self.inputs.checkpoint))
        plans = applied.plans(self.individual, shape.renormalize)
        if not dump:
            return Decision(plans)
        ids_NT = None if self.inputs.data is None else self.inputs.data.ids[0]
        evidence = Evidence(ids_NT, self.block_input_NTD)
        found = evidence.run(self.inputs.stream(), applied, self.individual)
        tensors = {f"{self.case}.{name}": tensor for name, tensor in found.items()}
        tensors |= {
            f"{self.case}.W_EM": self.individual.experts,
            f"{self.case}.W_RM": self.individual.router,
        }
        facts = {"num_slots": self.individual.n_slots, "num_experts_per_tok": self.top_k}
        content = {"cases": {self.case: facts}, "negative": {self.case: evidence.counts.negative}}
        return Decision(plans, tensors, content, notes=evidence.counts.note())


def read_tensor(spec: str, option: str) -> torch.Tensor:
    """``FILE.safetensors:TENSOR`` as float32."""
    file, _, name = spec.rpartition(":")
    try:
        with safe_open(file, framework="pt") as held:
            names = list(held.keys())
            if name in names:
                tensor: torch.Tensor = held.get_tensor(name)
                return tensor.float()
    except (SafetensorError, OSError) as error:
        raise InputError(
            f"{option} {spec!r} names no readable safetensors file ({error}); give FILE:NAME"
        ) from None
    raise InputError(f"{option}: {file} has no tensor {name!r}; it holds {', '.join(names[:12])}")


def _individual(spec: str, inputs: Inputs) -> Individual:
    experts = read_tensor(f"{spec}.W_EM", "--matrices")
    router = read_tensor(f"{spec}.W_RM", "--matrices")
    n_layers, n_experts = len(inputs.shape.moe_layers), inputs.shape.n_routed_experts
    for tensor in (experts, router):
        fits = tensor.ndim == 3 and (len(tensor), tensor.shape[-1]) == (n_layers, n_experts)
        if not fits or not 1 <= tensor.shape[1] <= n_experts or tensor.shape != experts.shape:
            raise InputError(
                f"--matrices {spec!r} are of shape {list(tensor.shape)}, expected both "
                f"[{n_layers}, experts left, {n_experts}] for {inputs.checkpoint.path}"
            )
    found = Individual(experts, router)
    if not (found.can_route and found.is_finite):
        raise InputError(
            f"--matrices {spec!r} hold a router row without a positive entry, or no finite "
            "numbers; such an expert is never chosen: correct the matrices"
        )
    return found


@dataclass(frozen=True)
class MatricesOptions:
    """The options of ``--method matrices``, and one of EEP's."""

    matrices: str | None = option(
        "tensors CASE.W_EM and CASE.W_RM, [L, E', E]", metavar="FILE:CASE"
    )
    block_input: str | None = option(
        "with --dump: what every merged block is run on, [N, T, D]", metavar="FILE:TENSOR"
    )
    top_k: int | None = None


def _open(request: Request, options: MatricesOptions, inputs: Inputs) -> Matrices:
    check_model(inputs, "matrices")
    refuse(request, "matrices", "--matrices", "scores", "keep", "ratio")
    if options.matrices is None:
        raise InputError("--method matrices takes --matrices FILE:CASE; give it")
    if options.block_input is not None and request.dump is None:
        raise InputError("--block-input is for the numbers of --dump; give that too")
    check_merging(inputs)
    individual = _individual(options.matrices, inputs)
    if bool(((individual.experts != 0).sum(-1) > 1).any()):
        check_sums(inputs.checkpoint, request.compress)
    return Matrices(
        inputs=inputs,
        case=options.matrices.rpartition(":")[2],
        individual=individual,
        top_k=top_k_of(options.top_k, inputs, individual.n_slots),
        block_input_NTD=_block_input(options.block_input, inputs.shape.hidden_size),
    )


def _block_input(spec: str | None, width: int) -> torch.Tensor | None:
    if spec is None:
        return None
    found = read_tensor(spec, "--block-input")
    if found.ndim != 3 or found.shape[-1] != width:
        raise InputError(
            f"--block-input {spec!r} has shape {list(found.shape)}, expected [N, T, {width}]"
        )
    return found


METHOD = Method(
    name="matrices",
    summary="EEP's matrices of every layer out of a file",
    open=_open,
    options=MatricesOptions,
    reads_data=False,
)
