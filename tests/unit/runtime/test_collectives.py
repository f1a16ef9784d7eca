"""vLLM's dispatch of tokens and ids between two data-parallel ranks of a CPU, and its way back."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from leanmoe.process.environment import engine_environment
from leanmoe.process.ports import free_port

# By case, each rank brings rows of its own: [sizes[rank], 2] and ids, some of them -1.
RANK = """
import json, os, sys
from pathlib import Path
import torch
import torch.distributed as dist
from leanmoe_runtime import collectives
from leanmoe_runtime.compat import cpu_communicator_classes

folder, port, cases = sys.argv[1:]
other = os.fork()
rank = 0 if other else 1
dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
collectives.add_cpu_collectives()
communicator = object.__new__(cpu_communicator_classes()[0])
communicator.__dict__.update(
    device_group=dist.group.WORLD, world_size=2, rank_in_group=rank
)

def seen(sizes, dtype):
    x = torch.full((sizes[rank], 2), rank + 1.0, dtype=getattr(torch, dtype))
    weights = torch.full((sizes[rank], 2), 0.5)
    ids = torch.tensor([[rank, -1]] * sizes[rank], dtype=torch.int32).reshape(-1, 2)
    given = x.clone()
    gathered = communicator.all_gatherv([x, weights, ids], dim=0, sizes=sizes)
    # What a rank's share of the experts comes to: its number, for every row.
    partial = gathered[0] * (rank + 1)
    kept = partial.clone()
    back = communicator.reduce_scatterv(partial, dim=0, sizes=sizes)
    whole = communicator.all_gatherv(ids[:1].repeat(2, 1), dim=0)
    assert torch.equal(x, given) and torch.equal(partial, kept), "inputs are left as they are"
    assert back.dtype == x.dtype
    return {"x": gathered[0].tolist(), "ids": gathered[2].tolist(),
            "weights": gathered[1].tolist(), "back": back.tolist(), "whole": whole.tolist()}

Path(folder, str(rank)).write_text(json.dumps([seen(*case) for case in json.loads(cases)]))
dist.destroy_process_group()
assert not other or os.waitpid(other, 0)[1] == 0
"""
CASES = [([3, 1], "bfloat16"), ([2, 2], "float32")]


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> list[list[dict]]:
    """What each rank saw, case by case; the second forks off the first, which imported vLLM."""
    folder = tmp_path_factory.mktemp("ranks")
    subprocess.run(
        [sys.executable, "-c", RANK, str(folder), str(free_port()), json.dumps(CASES)],
        env=engine_environment(plugin=False),
        check=True,
        timeout=120,
    )
    return [json.loads((folder / str(rank)).read_text()) for rank in range(2)]


@pytest.mark.parametrize("case", range(len(CASES)), ids=[dtype for _, dtype in CASES])
def test_rows_and_ids_of_none_come_to_both_ranks_and_sums_go_back(both, case):
    sizes = CASES[case][0]
    first, second = (rank[case] for rank in both)
    rows = [[1.0, 1.0]] * sizes[0] + [[2.0, 2.0]] * sizes[1]
    ids = [[0, -1]] * sizes[0] + [[1, -1]] * sizes[1]
    for rank in (first, second):
        assert rank["x"] == rows and rank["ids"] == ids
        assert rank["weights"] == [[0.5, 0.5]] * 4
        assert rank["whole"] == [[0, -1]] * 2 + [[1, -1]] * 2
    # (1 + 2) times what the rank brought.
    assert first["back"] == [[3.0, 3.0]] * sizes[0]
    assert second["back"] == [[6.0, 6.0]] * sizes[1]
