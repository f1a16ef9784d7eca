"""The parts of the run: each can be run apart and ends within its time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from leanmoe.errors import InputError
from leanmoe_bench.gpu import cells, kernels, packed_part, profiles, speed, tokens
from leanmoe_bench.gpu.deadline import Deadline
from leanmoe_bench.gpu.fit import GIB, engine_bytes
from leanmoe_bench.gpu.models import MODELS, PACKED, GpuModel
from leanmoe_bench.gpu.session import Engines, Row
from leanmoe_bench.gpu.settings import Settings

_NO_GPU = "a rehearsal has no GPU, and these checks capture CUDA graphs"
_FIRST_CELL = "triton-bf16"


@dataclass
class Context:
    """What a part is given."""

    settings: Settings
    engines: Engines
    work: Path


@dataclass(frozen=True)
class Part:
    """One part; ``model`` is the whole-depth model of which it starts two engines."""

    name: str
    about: str
    run: Callable[[Context, Deadline], Iterator[Row]]
    model: str | None = None

    @property
    def needs(self) -> str:
        """What it takes, in words."""
        if self.model is None:
            return "little memory"
        layers = MODELS[self.model].shape.layers
        needed = 2 * engine_bytes(MODELS[self.model]) / GIB
        return f"{needed:.0f} GiB for two engines of {layers} layers, less with --layers"


def _kernels(context: Context, deadline: Deadline) -> Iterator[Row]:
    device = "cpu" if context.settings.rehearses else "cuda"
    yield from kernels.check(device)


def _layers(cell: cells.Cell, context: Context, deadline: Deadline) -> Iterator[Row]:
    found: Row = {"status": "not run", "reason": _NO_GPU}
    if not context.settings.rehearses:
        context.engines.close()
        found = cells.check(cell, context.work, context.settings.seed)
    yield {"row": "layers", **cell.about, **found}


def _tokens(model: GpuModel, context: Context, deadline: Deadline) -> Iterator[Row]:
    yield from tokens.check(context.engines, context.settings.model(model))


def _speed(model: GpuModel, context: Context, deadline: Deadline) -> Iterator[Row]:
    session = context.engines.session(context.settings.model(model))
    yield from speed.compare(session, session.model.cases, deadline)


def _budget(model: GpuModel, context: Context, deadline: Deadline) -> Iterator[Row]:
    session = context.engines.session(context.settings.model(model), budget=True)
    yield from speed.compare(session, session.model.budget_cases, deadline)


def _profile(model: GpuModel, context: Context, deadline: Deadline) -> Iterator[Row]:
    session = context.engines.session(context.settings.model(model))
    yield from profiles.profile(session, deadline)


def _of_model(model: GpuModel) -> list[Part]:
    about = {
        "tokens": ("answers at level 0, of mixed levels, counters against a recount", _tokens),
        "speed": ("tokens per second beside stock: exact, skipping, top-1", _speed),
        "profile": ("kernels of a step, stock's and ours", _profile),
    }
    return [
        Part(f"{kind}:{model.name}", text, partial(run, model), model.name)
        for kind, (text, run) in about.items()
    ]


def _budget_of(model: GpuModel) -> Part:
    bound = f"at most {model.budget} of {model.shape.experts} experts a step and layer"
    text = f"tokens per second beside stock: {bound}"
    return Part(f"budget:{model.name}", text, partial(_budget, model), model.name)


def _packed(context: Context, deadline: Deadline) -> Iterator[Row]:
    if context.settings.rehearses:
        yield {"row": "check", "check": "packed_kernels", "status": "not run", "reason": _NO_GPU}
        return
    context.engines.close()
    yield from packed_part.kernels(context.settings.rounds, context.settings.seed, deadline)


def _packed_engines(model: GpuModel, context: Context, deadline: Deadline) -> Iterator[Row]:
    session = context.engines.session(context.settings.model(model), packed=True)
    yield from packed_part.engines(session, deadline)


def _packed_of(model: GpuModel) -> Part:
    text = f"tokens per second, experts packed by {PACKED}, beside stock's dense ones"
    return Part(f"packed:{model.name}", text, partial(_packed_engines, model), model.name)


def _layer_part(cell: cells.Cell) -> Part:
    weights = cell.quantization or "bf16"
    text = f"one layer's checks, {cell.backend} on {weights}"
    return Part(f"layers:{cell.name}", text, partial(_layers, cell))


def _all() -> list[Part]:
    """The most important first; parts on the same engines lie side by side."""
    first = Part("kernels", "the plugin's kernels against their reference", _kernels)
    by_model = [part for model in MODELS.values() for part in _of_model(model)]
    budgets = [_budget_of(model) for model in MODELS.values() if model.budget]
    layers = {name: _layer_part(cell) for name, cell in cells.CELLS.items()}
    packed = Part("packed", "kernels of packed experts: right, and beside vLLM's", _packed)
    whole = [packed, *(_packed_of(model) for model in MODELS.values())]
    return [first, layers.pop(_FIRST_CELL), *by_model, *budgets, *whole, *layers.values()]


PARTS = {part.name: part for part in _all()}


def chosen(names: Sequence[str]) -> list[Part]:
    """The parts of these names in the order given; all where none is named."""
    for name in names:
        if name not in PARTS:
            raise InputError(f"no part {name!r}; --list says which there are and what each needs")
    return [PARTS[name] for name in names or PARTS]


def listed() -> str:
    """One line for each part."""
    width = max(map(len, PARTS)) + 2
    return "\n".join(f"{p.name:{width}}{p.about} ({p.needs})" for p in PARTS.values())
