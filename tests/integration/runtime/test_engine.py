"""The plugin inside a real vLLM engine: exact at level 0, counted right at any other."""

import json

import numpy as np
import pytest

LAYERS = 4
PROMPTS = [[7 + (13 * i + 5 * j) % 400 for j in range(4 + i % 9)] for i in range(20)]
PAIRS = [("stock_eager", "ours_eager"), ("stock_compiled", "ours_compiled")]


def betas(value: float) -> dict[int, float]:
    return dict.fromkeys(range(LAYERS), value)


@pytest.mark.parametrize(("stock", "ours"), PAIRS)
def test_level_zero_gives_stock_tokens_on_twenty_greedy_prompts(stock, ours, request):
    expected = request.getfixturevalue(stock).generate(PROMPTS, 24)
    engine = request.getfixturevalue(ours)
    engine.set_betas(betas(0.0))
    assert engine.generate(PROMPTS, 24) == expected


@pytest.mark.parametrize("ours", ["ours_eager", "ours_compiled"])
def test_a_level_set_live_changes_the_next_tokens_and_can_be_taken_back(ours, request):
    engine = request.getfixturevalue(ours)
    engine.set_betas(betas(0.0))
    exact = engine.generate(PROMPTS, 16)
    engine.set_betas(betas(1.0))
    skipped = engine.generate(PROMPTS, 16)
    engine.set_betas(betas(0.0))
    assert skipped != exact
    assert engine.generate(PROMPTS, 16) == exact


@pytest.mark.parametrize("ours", ["ours_eager", "ours_compiled"])
def test_counters_know_every_token_and_top_one_skips_the_rest(ours, request):
    engine = request.getfixturevalue(ours)
    before = engine.set_betas(betas(1.0))
    engine.generate(PROMPTS, 5)
    tokens = sum(len(prompt) for prompt in PROMPTS) + len(PROMPTS) * 4
    for old, new in zip(before.layers, engine.snapshot().layers, strict=True):
        assert new.tokens - old.tokens == tokens
        assert new.routed - old.routed == 2 * tokens
        # bf16 logits tie now and then, and a tie with the largest reaches it.
        assert 0.98 * tokens <= new.skipped - old.skipped <= tokens


def test_skip_counts_equal_a_recount_from_the_router_logits(ours_eager):
    assert ours_eager.rpc("record_logits") == LAYERS
    wanted = {layer: 0.5 + 0.1 * layer for layer in range(LAYERS)}
    before = ours_eager.set_betas(wanted)
    ours_eager.rpc("take_logits")
    ours_eager.generate(PROMPTS, 12)
    logits = ours_eager.rpc("take_logits")
    for old, new in zip(before.layers, ours_eager.snapshot().layers, strict=True):
        rows_TE = np.asarray(logits[str(new.layer)], dtype=np.float32)
        top_T2 = np.sort(rows_TE, axis=1)[:, -2:]
        ratio_T = np.exp(top_T2[:, 0] - top_T2[:, 1])
        near = np.abs(ratio_T - wanted[new.layer]) < 1e-6
        assert not near.any(), "a ratio lies on the threshold: the recount would be ambiguous"
        assert new.tokens - old.tokens == len(rows_TE)
        assert new.skipped - old.skipped == int((ratio_T < wanted[new.layer]).sum())


@pytest.mark.parametrize("ours", ["ours_eager", "ours_compiled"])
def test_the_handshake_names_every_layer_as_wrapped(ours, request):
    report = request.getfixturevalue(ours).handshake()
    assert [layer.layer for layer in report.layers] == list(range(LAYERS))
    assert report.problems == []
    assert all(layer.wrapped and layer.modular and layer.top_k == 2 for layer in report.layers)
    assert {layer.n_routed_experts for layer in report.layers} == {8}


def test_weight_bytes_are_the_checkpoint_s(ours_eager, tiny_model):
    index = sum(file.stat().st_size for file in tiny_model.glob("*.safetensors"))
    assert ours_eager.handshake().weight_bytes == pytest.approx(index, rel=0.02)


def test_a_policy_for_the_wrong_layers_changes_nothing(ours_eager):
    ours_eager.set_betas(betas(0.0))
    with pytest.raises(Exception, match="betas for 3 layers and none for layer 3 of the 4"):
        ours_eager.set_betas(dict.fromkeys(range(3), 0.5))
    assert ours_eager.snapshot().level == 0.0


def test_an_engine_without_the_plugin_has_no_handshake(stock_eager):
    with pytest.raises(Exception, match="leanmoe_handshake"):
        stock_eager.rpc("leanmoe_handshake")


def test_messages_cross_the_process_border_as_json(ours_eager):
    assert json.loads(ours_eager.rpc("leanmoe_snapshot"))["worker"] == "rank0"


def test_nothing_is_compiled_again_when_the_level_changes(ours_compiled):
    ours_compiled.set_betas(betas(0.0))
    ours_compiled.generate(PROMPTS, 6)
    before = ours_compiled.rpc("compiled")
    for beta in (0.3, 1.0, 0.0):
        ours_compiled.set_betas(betas(beta))
        ours_compiled.generate(PROMPTS, 6)
    assert ours_compiled.rpc("compiled") == before
    ours_compiled.rpc("compile_something")
    assert ours_compiled.rpc("compiled") > before
