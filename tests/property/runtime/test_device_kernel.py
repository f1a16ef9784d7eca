"""The devices' kernels, under Triton's interpreter, against the rule in torch and stock's order."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from leanmoe.messages import SkipMode
from leanmoe.skip_rule import SkipRule
from leanmoe_runtime.skip.rule import decide
from tests.property.runtime.kernel_process import KernelProcess
from tests.property.runtime.planning import FACTORS, thresholds

NAN, INF = float("nan"), float("inf")
MODES = [SkipMode.MASK, SkipMode.REDIRECT, SkipMode.ZERO]
DTYPES = [torch.float32, torch.bfloat16]
R = 102


@pytest.fixture(scope="module")
def kernel():
    process = KernelProcess()
    yield process
    process.close()


def ids_of(tokens: int, k: int, experts: int, seed: int) -> torch.Tensor:
    random = np.random.default_rng(seed)
    ids = np.stack([random.permutation(experts)[:k] for _ in range(tokens)])
    return torch.from_numpy(ids.astype(np.int32))


def table(**rows: float) -> torch.Tensor:
    betas = torch.zeros(R)
    for name, beta in rows.items():
        betas[int(name[1:])] = beta
    return betas


def check(kernel, weights, ids, betas, rows, *, experts, renormalize, mode, factors=None):
    """Kernel against reference; returns what the kernel gave."""
    rule = {"renormalize": renormalize, "mode": mode}
    reference = decide(weights, ids, betas, rows, factors_E=factors, **rule)
    found = kernel.call(weights, ids, betas, rows, experts=experts, factors=factors, **rule)
    assert found["weights"].dtype == weights.dtype and found["ids"].dtype == ids.dtype
    assert torch.equal(found["ids"], reference.ids_TK)
    unchanged = reference.keep_TK.all(dim=1)
    same = found["weights"][unchanged].flatten(), weights[unchanged].flatten()
    torch.testing.assert_close(*same, rtol=0, atol=0, equal_nan=True)
    tolerance = {"rtol": 1e-2, "atol": 1e-6} if weights.dtype == torch.bfloat16 else {}
    torch.testing.assert_close(found["weights"], reference.weights_TK, equal_nan=True, **tolerance)
    assert not found["weights"][~reference.keep_TK].any()
    expected = [
        reference.tokens,
        reference.skipped,
        reference.nonfinite,
        int(reference.tokens > 0),
        reference.distinct_experts,
        0,
    ]
    assert found["counts"][:6].tolist() == expected
    assert mass(found) == pytest.approx(reference.skipped_weight, rel=1e-5, abs=1e-6)
    lost = (~reference.keep_TK).sum(dim=1).tolist()
    assert found["skipped"].tolist() == lost + [0] * (len(rows) - len(lost))
    return found


def mass(found) -> float:
    return float(found["counts"][6])


WEIGHT = st.one_of(
    st.floats(2**-20, 1.0, width=32),
    st.sampled_from([0.0, 0.25, 0.5, 1.0]),  # ties are the rule, not the exception
    st.sampled_from([0.25, 0.5, NAN, INF, -INF]),
)


@st.composite
def steps(draw):
    """(weights, ids, betas, rows, experts, factors): tokens of any kind beside each other.

    Row 0 follows any rule, 1 and 2 are the ends of the published one, 3 to 5 one of each.
    """
    tokens, k = draw(st.integers(1, 70)), draw(st.integers(1, 9))
    experts = k + draw(st.integers(0, 30))
    pool = draw(st.lists(WEIGHT, min_size=2, max_size=8))
    seed = draw(st.integers(0, 2**16))
    random = np.random.default_rng(seed)
    weights = random.choice(np.array(pool, dtype=np.float32), size=(tokens, k))
    softened = random.dirichlet(np.ones(k), size=tokens).astype(np.float32)
    weights = np.where(random.random((tokens, 1)) < 0.5, weights, softened)
    betas = torch.from_numpy(random.random(R).astype(np.float32))
    betas[:3] = torch.tensor([draw(thresholds(k)), 0.0, 1.0])
    betas[3:6] = torch.tensor([draw(thresholds(k, rule)) for rule in SkipRule])
    rows = random.choice(np.array([0, 0, 1, 2, 3, 4, 5, 41, 101, 256, 256 + 41]), size=tokens)
    rows[draw(st.integers(0, tokens)) :] = -1  # padding lies behind a step's tokens
    dtype = draw(st.sampled_from(DTYPES))
    ids = ids_of(tokens, k, experts, seed)
    return (
        torch.from_numpy(weights).to(dtype),
        ids if draw(st.booleans()) else ids.long(),
        betas,
        torch.from_numpy(rows.astype(np.int32)),
        experts,
        torch.from_numpy(random.choice(FACTORS, size=experts)),
    )


@settings(max_examples=80)
@given(step=steps(), renormalize=st.booleans(), mode=st.sampled_from(MODES))
def test_kernel_and_reference_agree(kernel, step, renormalize, mode):
    *tensors, experts, factors = step
    rule = {"renormalize": renormalize, "mode": mode}
    check(kernel, *tensors, experts=experts, factors=factors, **rule)


@pytest.mark.parametrize("mode", MODES)
def test_thousands_of_tokens(kernel, mode):
    weights = torch.rand(3001, 8, generator=torch.Generator().manual_seed(1)).softmax(-1)
    rows = (torch.arange(3001) % 102).int()
    rows[2900:] = -1
    betas = torch.linspace(0, 1, R)
    betas[1::3] *= -1
    betas[2::3] = 2.0 + torch.arange(R)[2::3] % 8
    ids, factors = ids_of(3001, 8, 128, 1), torch.linspace(0.5, 2, 128)
    rule = {"renormalize": True, "mode": mode}
    check(kernel, weights, ids, betas, rows, experts=128, factors=factors, **rule)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("renormalize", [True, False])
@pytest.mark.parametrize("mode", MODES)
def test_all_but_one_are_skipped_at_beta_one(kernel, mode, renormalize, dtype):
    weights = torch.tensor([[0.1, 0.2, 0.5, 0.15, 0.05]]).to(dtype)
    ids = torch.tensor([[9, 7, 5, 3, 1]], dtype=torch.int32)
    rows = torch.zeros(1, dtype=torch.int32)
    found = check(
        kernel,
        weights,
        ids,
        table(r0=1.0),
        rows,
        experts=10,
        renormalize=renormalize,
        mode=mode,
    )
    expected = {
        SkipMode.MASK: [-1, -1, 5, -1, -1],
        SkipMode.REDIRECT: [5] * 5,
        SkipMode.ZERO: [9, 7, 5, 3, 1],
    }
    assert found["ids"].tolist() == [expected[mode]]
    assert float(found["weights"][0, 2]) == pytest.approx(1.0 if renormalize else 0.5, rel=1e-2)
    assert found["counts"][:5].tolist() == [1, 4, 0, 1, 5 if mode is SkipMode.ZERO else 1]
    assert mass(found) == pytest.approx(0.5, rel=1e-2)


@pytest.mark.parametrize("mode", MODES)
def test_ties_with_the_top_survive_and_the_first_of_them_is_pointed_at(kernel, mode):
    weights = torch.tensor([[0.2, 0.4, 0.4], [0.3, 0.3, 0.3]])
    ids = torch.tensor([[4, 2, 0], [1, 3, 2]], dtype=torch.int32)
    rows = torch.zeros(2, dtype=torch.int32)
    found = check(kernel, weights, ids, table(r0=1.0), rows, experts=5, renormalize=True, mode=mode)
    assert found["counts"][:2].tolist() == [2, 1]
    if mode is SkipMode.REDIRECT:
        assert found["ids"][0].tolist() == [2, 2, 0]


def test_rows_below_zero_everywhere_change_and_count_nothing(kernel):
    weights, ids = torch.rand(40, 4).softmax(-1), ids_of(40, 4, 8, 3)
    rows = torch.full((64,), -1, dtype=torch.int32)
    found = check(
        kernel,
        weights,
        ids,
        torch.ones(R),
        rows,
        experts=8,
        renormalize=True,
        mode=SkipMode.MASK,
    )
    assert torch.equal(found["weights"], weights) and torch.equal(found["ids"], ids)
    assert found["counts"].tolist() == [0] * 7


def test_padding_beside_one_real_token_stays_as_it_is(kernel):
    weights, ids = torch.rand(33, 3).softmax(-1), ids_of(33, 3, 6, 4)
    rows = torch.full((33,), -1, dtype=torch.int32)
    rows[0] = 0
    found = check(
        kernel, weights, ids, table(r0=1.0), rows, experts=6, renormalize=True, mode=SkipMode.MASK
    )
    assert torch.equal(found["ids"][1:], ids[1:])
    assert found["counts"][:5].tolist() == [1, 2, 0, 1, 1]


@pytest.mark.parametrize("k", [1, 3, 8])
@pytest.mark.parametrize("beta", [0.0, 1.0])
def test_the_ends_of_beta_at_any_k(kernel, k, beta):
    weights, ids = torch.rand(7, k).softmax(-1), ids_of(7, k, 12, k)
    rows = torch.zeros(7, dtype=torch.int32)
    found = check(
        kernel,
        weights,
        ids,
        table(r0=beta),
        rows,
        experts=12,
        renormalize=True,
        mode=SkipMode.REDIRECT,
    )
    assert int(found["counts"][1]) == (0 if beta == 0.0 else 7 * (k - 1))
    if beta == 0.0:
        assert torch.equal(found["weights"], weights)


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
def test_a_token_whose_weights_are_no_numbers_keeps_everything(kernel, bad):
    weights = torch.tensor([[bad, 0.5, 0.1], [0.7, 0.2, 0.1]])
    ids = torch.tensor([[0, 1, 2], [3, 4, 5]], dtype=torch.int32)
    rows = torch.zeros(2, dtype=torch.int32)
    found = check(
        kernel, weights, ids, table(r0=1.0), rows, experts=6, renormalize=True, mode=SkipMode.MASK
    )
    assert found["ids"].tolist() == [[0, 1, 2], [3, -1, -1]]
    assert found["counts"][:5].tolist() == [2, 2, 1, 1, 4]


@pytest.mark.parametrize("beta", [0.5, NAN])
def test_the_top_survives_a_threshold_it_does_not_reach(kernel, beta):
    """A router may hand out negative weights; half of the largest lies above it then."""
    weights, ids = torch.tensor([[-0.4, -0.1]]), torch.tensor([[0, 1]], dtype=torch.int32)
    rows = torch.zeros(1, dtype=torch.int32)
    found = check(
        kernel, weights, ids, table(r0=beta), rows, experts=2, renormalize=False, mode=MODES[0]
    )
    assert found["ids"].tolist() == [[-1, 1]]


def test_tokens_past_the_end_of_the_rows_keep_everything(kernel):
    weights, ids = torch.rand(40, 2).softmax(-1), ids_of(40, 2, 4, 0)
    rows = torch.zeros(3, dtype=torch.int32)
    found = kernel.call(
        weights, ids, torch.ones(R), rows, experts=4, renormalize=True, mode=SkipMode.MASK
    )
    assert torch.equal(found["ids"][3:], ids[3:])
    assert found["counts"][:2].tolist() == [3, 3]


def test_a_row_past_the_table_keeps_everything(kernel):
    weights, ids = torch.tensor([[0.9, 0.1]]), torch.tensor([[0, 1]], dtype=torch.int32)
    rows = torch.tensor([200], dtype=torch.int32)
    found = check(
        kernel, weights, ids, torch.ones(R), rows, experts=2, renormalize=True, mode=SkipMode.MASK
    )
    assert found["counts"][:5].tolist() == [1, 0, 0, 1, 2]


@pytest.mark.parametrize("only", [False, True])
def test_counters_add_up_over_calls_and_experts_are_counted_anew_in_each(kernel, only):
    """Several programs per call; a call without a counted token is no step."""
    betas, ids = table(r0=0.0, r5=1.0), ids_of(100, 2, 3, 0)
    expected = np.zeros(5)
    for turn, row in enumerate([0, 5, -1, 5]):
        weights = torch.rand(100, 2, generator=torch.Generator().manual_seed(turn)).softmax(-1)
        rows = torch.full((100,), row, dtype=torch.int32)
        rule = {"renormalize": True, "mode": SkipMode.MASK}
        kept = {"experts": 3, "fresh": turn == 0, "only": only}
        found = kernel.call(weights, ids, betas, rows, **kept, **rule)
        one = decide(weights, ids, betas, rows, **rule)
        expected += [one.tokens, one.skipped, 0, int(one.tokens > 0), one.distinct_experts]
        assert found["counts"][:5].tolist() == expected.tolist()
    assert expected[3] == 3


def test_experts_past_the_first_words_of_bits_are_counted(kernel):
    ids = torch.tensor([[0, 31, 32, 63, 64, 299]], dtype=torch.int32)
    weights, rows = torch.full((1, 6), 1 / 6), torch.zeros(1, dtype=torch.int32)
    rule = {"renormalize": True, "mode": SkipMode.MASK}
    found = kernel.call(weights, ids, torch.zeros(R), rows, experts=300, **rule)
    assert found["counts"][:5].tolist() == [1, 0, 0, 1, 6]


def stock_weights(logits: torch.Tensor, top_k: int, *, renormalize: bool):
    """``csrc/moe/topk_softmax_kernels.cu`` in NumPy: each addition in float32, in its order."""
    experts = logits.shape[1]
    rows = logits.float().numpy()
    raised = np.exp(rows - rows.max(1, keepdims=True))
    at = stock_lanes(experts, logits.element_size())
    if at is None:
        total = block_total(raised)
    else:
        threads, loads, side_by_side = at
        by_load = raised.reshape(len(rows), loads, threads, side_by_side)
        lanes = np.zeros((len(rows), threads), dtype=np.float32)
        for load in range(loads):
            for value in range(side_by_side):
                lanes = lanes + by_load[:, load, :, value]
        while lanes.shape[1] > 1:
            half = lanes.shape[1] // 2
            lanes = lanes[:, :half] + lanes[:, half:]
        total = lanes[:, 0]
    scores = raised * (np.float32(1) / total)[:, None]
    ids = np.argsort(-scores, axis=1, kind="stable")[:, :top_k]
    weights = np.take_along_axis(scores, ids, 1)
    scale = np.ones(len(rows), dtype=np.float32)
    if renormalize:
        chosen = np.zeros(len(rows), dtype=np.float32)
        for slot in range(top_k):
            chosen = chosen + weights[:, slot]
        scale = scale / chosen
    return weights * scale[:, None], ids


def stock_lanes(experts: int, item_size: int) -> tuple[int, int, int] | None:
    """(threads of a row, loads of each, values of a load) of ``topkGatingLauncherHelper``."""
    if experts & (experts - 1) and experts not in (192, 320, 384, 448, 576):
        return None
    most = 16 if not experts & (experts - 1) else (4 if item_size == 2 else 8)
    side_by_side = min(most, item_size * experts) // item_size
    loads = max(1, experts // (side_by_side * 32))
    return experts // (loads * side_by_side), loads, side_by_side


def block_total(raised: np.ndarray) -> np.ndarray:
    """CUB's block sum of 256 threads: neighbours in a warp, then one warp after the other."""
    lanes = np.zeros((len(raised), 256), dtype=np.float32)
    lanes[:, : raised.shape[1]] = raised
    warps = lanes.reshape(len(raised), 8, 32)
    while warps.shape[2] > 1:
        warps = warps[:, :, 0::2] + warps[:, :, 1::2]
    total = warps[:, 0, 0]
    for warp in range(1, 8):
        total = total + warps[:, warp, 0]
    return total


