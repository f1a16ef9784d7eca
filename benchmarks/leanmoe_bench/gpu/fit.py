"""The GPU of this machine, and whether two engines of a model fit it, from the config alone."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass

from leanmoe.errors import InputError
from leanmoe_bench.gpu.models import GpuModel

GIB = 1 << 30
KV_BYTES = 2 * GIB
# Driver, kernels, captured graphs and activations of one engine: an estimate, on the safe side.
_BESIDE_BYTES = 4 * GIB
_BESIDES = "weights, 2 GiB of KV cache and 4 GiB for what else an engine takes"
# Asked in a process of its own: this one is to hold nothing of the GPU.
_ASK = """
import json, torch
if torch.cuda.is_available():
    found, (free, _) = torch.cuda.get_device_properties(0), torch.cuda.mem_get_info()
    print(json.dumps({
        "name": found.name, "memory_bytes": found.total_memory, "free_bytes": free,
        "capability": f"{found.major}.{found.minor}", "cuda": torch.version.cuda,
    }))
"""


@dataclass(frozen=True)
class Card:
    """A GPU as torch sees it."""

    name: str
    memory_bytes: int
    free_bytes: int
    capability: str
    cuda: str


def find_card() -> Card | None:
    """The first GPU, ``None`` where there is none to compute on."""
    done = subprocess.run([sys.executable, "-c", _ASK], capture_output=True, text=True, check=False)
    answer = done.stdout.strip()
    return Card(**json.loads(answer)) if done.returncode == 0 and answer else None


def engine_bytes(model: GpuModel) -> int:
    """What one engine of the model takes."""
    return model.weight_bytes + KV_BYTES + _BESIDE_BYTES


def share(model: GpuModel, card: Card) -> float:
    """One engine's share of the card, as vLLM asks for it."""
    return round(engine_bytes(model) / card.memory_bytes, 3)


def layers_that_fit(model: GpuModel, free_bytes: int) -> int:
    """The depth at which two engines still fit, 0 for none."""
    depths = range(model.shape.layers, 0, -1)
    return next((n for n in depths if 2 * engine_bytes(model.of_depth(n)) <= free_bytes), 0)


def check(model: GpuModel, card: Card) -> None:
    """Refuse a model of which the card cannot hold two engines."""
    needed = 2 * engine_bytes(model)
    if needed <= card.free_bytes:
        return
    most = layers_that_fit(model, card.free_bytes)
    advice = f"give --layers {most}" if most else "take a larger GPU"
    raise InputError(
        f"two engines of {model.name} with {model.shape.layers} layers need {needed / GIB:.0f} GiB "
        f"({_BESIDES}, each), and the {card.name} has {card.free_bytes / GIB:.0f} GiB free of "
        f"{card.memory_bytes / GIB:.0f}; {advice}"
    )
