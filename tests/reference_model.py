"""What a plan should compute, written out: transformers' model, its MoE blocks replaced.

Nothing here reads a cut checkpoint: the blocks take the source's tensors and the plan.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch.nn import functional
from transformers import AutoModelForCausalLM

from leanmoe.checkpoint import Checkpoint, open_checkpoint
from leanmoe_pruning.cutting.layer_plan import LayerPlan, PrunePlan

Weights = dict[str, list[torch.Tensor]]


def expert_weights(checkpoint: Checkpoint, tensors: dict[str, torch.Tensor], layer: int) -> Weights:
    """gate_proj, up_proj and down_proj of every expert of the source."""
    family, count = checkpoint.family, checkpoint.shape.n_routed_experts
    if not family.stacked:
        return {
            p: [tensors[family.expert_name(layer, e, p)].float() for e in range(count)]
            for p in ("gate_proj", "up_proj", "down_proj")
        }
    prefix = family.block_prefix(layer)
    gate, up = tensors[f"{prefix}.input_linear.weight"].float().chunk(2, dim=1)
    down = tensors[f"{prefix}.output_linear.weight"].float()
    return {"gate_proj": list(gate), "up_proj": list(up), "down_proj": list(down)}


class PlannedBlock(torch.nn.Module):
    """One MoE block under a plan. T tokens, E experts of the source, E' that are left."""

    def __init__(self, checkpoint: Checkpoint, tensors: Any, layer: int, plan: LayerPlan) -> None:
        super().__init__()
        self.config, self.shape, self.plan = checkpoint.config, checkpoint.shape, plan
        prefix = checkpoint.family.block_prefix(layer)
        self.gate_ED = tensors[checkpoint.family.gate_name(layer)].float()
        self.bias_E = tensors.get(f"{prefix}.gate.e_score_correction_bias")
        self.weights = expert_weights(checkpoint, tensors, layer)
        names = [f"{prefix}.{one}" for one in ("shared_expert", "shared_experts")]
        held = [name for name in names if f"{name}.up_proj.weight" in tensors]
        parts = ("gate_proj", "up_proj", "down_proj")
        self.shared_DFD = [tensors[f"{n}.{p}.weight"].float() for n in held for p in parts]
        gate = tensors.get(f"{prefix}.shared_expert_gate.weight")
        self.shared_gate = None if gate is None else gate.float()

    def shared(self, x_TD: torch.Tensor) -> torch.Tensor | float:
        """What every token gets besides, behind a gate of its own where there is one."""
        if not self.shared_DFD:
            return 0.0
        gate, up, down = self.shared_DFD
        output = (functional.silu(x_TD @ gate.t()) * (x_TD @ up.t())) @ down.t()
        if self.plan.shared_gate is not None:
            return self.plan.shared_gate * output
        return (
            output
            if self.shared_gate is None
            else torch.sigmoid(x_TD @ self.shared_gate.t()) * output
        )

    def expert(self, mix: list[float], x_TD: torch.Tensor) -> torch.Tensor:
        """The output of an expert whose weights are a sum of the source's."""
        summed = {
            name: sum(f * w for f, w in zip(mix, held, strict=True) if f)
            for name, held in self.weights.items()
        }
        hidden = functional.silu(x_TD @ summed["gate_proj"].t()) * (x_TD @ summed["up_proj"].t())
        return hidden @ summed["down_proj"].t()

    def scores(self, logits_TE: torch.Tensor) -> torch.Tensor:
        sigmoid = self.config.get("scoring_func") == "sigmoid"
        return logits_TE.sigmoid() if sigmoid else logits_TE.softmax(-1)

    def chosen(self, scores_TE: torch.Tensor, bias_E: torch.Tensor | None) -> torch.Tensor:
        """Weights [T, E'], zero for experts that were not chosen."""
        judged_TE = scores_TE if bias_E is None else scores_TE + bias_E
        groups = self.shape.n_groups
        if groups > 1:
            held = judged_TE.unflatten(-1, (groups, -1))
            best = held.topk(2, -1)[0].sum(-1) if bias_E is not None else held.amax(-1)
            out = torch.ones_like(best).scatter(-1, best.topk(self.config["topk_group"], -1)[1], 0)
            judged_TE = held.masked_fill(out.bool()[..., None], float("-inf")).flatten(-2)
        top_k = self.plan.top_k or self.shape.top_k
        ids_TK = judged_TE.topk(top_k, -1)[1]
        weights_TK = scores_TE.gather(-1, ids_TK)
        if self.shape.renormalize:
            weights_TK = weights_TK / weights_TK.sum(-1, keepdim=True)
        weights_TK = weights_TK * self.config.get("routed_scaling_factor", 1.0)
        return torch.zeros_like(scores_TE).scatter(-1, ids_TK, weights_TK)

    def routed(self, x_TD: torch.Tensor) -> torch.Tensor:
        count, logits_TE = self.shape.n_routed_experts, x_TD @ self.gate_ED.t()
        one_hot = torch.eye(count).tolist()
        if self.plan.condense is not None:
            constants = self.plan.condense.items()
            none = torch.zeros_like(x_TD)
            return sum((c * self.expert(one_hot[e], x_TD) for e, c in constants), none)
        if self.plan.merge is not None:
            mapped = logits_TE.softmax(-1) @ torch.tensor(self.plan.merge.router).t()
            weights, mixes = self.chosen(mapped, None), self.plan.merge.experts
        else:
            kept = list(self.plan.kept)
            bias = None if self.bias_E is None else self.bias_E.float()[kept]
            weights = self.chosen(self.scores(logits_TE[:, kept]), bias)
            mixes = [one_hot[e] for e in kept]
        return sum(weights[:, [j]] * self.expert(mix, x_TD) for j, mix in enumerate(mixes))

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        x_TD = hidden_states.flatten(0, -2)
        return (self.routed(x_TD) + self.shared(x_TD)).view_as(hidden_states)


