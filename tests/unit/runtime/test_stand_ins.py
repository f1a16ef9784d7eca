"""Stand-ins beside a kernel: what the kernel is given, and what is added to it."""

from __future__ import annotations

import pytest
import torch

from leanmoe_runtime.stand_ins import StandIns, beside, taken

EXPERTS, GONE, WIDTH, RANK = 6, (1, 4), 5, 2


def drawn(*size: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed))


def loaded(rank: int) -> StandIns:
    """Two of six experts gone, what stands in for them loaded by the names of the files."""
    stand_ins = StandIns(GONE, rank, EXPERTS, WIDTH, torch.float32, "cpu")
    assert stand_ins.missing() == list(GONE)
    names: list[str] = []
    parts = {"approx_value": (WIDTH,), "approx_in": (rank, WIDTH), "approx_out": (rank, WIDTH)}
    given = [
        (f"{expert}.{part}", drawn(*size, seed=10 * expert + len(part)))
        for expert in GONE
        for part, size in parts.items()
        if rank or part == "approx_value"
    ]
    given.append(("0.w1.weight", drawn(2, 2)))
    rest = [name for name, _ in taken(stand_ins, given, names)]
    assert rest == ["0.w1.weight"] and names == [name for name, _ in given[:-1]]
    assert stand_ins.missing() == []
    return stand_ins


MATRICES = drawn(EXPERTS - len(GONE), WIDTH, WIDTH, seed=1)
KEPT = [expert for expert in range(EXPERTS) if expert not in GONE]
SEEN: list[torch.Tensor] = []


def kernel(x_TD: torch.Tensor, weights_TK: torch.Tensor, row_TK: torch.Tensor) -> torch.Tensor:
    """Experts that are a matrix each, by row; an id of none would be wrong here, as in vLLM's."""
    assert int(row_TK.min()) >= 0
    SEEN.append(row_TK)
    every_TED = torch.einsum("td,edo->teo", x_TD, MATRICES)
    chosen_TKD = every_TED.gather(1, row_TK.long()[:, :, None].expand(-1, -1, WIDTH))
    return (chosen_TKD * weights_TK[:, :, None]).sum(1)


def expected(stand_ins: StandIns, rank: int, x_TD, weights_TK, ids_TK) -> torch.Tensor:
    """Expert by expert, written out."""
    held = dict(stand_ins.holders())
    total_TD = torch.zeros_like(x_TD)
    for token, (weights, ids) in enumerate(zip(weights_TK, ids_TK.tolist(), strict=True)):
        for weight, expert in zip(weights, ids, strict=True):
            x_D = x_TD[token]
            if expert in GONE:
                part = held[str(expert)]
                y_D = part.approx_value
                if rank:
                    y_D = y_D + (part.approx_in @ x_D) @ part.approx_out
            else:
                y_D = x_D @ MATRICES[KEPT.index(expert)]
            total_TD[token] += weight * y_D
    return total_TD


@pytest.mark.parametrize("rank", [0, RANK])
@pytest.mark.parametrize("ids", [[[0, 1], [2, 3], [4, 1]], [[0, 2], [3, 5]], [[1, 4]], [[1]]])
@torch.inference_mode()
def test_a_kernel_beside_stand_ins_gives_both(rank, ids):
    stand_ins, ids_TK = loaded(rank), torch.tensor(ids, dtype=torch.int32)
    x_TD = drawn(len(ids), WIDTH, seed=2)
    weights_TK = drawn(*ids_TK.shape, seed=3).abs()
    SEEN.clear()
    found_TD = beside(stand_ins, kernel, adds=True)(x_TD, weights_TK, ids_TK)
    wanted_TD = expected(stand_ins, rank, x_TD, weights_TK, ids_TK)
    torch.testing.assert_close(found_TD, wanted_TD, rtol=1e-5, atol=1e-5)
    there = sum(expert not in GONE for row in ids for expert in row)
    assert sum(rows.numel() for rows in SEEN) == there


@torch.inference_mode()
def test_slots_of_weight_zero_are_not_computed():
    stand_ins, x_TD = loaded(0), drawn(2, WIDTH)
    weights_TK = torch.tensor([[1.0, 0.0], [0.5, 0.5]])
    ids_TK = torch.tensor([[1, 1], [0, 2]], dtype=torch.int32)
    SEEN.clear()
    found_TD = beside(stand_ins, kernel, adds=True)(x_TD, weights_TK, ids_TK)
    wanted_TD = expected(stand_ins, 0, x_TD, weights_TK, ids_TK)
    torch.testing.assert_close(found_TD, wanted_TD, rtol=1e-5, atol=1e-5)
    assert [rows.tolist() for rows in SEEN] == [[[0], [1]]]


@torch.inference_mode()
def test_one_rank_alone_adds_the_stand_ins():
    stand_ins, x_TD, ids_TK = loaded(RANK), drawn(1, WIDTH), torch.tensor([[1, 0]])
    weights_TK = torch.tensor([[0.5, 0.5]])
    first, other = (beside(stand_ins, kernel, one)(x_TD, weights_TK, ids_TK) for one in (1, 0))
    added_TD = stand_ins.output(x_TD, weights_TK, ids_TK)
    torch.testing.assert_close(first - other, added_TD, rtol=1e-5, atol=1e-5)


def test_rows_and_stand_ins_leave_out_what_was_skipped():
    stand_ins = loaded(0)
    ids_TK = torch.tensor([[0, -1], [1, 5], [-1, 3]], dtype=torch.int32)
    assert stand_ins.rows(ids_TK).tolist() == [[0, -1], [-1, 3], [-1, 2]]
    only_second = stand_ins.output(drawn(3, WIDTH), torch.ones(3, 2), ids_TK)
    assert [bool(row.any()) for row in only_second] == [False, True, False]
    assert [stand_ins.row(expert) for expert in range(EXPERTS)] == [0, -1, 1, 2, -1, 3]
