"""EEP against the published code: merged models through the command line, operators by replay."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from leanmoe.cli import main
from leanmoe_pruning.checkpoints.opening import open_model
from leanmoe_pruning.forward.passes import embed_all, step_
from leanmoe_pruning.forward.stream import DecoderStream
from leanmoe_pruning.methods.eep.draws import SeededDraws, Settings
from leanmoe_pruning.methods.eep.individual import Individual
from leanmoe_pruning.methods.eep.operators import crossover, discrete_mutate, mutate
from leanmoe_pruning.methods.eep.phases import merge_child, prune_child
from leanmoe_pruning.methods.eep.population import Population, new_individual, shuffle_ties

DATA = Path(__file__).parent / "data" / "eep"
CASES = json.loads((DATA / "results.json").read_text())["cases"]
TRACES = json.loads((DATA / "operators.json").read_text())


@lru_cache
def golden() -> dict[str, torch.Tensor]:
    return load_file(DATA / "results.safetensors")


@lru_cache
def traced() -> dict[str, torch.Tensor]:
    return load_file(DATA / "operators.safetensors")


class ReplayedDraws:
    """The recorded draws, each asked for in the terms it was recorded in."""

    def __init__(self, draws: list) -> None:
        self._draws = iter(draws)

    def _next(self, kind: str, *arguments: int):
        name, *rest, value = next(self._draws)
        assert (name, *rest) == (kind, *arguments)
        return value

    def uniform(self) -> float:
        return self._next("uniform")

    def gauss(self) -> float:
        return self._next("gauss")

    def randint(self, low: int, high: int) -> int:
        return self._next("randint", low, high)

    def sample(self, n: int, count: int) -> list[int]:
        found = self._next("sample", n)
        assert len(found) == count
        return found

    def shuffle(self, n: int) -> list[int]:
        found = self._next("shuffle")
        assert len(found) == n
        return found

    @property
    def done(self) -> bool:
        return next(self._draws, None) is None


def population(name: str) -> Population:
    pairs = zip(traced()[f"parents.{name}.EM"], traced()[f"parents.{name}.RM"], strict=True)
    return Population([Individual(*pair) for pair in pairs], traced()["parents.score"].tolist())


def applied(case: dict, draws) -> Individual:
    how, op = Settings(), case["op"]
    if op == "init":
        return new_individual(4, 4, 8, draws)
    if op.startswith("child"):
        how = replace(how, norm_probability=case["norm_prob"])
        child = prune_child if op == "child_prune_stage" else merge_child
        return child(population(case["population"]), how, draws)
    changes = (case["change_EM"], case["change_RM"])
    if op == "crossover":
        parents, threshold = population(case["population"]), case["parents_threshold"]
        return crossover(parents, threshold, *changes, how, draws)
    name, place = case["parent"]
    parent = population(name).members[place]
    if op == "mutate":
        return mutate(parent, *changes, how, draws)
    return discrete_mutate(parent, case["change_EM"], case["row_prob"], draws)


@pytest.mark.parametrize("case", TRACES["cases"], ids=lambda case: f"{case['case']}-{case['op']}")
def test_operators_by_seed_and_by_replay(case):
    replayed = ReplayedDraws(case["draws"])
    for draws in (SeededDraws(case["seed"]), replayed):
        found = applied(case, draws)
        for mine, name in ((found.experts, "EM"), (found.router, "RM")):
            expected = traced()[f"case.{case['case']}.{name}"]
            torch.testing.assert_close(mine, expected, rtol=0, atol=1e-6)
    assert replayed.done


@pytest.mark.parametrize("case", TRACES["shuffle_ties"], ids=lambda case: str(case["seed"]))
def test_ties_are_shuffled_group_by_group(case):
    for draws in (SeededDraws(case["seed"]), ReplayedDraws(case["draws"])):
        assert shuffle_ties(case["scores"], draws) == case["order"]


@pytest.fixture(scope="module", params=list(CASES))
def dumped(request, tmp_path_factory):
    case, folder = request.param, tmp_path_factory.mktemp("eep")
    inputs = DATA / "inputs.safetensors"
    arguments = ["prune", str(DATA / "checkpoint"), "--method", "matrices"]
    arguments += ["--matrices", f"{DATA / 'results.safetensors'}:{case}"]
    arguments += ["--top-k", str(CASES[case]["num_experts_per_tok"])]
    arguments += ["--data", f"{inputs}:probe_input_ids", "--block-input", f"{inputs}:block_input"]
    assert main([*arguments, "--dump", str(folder / "dump"), "-o", str(folder / "out")]) == 0
    return case, load_file(folder / "dump" / "results.safetensors"), folder / "out"


def close(found: torch.Tensor, expected: torch.Tensor) -> None:
    scale = float(expected.abs().max())
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-5 * scale)


def test_merged_blocks_and_logits(dumped):
    case, found, _ = dumped
    for name in ("block_output", "probe_logits"):
        close(found[f"{case}.{name}"], golden()[f"{case}.{name}"])


def test_merged_weights_and_router_transfer(dumped):
    case, found, _ = dumped
    stored = [name for name in golden() if name.startswith(f"{case}.merged.")]
    assert len(stored) in (0, 4 * CASES[case]["num_slots"] * 3)
    for name in stored:
        close(found[name], golden()[name])
    for name in ("W_EM", "W_RM"):
        assert torch.equal(found[f"{case}.{name}"], golden()[f"{case}.{name}"])


def logits_of(out: Path) -> torch.Tensor:
    stream = DecoderStream(open_model(out))
    with torch.inference_mode():
        hidden = embed_all(stream, [load_file(DATA / "inputs.safetensors")["probe_input_ids"]])
        for layer in stream.layers():
            step_(layer, hidden)
        return torch.stack([stream.logits(one) for one in hidden[0]])


def test_what_is_written_computes_the_same_unless_something_negative_was_chosen(dumped):
    """The checkpoint clamps mapped probabilities as the runtime does; the manifest says so."""
    case, _, out = dumped
    notes = " ".join(open_model(out).manifest.settings.get("notes", []))
    if "negative" not in notes:
        close(logits_of(out), golden()[f"{case}.probe_logits"])
    else:
        assert bool((golden()[f"{case}.W_RM"] < 0).any())