class StandInBlock(PlannedBlock):
    """One MoE block some of whose experts give what stands in for them."""

    def __init__(
        self, checkpoint: Checkpoint, tensors: Any, layer: int, gone: Mapping[int, list[Any]]
    ) -> None:
        count = checkpoint.shape.n_routed_experts
        super().__init__(checkpoint, tensors, layer, LayerPlan(keep=tuple(range(count))))
        self.gone = gone

    def expert(self, mix: list[float], x_TD: torch.Tensor) -> torch.Tensor:
        """An affine map in the place of experts that are gone: a constant, and two matrices."""
        one = mix.index(1.0)
        if one not in self.gone:
            return super().expert(mix, x_TD)
        constant_D, *maps = self.gone[one]
        mapped = (x_TD @ maps[0].t()) @ maps[1] if maps else torch.zeros_like(x_TD)
        return constant_D + mapped


def stand_in_blocks(source: Path, lean: Path) -> dict[int, StandInBlock]:
    """Every layer's block: experts and router of ``source``, stand-ins as ``lean`` holds them."""
    checkpoint, tensors = open_checkpoint(source), load_file(source / "model.safetensors")
    held, blocks = load_file(lean / "model.safetensors"), {}
    for layer in checkpoint.shape.moe_layers:
        name = f"{checkpoint.family.block_prefix(layer)}.experts."
        experts = range(checkpoint.shape.n_routed_experts)
        ends = ("approx_value", "approx_in", "approx_out")
        gone = {
            e: [held[f"{name}{e}.{end}"].float() for end in ends if f"{name}{e}.{end}" in held]
            for e in experts
        }
        gone = {e: parts for e, parts in gone.items() if parts}
        blocks[layer] = StandInBlock(checkpoint, tensors, layer, gone)
    return blocks


def planned_blocks(source: Path, plan: PrunePlan) -> dict[int, PlannedBlock]:
    """Every planned layer's block, from the source's tensors."""
    checkpoint, tensors = open_checkpoint(source), load_file(source / "model.safetensors")
    return {
        layer: PlannedBlock(checkpoint, tensors, layer, wanted)
        for layer, wanted in plan.layers.items()
    }


class Reference:
    """A source checkpoint with other MoE blocks, as a cut says it should compute."""

    def __init__(self, source: Path, blocks: Mapping[int, PlannedBlock]) -> None:
        self.model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).eval()
        for layer, block in blocks.items():
            held = self.model.model.layers[layer]
            setattr(held, "block_sparse_moe" if hasattr(held, "block_sparse_moe") else "mlp", block)

    @torch.inference_mode()
    def generate(self, prompts: list[list[int]], tokens: int) -> list[list[int]]:
        """Greedy continuations."""
        found = []
        for prompt in prompts:
            ids = list(prompt)
            for _ in range(tokens):
                ids.append(int(self.model(torch.tensor([ids])).logits[0, -1].argmax()))
            found.append(ids[len(prompt) :])
        return found