@pytest.mark.parametrize("renormalize", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("experts", "top_k"),
    [(2, 1), (5, 2), (8, 2), (60, 4), (64, 8), (128, 8), (192, 6), (256, 8), (384, 2), (512, 10)],
)
def test_the_routing_launch_adds_in_stock_s_order(kernel, experts, top_k, dtype, renormalize):
    logits = torch.randn(9, experts, generator=torch.Generator().manual_seed(experts)).to(dtype)
    wanted, ids = stock_weights(logits, top_k, renormalize=renormalize)
    shape = {"n_experts": experts, "top_k": top_k, "scoring": 0, "renormalize": renormalize}
    found = kernel.route(logits, **shape)
    assert found["ids"].tolist() == ids.tolist()
    assert found["weights"].numpy().tobytes() == wanted.tobytes()


def test_logits_that_are_no_numbers_choose_the_first_experts(kernel):
    logits = torch.full((1, 8), NAN)
    shape = {"n_experts": 8, "top_k": 2, "scoring": 0, "renormalize": True}
    found = kernel.route(logits, **shape)
    assert found["ids"].tolist() == [[0, 1]] and found["weights"].tolist() == [[0.0, 0.0]]


@pytest.mark.slow
@pytest.mark.parametrize("capability", [80, 90, 100])
def test_the_kernels_compile_for_a_gpu_that_is_not_here(capability):
    """The interpreter takes types that the compiler refuses."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.property.runtime.compiled", str(capability)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout)
    assert {name for name, _ in found} == {
        *("route_kernel", "decide_kernel", "weigh_kernel", "spend_kernel"),
        *("harvest_kernel", "forget_kernel", "sum_kernel"),
    }
    # Nothing is computed in double precision: cards for inference have little of it.
    assert all(ptx.count(".f64") == 0 for _, ptx in found)
