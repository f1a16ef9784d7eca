"""``--method cd-moe``: its options, its run, its dump.

Layer numbers are decoder layers everywhere but in a dump, whose rows and orders count MoE
layers from 0 as the published files do.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from leanmoe.errors import InputError
from leanmoe_pruning.checkpoints.opening import check_uniform
from leanmoe_pruning.cutting.layer_plan import LayerPlan, layer_fault
from leanmoe_pruning.data import DataSet, load_data
from leanmoe_pruning.methods.cd_moe.calibration import Calibration
from leanmoe_pruning.methods.cd_moe.cd_moe_dump import Evidence
from leanmoe_pruning.methods.cd_moe.condensed_layer import Condensed
from leanmoe_pruning.methods.cd_moe.divergence import documents_of
from leanmoe_pruning.methods.cd_moe.layer_selection import LayerOrder, LayerSearch
from leanmoe_pruning.methods.cd_moe.memory import Layers, Scratch
from leanmoe_pruning.methods.cd_moe.search_cost import Work, published_forwards
from leanmoe_pruning.methods.method import Decision, Inputs, Method
from leanmoe_pruning.methods.request import Request
from leanmoe_pruning.options import option
from leanmoe_pruning.progress import progress

# With routed experts beside the shared one, and without.
VARIANTS = ("SR", "S")


@dataclass
class CdMoe:
    """A checked run; ``experts`` is 0 for the variant without routed experts."""

    inputs: Inputs
    data: DataSet
    probe: DataSet | None
    variant: str
    n_layers: int
    n_experts: int
    _found: dict[str, Any] = field(default_factory=dict)

    def settings(self) -> dict[str, Any]:
        return {
            "variant": self.variant,
            "layers": self.n_layers,
            "experts": self.n_experts if self.variant == "SR" else 0,
            **self._found,
        }

    def decide(self, dump: bool) -> Decision:
        stream, documents = self.inputs.stream(), documents_of(self.data.ids)
        layers, work = Layers(stream), Work(stream.n_layers, documents.tokens)
        with Scratch() as scratch:
            calibration = Calibration(stream, layers, documents, scratch, work)
            steps = self.n_experts if dump or self.variant == "SR" else 0
            with progress("cd-moe: choosing experts", stream.n_layers) as tick:
                calibration.run(steps, dump, tick)

            def search(variant: str, count: int) -> LayerOrder:
                wanted = _wanted(calibration, variant)
                found = LayerSearch(stream, layers, documents, calibration, wanted, scratch, work)
                with progress(f"cd-moe: choosing layers ({variant})", count) as tick:
                    return found.run(count, dump, tick)

            if not dump:
                order = search(self.variant, self.n_layers)
                return self._decision(calibration, order, work, Decision({}))
            every = len(self.inputs.shape.moe_layers)
            orders = {variant: search(variant, every) for variant in VARIANTS}
            evidence = Evidence(self.inputs.shape.moe_layers, calibration, orders)
            dumped = Decision({}, evidence.tensors(), evidence.facts(self.data))
            for variant in VARIANTS if self.probe is not None else ():
                assert self.probe is not None
                dumped.tensors.update(
                    evidence.logits(
                        stream, layers, self.probe, variant, _wanted(calibration, variant)
                    )
                )
            return self._decision(calibration, orders[self.variant], work, dumped)

    def _decision(
        self, calibration: Calibration, order: LayerOrder, work: Work, dumped: Decision
    ) -> Decision:
        chosen, wanted = order.order[: self.n_layers], _wanted(calibration, self.variant)
        self._found = {
            "layer_order": list(chosen),
            "layer_step_js": list(order.step_js[: self.n_layers]),
            "forwards": self._cost(work),
        }
        plans = {layer: wanted[layer].plan() for layer in sorted(chosen)}
        return Decision(plans, dumped.tensors, dumped.facts, tuple(_notes(calibration, plans)))

    def _cost(self, work: Work) -> dict[str, float]:
        """Passes of the whole model over the documents, beside those of the published scripts."""
        shape = self.inputs.shape
        selected = self.n_experts if self.variant == "SR" else 0
        published = published_forwards(
            shape.n_routed_experts, selected, len(shape.moe_layers), self.n_layers
        )
        return {"run": round(work.forwards, 2), "published": published}


def _wanted(calibration: Calibration, variant: str) -> dict[int, Condensed]:
    return {layer: facts.condensed(variant == "SR") for layer, facts in calibration.facts.items()}


def _notes(calibration: Calibration, plans: Mapping[int, LayerPlan]) -> list[str]:
    """Experts that no token selected stand for nothing and were kept all the same."""
    idle = {
        layer: [e for e in plan.kept if not calibration.facts[layer].weights.selected_E[e]]
        for layer, plan in plans.items()
    }
    return [
        f"layer {layer}: no token of the data selected experts {', '.join(map(str, experts))}, so "
        "their constant is 0; give more data, or a smaller --experts"
        for layer, experts in idle.items()
        if experts
    ]


@dataclass(frozen=True)
class CdMoeOptions:
    """The options of ``--method cd-moe``."""

    layers: int | None = option("how many MoE layers to condense", metavar="N")
    experts: int | None = option(
        "routed experts left in a condensed layer of variant SR (default the model's top-k)",
        metavar="N",
    )
    probe: str | None = option("with --dump: windows whose logits are written too", metavar="SPEC")


def _open(request: Request, options: CdMoeOptions, inputs: Inputs) -> CdMoe:
    variant = request.variant_of(VARIANTS)
    check_uniform(inputs.checkpoint)
    if request.keep is not None or request.ratio is not None:
        raise InputError(
            "--method cd-moe takes --layers N and --experts n; leave --keep and --ratio out"
        )
    if inputs.bundle is not None:
        raise InputError("--method cd-moe runs the model; give --data SPEC instead of --scores")
    n_layers, n_experts = _counts(options, inputs)
    _check_condensable(inputs, n_experts if variant == "SR" else 0)
    data = inputs.need_data("--method cd-moe runs the model on documents")
    return CdMoe(inputs, data, _probe(request, options, inputs), variant, n_layers, n_experts)


def _counts(options: CdMoeOptions, inputs: Inputs) -> tuple[int, int]:
    shape = inputs.shape
    most = len(shape.moe_layers)
    if options.layers is None or not 1 <= options.layers <= most:
        found = "is missing" if options.layers is None else f"is {options.layers}"
        raise InputError(
            f"--layers {found}: --method cd-moe condenses 1 to {most} layers of "
            f"{inputs.checkpoint.path}"
        )
    n_experts = shape.top_k if options.experts is None else options.experts
    if not 1 <= n_experts <= shape.n_routed_experts:
        raise InputError(
            f"--experts is {n_experts}, expected 1 to {shape.n_routed_experts}; --variant S is the "
            "one without routed experts"
        )
    return options.layers, n_experts


def _check_condensable(inputs: Inputs, n_experts: int) -> None:
    """Refuse before any work what the cutter would refuse after it."""
    plan = LayerPlan(condense=dict.fromkeys(range(n_experts), 1.0))
    for layer in inputs.shape.moe_layers:
        fault = layer_fault(plan, layer, inputs.checkpoint)
        if fault is not None:
            raise InputError(f"{inputs.checkpoint.path}: layer {layer} {fault}")


def _probe(request: Request, options: CdMoeOptions, inputs: Inputs) -> DataSet | None:
    if options.probe is None:
        return None
    if request.dump is None:
        raise InputError("--probe writes logits into a dump; give --dump DIR with it")
    return load_data(options.probe, inputs.checkpoint, "heldout", window=request.window)


METHOD = Method(
    name="cd-moe",
    summary="layers condensed to the shared and some experts with constant weights",
    open=_open,
    options=CdMoeOptions,
    variants=VARIANTS,
)
