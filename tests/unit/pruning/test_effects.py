"""Effects of experts on the predictions, and layers chosen together by them."""

from __future__ import annotations

import itertools
import json
import shutil
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch.nn import functional
from transformers import AutoModelForCausalLM

from leanmoe.cli import main
from leanmoe.manifest import read_manifest
from leanmoe_pruning.checkpoints.opening import open_model
from leanmoe_pruning.evaluation.redundancy import Redundancy
from leanmoe_pruning.forward.passes import embed_all, run_block, step_
from leanmoe_pruning.forward.routing import RouterRule
from leanmoe_pruning.forward.stream import DecoderStream
from leanmoe_pruning.methods.naee.together import (
    LayerEffects,
    changes,
    choose_together,
    divergence,
    expected_divergence,
    log_loss,
)
from leanmoe_pruning.methods.selection import complement, pruned_subsets
from leanmoe_pruning.scores.bundle import ScoreBundle
from leanmoe_pruning.scores.effects import effects_file
from tests.family_references import write_telling
from tests.golden.naee_data import CALIBRATION, CHECKPOINT
from tests.layer_scores import bare_scores
from tests.tiny_families import FAMILY_NAMES
from tests.unit.pruning.test_scores import forged

IDS = load_file(CALIBRATION.split(":")[0])["calib_input_ids"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two bundles of two sources, one of them with effects, in float32."""
    folder = tmp_path_factory.mktemp("effects")
    parts = []
    for name, rows in (("a", IDS[:3]), ("b", IDS[3:])):
        save_file({"input_ids": rows.contiguous()}, folder / f"{name}.safetensors")
        parts.append(str(folder / f"{name}.safetensors"))
    score = ["score", str(CHECKPOINT), "--compute", "float32", "--data", ",".join(parts)]
    assert main([*score, "-o", str(folder / "plain")]) == 0
    assert main([*score, "--effects", "-o", str(folder / "scores")]) == 0
    assert main([*score, "--effects", "text", "-o", str(folder / "text")]) == 0
    return folder


def effects_of(folder, layer: int, bundle: str = "scores") -> torch.Tensor:
    return load_file(folder / bundle / effects_file(layer))["effects"]


@pytest.mark.parametrize("bundle", ["scores", "text"])
def test_an_effect_is_the_gradient_by_a_block_times_what_an_expert_gives(bundle, folder):
    """Beside transformers and autograd, with the same next tokens, drawn or of the text."""
    model = AutoModelForCausalLM.from_pretrained(CHECKPOINT, dtype=torch.float32).eval()
    kept = {}
    for index, layer in enumerate(model.model.layers):

        def take(module, arguments, output, index=index):
            output.retain_grad()
            kept[index] = (module, arguments[0].detach(), output)

        layer.mlp.register_forward_hook(take)
    start, found = 0, [[] for _ in model.model.layers]
    for ids_NT in (IDS[:3], IDS[3:]):
        logits_NTV = model(ids_NT).logits
        if bundle == "text":
            logits_NV, next_N = logits_NTV[:, :-1].flatten(0, 1), ids_NT[:, 1:].flatten()
        else:
            logits_NV, generator = logits_NTV.flatten(0, 1), seeded(start)
            parts = logits_NV.detach().softmax(-1).split(256)
            next_N = torch.cat([part.multinomial(1, generator=generator) for part in parts])[:, 0]
        functional.cross_entropy(logits_NV, next_N, reduction="sum").backward()
        for index, (block, x_NTD, output_NTD) in kept.items():
            experts, each = block.experts, []
            for expert in range(len(experts.down_proj)):
                gate, up = (x_NTD @ experts.gate_up_proj[expert].T).chunk(2, -1)
                given_NTD = (functional.silu(gate) * up) @ experts.down_proj[expert].T
                each.append((given_NTD * output_NTD.grad).sum(-1).flatten())
            found[index].append(torch.stack(each, 1).detach())
        start += ids_NT.numel()
    for index, parts in enumerate(found):
        expected = torch.cat(parts)
        torch.testing.assert_close(
            effects_of(folder, index, bundle),
            expected,
            rtol=2e-3,
            atol=2e-4 * float(expected.abs().max()),
        )


def test_all_else_of_a_bundle_is_the_same_bytes(folder):
    for path in (folder / "plain").glob("*.safetensors"):
        assert path.read_bytes() == (folder / "scores" / path.name).read_bytes()
    for name, effects in (("scores", 0), ("text", "text")):
        described = json.loads((folder / name / "scores.json").read_text())
        assert described["effects"] == effects and effects_file(0) in described["files"]


def test_the_divergence_to_expect_is_what_a_small_cut_costs(folder):
    """One of eight experts masked in one layer: KL of next tokens beside half the mean square."""
    checkpoint = open_model(CHECKPOINT)
    ids = [IDS[:3], IDS[3:]]
    expected, measured = [], []
    for layer, gone in ((0, 2), (1, 5), (2, 7)):
        kept = complement((gone,), 8)
        scores = next(
            one for one in bundle_layers(folder / "scores", checkpoint) if one.layer == layer
        )
        expected.append(divergence(LayerEffects(scores, len(scores.effects_SE)).change(kept)))
        measured.append(kl(checkpoint, ids, {layer: kept}))
    # Few tokens, and one drawn next token of each.
    assert 0.5 < sum(expected) / sum(measured) < 2.0


def test_a_small_cut_changes_the_log_loss_of_the_text_as_expected(folder):
    """One of eight experts masked in the last layer, to first order; half make the text likelier.

    Of a model that predicts nothing, so the curvature is none.
    """
    checkpoint = open_model(CHECKPOINT)
    *_, last = bundle_layers(folder / "text", checkpoint)
    effects, full = LayerEffects(last, IDS.numel()), text_loss(checkpoint, {})
    kept_by_choice = [complement((gone,), 8) for gone in range(8)]
    expected = torch.stack([effects.change(kept).mean() for kept in kept_by_choice])
    measured = torch.tensor(
        [text_loss(checkpoint, {last.layer: kept}) - full for kept in kept_by_choice]
    )
    assert measured.min() < 0 < measured.max()
    assert (expected - measured).square().sum() < 0.2 * measured.square().sum()


@torch.inference_mode()
def text_loss(checkpoint, kept) -> float:
    """Mean over all tokens, with nothing to say of each window's last one."""
    stream = DecoderStream(checkpoint, "float32")
    [hidden_NTD] = hidden = embed_all(stream, [IDS])
    for layer in stream.layers():
        step_(layer, hidden, kept.get(layer.index))
    logits_NTV = stream.logits(hidden_NTD.flatten(0, 1)).view(*IDS.shape, -1).double()
    lost = functional.cross_entropy(
        logits_NTV[:, :-1].flatten(0, 1), IDS[:, 1:].flatten(), reduction="sum"
    )
    return float(lost) / IDS.numel()


def bundle_layers(path, checkpoint):
    return ScoreBundle(path).layers(RouterRule.of(checkpoint.shape))


@torch.inference_mode()
def kl(checkpoint, ids, kept) -> float:
    full, cut = (DecoderStream(checkpoint, "float32") for _ in range(2))
    hidden, less = embed_all(full, ids), embed_all(cut, ids)
    for layer in full.layers():
        step_(layer, hidden)
        step_(layer, less, kept.get(layer.index))
    total, tokens = 0.0, 0
    for whole_NTD, cut_NTD in zip(hidden, less, strict=True):
        wanted, found = (
            one.log_probabilities(part.flatten(0, 1))
            for one, part in ((full, whole_NTD), (cut, cut_NTD))
        )
        total += float(functional.kl_div(found, wanted, reduction="sum", log_target=True))
        tokens += len(wanted)
    return total / tokens


# Larger ones change which experts later layers choose.
STEP = 3e-4
TOKENS = torch.randint(0, 400, (3, 24), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", FAMILY_NAMES)
def test_every_family_is_passed_back(name, tmp_path):
    """What all chosen experts do together is how the loss changes where their sum grows."""
    model = write_telling(tmp_path / "model", name)
    save_file({"input_ids": TOKENS}, tmp_path / "ids.safetensors")
    score = ["score", str(model), "--effects", "--compute", "float32", "-o", str(tmp_path / "out")]
    assert main([*score, "--data", str(tmp_path / "ids.safetensors")]) == 0
    checkpoint = open_model(model)
    for scores in ScoreBundle(tmp_path / "out").layers(RouterRule.of(checkpoint.shape)):
        routing = scores.routing()
        expected = (routing.applied() * scores.effects_SE.gather(1, routing.ids_TK)).sum()
        more, less = (loss_of(checkpoint, scores.layer, 1 + step) for step in (STEP, -STEP))
        assert (more - less) / (2 * STEP) == pytest.approx(float(expected), rel=0.01, abs=0.03)


@torch.inference_mode()
def loss_of(checkpoint, grown: int, factor: float) -> float:
    """Of the next tokens that effects are taken by, one layer's experts all giving more."""
    drawn_N1 = None
    for scale in (1.0, factor):
        stream = DecoderStream(checkpoint, "float32")
        [hidden_NTD] = embed_all(stream, [TOKENS])
        for layer in stream.layers():
            layer.attend_(hidden_NTD)
            output_TD, _ = run_block(layer, hidden_NTD)
            if layer.index == grown:
                shared_TD = layer.shared(layer.block_input(hidden_NTD))
                always = 0.0 if shared_TD is None else shared_TD
                output_TD = always + scale * (output_TD - always)
            layer.add_(hidden_NTD, output_TD)
        logits_NV = stream.logits(hidden_NTD.flatten(0, 1))
        if drawn_N1 is None:
            drawn_N1 = logits_NV.softmax(-1).multinomial(1, generator=seeded(0))
    return float(functional.cross_entropy(logits_NV.double(), drawn_N1[:, 0], reduction="sum"))


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def layers_of(seed: int, count: int = 3, experts: int = 4) -> list[LayerEffects]:
    generator, found = seeded(seed), []
    rules = (
        RouterRule(top_k=2, renormalize=True),
        # What is removed gives its share of the softmax to all others.
        RouterRule(top_k=2, renormalize=False),
        RouterRule(top_k=2, renormalize=True, scoring="sigmoid"),
    )
    for layer in range(count):
        logits = torch.randn(24, experts, generator=generator)
        gram = torch.zeros(24, (experts + 1) * (experts + 2) // 2)
        scores = bare_scores(rules[seed % 3], logits, gram)
        effects = torch.randn(24, experts, generator=generator)
        found.append(LayerEffects(replace(scores, layer=layer, effects_SE=effects), 24))
    return found


@settings(max_examples=12)
@given(st.integers(0, 10_000), st.sampled_from([(0.0, divergence), (1.0, log_loss)]))
def test_no_single_swap_of_any_layer_improves_the_choice(seed, aim):
    layers, (pull, expected) = layers_of(seed), aim
    turns = list(choose_together(layers, 2, pull))
    costs = [expected(changes(layers, kept)) for kept in turns]
    assert costs == sorted(costs, reverse=True)
    subsets = [complement(gone, 4) for gone in pruned_subsets(4, 2)]
    every = {
        places: expected(changes(layers, [subsets[place] for place in places]))
        for places in itertools.product(range(6), repeat=3)
    }
    assert costs[-1] >= min(every.values()) - 1e-9
    for layer, other in itertools.product(range(3), subsets):
        if len(set(other) & set(turns[-1][layer])) == 1:
            swapped = [other if place == layer else own for place, own in enumerate(turns[-1])]
            assert expected(changes(layers, swapped)) >= costs[-1] - 1e-5 * (1 + abs(costs[-1]))


def test_layers_do_not_all_lean_on_the_same_tokens():
    """Expert 0 serves the first tokens, 1 the others, in both layers; one of them must go.

    Alone, both layers give up expert 1, whose tokens lose a little less.
    """
    logits = torch.tensor([[4.0, 0.0]] * 10 + [[0.0, 4.0]] * 10)
    effects = torch.tensor([[1.1, 0.0]] * 10 + [[0.0, 1.0]] * 10)
    layers = []
    for layer in range(2):
        scores = bare_scores(RouterRule(top_k=1, renormalize=True), logits, torch.zeros(20, 6))
        layers.append(LayerEffects(replace(scores, layer=layer, effects_SE=effects), 20))
    alone, *_, together = choose_together(layers, 1)
    assert alone == [(0,), (0,)]
    assert sorted(together) == [(0,), (1,)]


def test_pinned_experts_stay_in_every_turn():
    for seed, gone in ((3, 0), (4, 2)):
        free = layers_of(seed)
        *_, chosen = choose_together(free, 2)
        pinned = complement(chosen[gone], 4)
        free[gone].pinned = pinned[:1]
        for kept in choose_together(free, 2):
            assert pinned[0] in kept[gone]


def prune(folder, out, *more: str) -> int:
    scored = ["--scores", str(folder / "scores")] if "--scores" not in more else []
    return main(["prune", str(CHECKPOINT), "--keep", "4", "-o", str(out), *scored, *more])


def test_the_command_takes_effects_where_the_bundle_holds_them(folder, tmp_path):
    dump = ["--dump", str(tmp_path / "dump")]
    assert prune(folder, tmp_path / "out", "--method", "naee", "--spread", *dump) == 0
    manifest = read_manifest(tmp_path / "out")
    facts = manifest.settings["spread"]
    assert (facts["asked"], facts["rule"]) == ("auto", "effects")
    assert json.loads((tmp_path / "dump" / "results.json").read_text())["spread"] == facts
    assert 0 < facts["divergence"] <= facts["divergence_of_layers_alone"]
    domains = facts["domain_divergence"].values()
    assert facts["divergence"] == pytest.approx(sum(domains) / 2, abs=2e-6)
    checkpoint = open_model(CHECKPOINT)
    layers = [
        LayerEffects(one, IDS.numel()) for one in bundle_layers(folder / "scores", checkpoint)
    ]
    *_, chosen = choose_together(layers, 4)
    assert list(manifest.kept.values()) == [list(own) for own in chosen]


def test_the_command_aims_at_the_text_where_the_effects_are_the_text_s(folder, tmp_path):
    more = ["--scores", str(folder / "text"), "--method", "naee", "--spread"]
    assert prune(folder, tmp_path / "out", *more) == 0
    manifest = read_manifest(tmp_path / "out")
    facts, checkpoint = manifest.settings["spread"], open_model(CHECKPOINT)
    layers = [LayerEffects(one, IDS.numel()) for one in bundle_layers(folder / "text", checkpoint)]
    *_, chosen = choose_together(layers, 4, 1.0)
    assert list(manifest.kept.values()) == [list(own) for own in chosen]
    assert facts["log_loss"] == pytest.approx(log_loss(changes(layers, chosen)), abs=1e-6)
    assert facts["log_loss"] <= facts["log_loss_of_layers_alone"] and "divergence" not in facts
    assert facts["log_loss"] == pytest.approx(sum(facts["domain_log_loss"].values()) / 2, abs=2e-6)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--method", "reap", "--spread", "effects"], "is for --method naee"),
        (["--method", "naee", "--spread", "effects", "--search", "beam"], "search of its own"),
        (["--method", "naee", "--spread", "effects", "--scores", "plain"], "score --effects"),
    ],
)
def test_what_effects_cannot_decide_is_refused(more, words, folder, tmp_path, capsys):
    more = [str(folder / "plain") if word == "plain" else word for word in more]
    assert prune(folder, tmp_path / "out", *more) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_text_alone_holds_no_effects(tmp_path, capsys):
    more = ["--method", "naee", "--spread", "effects", "--data", CALIBRATION]
    assert main(["prune", str(CHECKPOINT), "--keep", "4", "-o", str(tmp_path / "o"), *more]) == 2
    assert "--data is scored without" in capsys.readouterr().err


def test_any_cut_is_told_what_its_predictions_are_expected_to_do(folder, tmp_path):
    """The figure that the choice by effects records, also of cuts that were chosen otherwise."""
    for out, method in (("spread", ("naee", "--spread")), ("reap", ("reap",))):
        assert prune(folder, tmp_path / out, "--method", *method) == 0
    by_effects, ranked = (read_manifest(tmp_path / out).settings for out in ("spread", "reap"))
    expected = by_effects["redundancy"]["expected_divergence"]
    assert expected == by_effects["spread"]["divergence"]
    assert expected < ranked["redundancy"]["expected_divergence"]


@pytest.mark.parametrize("bundle", ["scores", "text"])
def test_a_choice_by_effects_tells_what_it_found_and_reads_the_bundle_once(
    bundle, folder, tmp_path, monkeypatch
):
    """The same figure as a second look at the bundle gives."""
    passes = []
    read = ScoreBundle.layers
    monkeypatch.setattr(
        ScoreBundle, "layers", lambda self, rule: passes.append(rule) or read(self, rule)
    )
    scores = ["--scores", str(folder / bundle)]
    assert prune(folder, tmp_path / "out", "--method", "naee", "--spread", *scores) == 0
    assert len(passes) == 1
    manifest, checkpoint = read_manifest(tmp_path / "out"), open_model(CHECKPOINT)
    layers = list(bundle_layers(folder / bundle, checkpoint))
    expected = expected_divergence(layers, manifest.kept, IDS.numel())
    assert manifest.settings["redundancy"]["expected_divergence"] == round(expected, 6) > 0


CAUTION = {
    # (mean loss of outputs, nats): what is said, and what must not be.
    (0.61, 0.002): ("expected to diverge by 0.002 nats", "may collapse"),
    (0.61, 0.4): ("may collapse: its predictions are expected to diverge by 0.4 nats", "only"),
    (0.61, None): ("may collapse: the blocks' outputs change by 61%", "nats"),
    (0.02, 0.4): ("may collapse: its predictions are expected to diverge by 0.4 nats", "only"),
}


@pytest.mark.parametrize(("found", "said"), CAUTION.items(), ids=map(str, CAUTION))
def test_outputs_that_change_are_no_alarm_where_predictions_do_not(found, said):
    loss, nats = found
    note = Redundancy((0,), (loss,), (0.5,), (4.0,), 8, 256, nats).warning()
    assert said[0] in note
    assert said[1] not in note


def test_a_small_change_of_both_is_not_talked_about():
    assert Redundancy((0,), (0.02,), (0.5,), (4.0,), 8, 256, 0.002).warning() is None


DAMAGED = {
    "not finite": lambda effects: effects.index_fill(0, torch.tensor([2]), float("nan")),
    "expected [": lambda effects: effects[1:].clone(),
    "float64, expected": lambda effects: effects.double(),
}


@pytest.mark.parametrize(("said", "change"), DAMAGED.items(), ids=DAMAGED)
def test_effects_that_are_none_are_refused(said, change, folder, tmp_path, capsys):
    scores = shutil.copytree(folder / "scores", tmp_path / "scores")
    path = scores / effects_file(1)
    changed = change(load_file(path)["effects"].clone())
    path.unlink()
    save_file({"effects": changed}, path)
    forged(scores)
    assert prune(tmp_path, tmp_path / "out", "--method", "naee", "--spread") == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
