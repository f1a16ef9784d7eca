"""A layer's scores, measured fast and by several threads, against their plain definition."""

from __future__ import annotations

from dataclasses import replace
from threading import Event

import pytest
import torch

from leanmoe.checkpoint import open_checkpoint
from leanmoe.cli import main
from leanmoe_bench.offline.plain_scores import plain_scores
from leanmoe_pruning.checkpoints.opening import open_runnable_model
from leanmoe_pruning.forward.stream import DecoderStream
from leanmoe_pruning.scores import measuring
from leanmoe_pruning.scores.measuring import measure_chunk
from leanmoe_pruning.scores.passing import most_at_once
from leanmoe_pruning.scores.sampling import evenly_spaced
from leanmoe_pruning.scores.threads import in_order
from tests.golden.naee_data import CALIBRATION, CHECKPOINT

WINDOWS, LENGTH = 3, 40


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def measured(request):
    """A layer, windows that enter its block, and its scores as they are defined."""
    with torch.inference_mode():
        stream = DecoderStream(open_runnable_model(CHECKPOINT), request.param)
        generator = torch.Generator().manual_seed(0)
        ids_NT = torch.randint(0, 100, (WINDOWS, LENGTH), generator=generator)
        layer, chunk_NTD = stream.layer(1), stream.embed(ids_NT)
        return layer, chunk_NTD, plain_scores(layer, chunk_NTD)


def assert_same(found, expected, rows) -> None:
    assert torch.equal(found.router_logits_TE, expected.router_logits_TE)
    torch.testing.assert_close(found.output_norm_TK, expected.output_norm_TK, rtol=1e-6, atol=0)
    torch.testing.assert_close(found.max_activation_E, expected.max_activation_E, rtol=1e-6, atol=0)
    torch.testing.assert_close(found.peak_output_E, expected.peak_output_E, rtol=1e-6, atol=0)
    gram_TP = expected.output_gram_TP[rows]
    torch.testing.assert_close(found.output_gram_TP, gram_TP, rtol=1e-12, atol=1e-12)


def assert_same_sums(found, expected, *but: str) -> None:
    for name, sums in expected.moments.tensors().items():
        if name not in but:
            other = found.moments.tensors()[name]
            torch.testing.assert_close(other, sums, rtol=1e-13, atol=0, msg=name)


@torch.inference_mode()
def test_all_tokens_sampled(measured):
    layer, chunk_NTD, (expected, output_TD) = measured
    found, found_TD = measure_chunk(layer, chunk_NTD)
    assert_same(found, expected, slice(None))
    assert_same_sums(found, expected)
    assert torch.equal(found_TD, output_TD)


@torch.inference_mode()
@pytest.mark.parametrize("most_bytes", [measuring.MOST_OUTPUT_BYTES, 20_000])
def test_some_tokens_sampled_in_slices(measured, most_bytes, monkeypatch):
    layer, chunk_NTD, (expected, _) = measured
    monkeypatch.setattr(measuring, "MOST_OUTPUT_BYTES", most_bytes)
    sampled = evenly_spaced(WINDOWS * LENGTH, 7)
    found, _ = measure_chunk(layer, chunk_NTD, sampled=sampled)
    # Products of other numbers of rows may differ in their last bit of float32 or of bfloat16.
    close = 1e-5 if layer.experts.dtype == torch.float32 else 2e-2
    for one, other in (
        (found.output_gram_TP, expected.output_gram_TP[sampled]),
        (found.output_norm_TK, expected.output_norm_TK),
        (found.moments.hidden_EF, expected.moments.hidden_EF),
        (found.moments.gated_input_ED, expected.moments.gated_input_ED),
    ):
        torch.testing.assert_close(one, other, rtol=close, atol=close * float(other.abs().max()))
    assert torch.equal(found.moments.calls_E, expected.moments.calls_E)
    for expert in range(len(layer.experts)):
        x_SD = layer.block_input(chunk_NTD)[sampled]
        sums_F = layer.experts.hidden(expert, x_SD).double().square().sum(0)
        torch.testing.assert_close(
            found.moments.all_hidden_EF[expert],
            sums_F,
            rtol=close,
            atol=close * float(sums_F.max()),
        )


def test_one_thread_and_three_give_the_same_bytes(tmp_path, monkeypatch):
    monkeypatch.setattr("leanmoe_pruning.scores.activations.PORTION_TOKENS", 40)
    before, found = torch.get_num_threads(), []
    for threads in (1, 3):
        torch.set_num_threads(threads)
        out = tmp_path / str(threads)
        try:
            assert main(["score", str(CHECKPOINT), "--data", CALIBRATION, "-o", str(out)]) == 0
            assert torch.get_num_threads() == threads
        finally:
            torch.set_num_threads(before)
        found.append({path.name: path.read_bytes() for path in out.iterdir()})
    assert found[0] == found[1]


@pytest.fixture(params=[1, 3])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    assert torch.get_num_threads() == request.param
    torch.set_num_threads(before)


def test_results_come_in_order_whoever_is_first(threads):
    second_is_done = Event()

    def work(item: int) -> tuple[int, bool, int]:
        if item == 1:
            second_is_done.set()
        if item == 0 and threads > 1:
            assert second_is_done.wait(60)
        return item, torch.is_inference_mode_enabled(), torch.get_num_threads()

    with torch.inference_mode():
        assert list(in_order(work, range(10), 9)) == [(item, True, 1) for item in range(10)]


def test_where_few_fit_into_memory_threads_share_out_operations(threads):
    def work(item: int) -> int:
        return torch.get_num_threads()

    assert list(in_order(work, range(4), 1)) == [threads] * 4
    assert list(in_order(work, range(4), 2)) == [1] * 4


@pytest.mark.parametrize(
    ("experts", "hidden", "ffn", "most"),
    [(8, 576, 1536, 20), (8, 4096, 14336, 2), (256, 7168, 2048, 3)],
)
def test_portions_at_once_stay_within_a_gibibyte(experts, hidden, ffn, most):
    held = {"n_routed_experts": experts, "hidden_size": hidden, "expert_ffn_size": ffn}
    shape = replace(open_checkpoint(CHECKPOINT).shape, **held)
    assert most <= most_at_once(shape) <= 2 * most


def test_items_are_not_taken_far_ahead(threads):
    taken = []

    def items():
        for item in range(100):
            taken.append(item)
            yield item

    found = in_order(lambda item: item, items(), 9)
    assert next(found) == 0
    assert len(taken) <= threads + 1
    found.close()


def test_what_goes_wrong_in_a_thread_is_told(threads):
    def work(item: int) -> int:
        if item == 4:
            raise ValueError(f"item {item}")
        return item

    with pytest.raises(ValueError, match="item 4"):
        list(in_order(work, range(100), 9))
