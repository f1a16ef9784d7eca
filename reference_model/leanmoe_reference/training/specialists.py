"""Whether experts are specialists of one domain, and whether their numbers carry over layers.

``python -m leanmoe_reference.training.specialists MODEL…`` prints it of shipped models of Mixtral's
shape; a training writes it into its figures. Shapes: L layers, E experts, D domains.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import Any

import torch

from leanmoe.errors import InputError
from leanmoe_reference.artefact import FOLDER
from leanmoe_reference.gguf_base import GGUFBase, find_base
from leanmoe_reference.mixtral import N_EXPERTS, TOP_K, LowRank, MixtralModel
from leanmoe_reference.models import MODELS
from leanmoe_reference.training import mix
from leanmoe_reference.training.blocks import LowRankExperts, Routes, TrainableBlock
from leanmoe_reference.training.network import FrozenLayer, Parent

Tensor = torch.Tensor
WINDOWS = 4


@torch.no_grad()
def counts(parent: Parent, block: TrainableBlock, windows: Mapping[str, Tensor]) -> Tensor:
    """Routed assignments ``[L, E, D]`` of each domain's first held-out windows."""
    names = [f"{domain.name}.held_out" for domain in mix.DOMAINS]
    held = [windows[name][:WINDOWS] for name in names if name in windows]
    return torch.stack([_counts(parent, block, ids_NT) for ids_NT in held], dim=2)


def _counts(parent: Parent, block: TrainableBlock, ids_NT: Tensor) -> Tensor:
    routes = Routes()

    def run(layer: int, x_MD: Tensor, frozen: FrozenLayer) -> Tensor:
        return block.run(routes, layer, x_MD, frozen)

    # The last layer's routing is all that is wanted: no next-token losses.
    parent.hidden(ids_NT, run)
    chosen = [one.topk(block.top_k, dim=-1).indices for one in routes.logits_ME.values()]
    return torch.stack([one.flatten().bincount(minlength=block.n_experts) for one in chosen])


def specialists(counts_LED: Tensor) -> dict[str, Any]:
    """Largest share of one domain in an expert's assignments; what an expert says of the domain.

    Every domain weighs the same. Information is in bits: of an expert of a known layer, and of
    an expert's number alone, which is less where numbers mean other things in other layers.
    """
    share_LED = counts_LED.double() / counts_LED.sum(1, keepdim=True)
    share_LED = share_LED / share_LED.shape[2]
    largest_LE = share_LED.amax(2) / share_LED.sum(2).clamp_min(1e-12)
    in_layer = torch.stack([information(one_ED) for one_ED in share_LED]).mean()
    return {
        "largest_share_of_one_domain": {
            "mean": round(float(largest_LE.mean()), 4),
            "highest": round(float(largest_LE.max()), 4),
            "experts_above_0.6": int((largest_LE > 0.6).sum()),
        },
        "load": {
            "lowest": round(float(share_LED.sum(2).min()), 4),
            "highest": round(float(share_LED.sum(2).max()), 4),
        },
        "bits_on_the_domain": {
            "expert_of_a_layer": round(float(in_layer), 4),
            "number_alone": round(float(information(share_LED.mean(0))), 4),
            "of": round(float(torch.tensor(share_LED.shape[2]).log2()), 4),
        },
    }


def information(joint_ED: Tensor) -> Tensor:
    """Mutual information of rows and columns of a joint distribution, bits."""
    apart_ED = joint_ED.sum(1, keepdim=True) * joint_ED.sum(0, keepdim=True)
    return torch.where(joint_ED > 0, joint_ED * (joint_ED / apart_ED).log2(), 0.0).sum()


def stored(parent: Parent, low_rank: LowRank) -> LowRankExperts:
    """A shipped model as a block."""
    found = low_rank.factors(0, N_EXPERTS - 1, "down")
    assert found is not None, "only expert 0 may be the parent's own"
    block = LowRankExperts(parent, N_EXPERTS, TOP_K, len(found[0]), seed=0)
    for layer in block.moe_layers:
        block.parameters[f"layers.{layer}.gate"] = low_rank.gate(layer).float()
        lacking_EL = low_rank.lacking(layer)
        if lacking_EL is not None:
            block.fixed[f"layers.{layer}.lacking"] = lacking_EL
        for name in ("gate", "up", "down"):
            _take_factors(block, low_rank, layer, name)
    return block


def _take_factors(block: LowRankExperts, low_rank: LowRank, layer: int, name: str) -> None:
    key = f"layers.{layer}.{name}_proj"
    for expert in range(N_EXPERTS):
        ranks = slice(expert * block.rank, (expert + 1) * block.rank)
        found = low_rank.factors(layer, expert, name)
        # B is zero to begin with: an expert without factors is the parent's layer.
        if found is not None:
            block.parameters[f"{key}.A"][ranks] = found[0].float()
            block.parameters[f"{key}.B"][:, ranks] = found[1].float()


def main(names: list[str]) -> None:
    """Print the figures of every model named."""
    base = GGUFBase(find_base())
    parent, windows = Parent.load(base), mix.load()
    for name in names:
        model = MODELS[name].make(base, FOLDER) if name in MODELS else None
        if not isinstance(model, MixtralModel):
            raise InputError(f"{name} is no shipped model of Mixtral's shape")
        found = specialists(counts(parent, stored(parent, model.low_rank), windows))
        sys.stdout.write(json.dumps({"model": name, **found}, indent=2) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
