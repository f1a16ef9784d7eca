"""vLLM's dispatch of tokens and ids between two data-parallel ranks of a CPU, and its way back."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from leanmoe.process.environment import engine_environment
from leanmoe.process.ports import free_port

# Each rank brings rows of its own: [sizes[rank], 2] and ids, some of them -1.
RANK = """
import json, sys
import torch
import torch.distributed as dist
from types import SimpleNamespace
from leanmoe_runtime import collectives
from leanmoe_runtime.compat import cpu_communicator_classes

rank, port, sizes = int(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3])
dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
collectives.add_cpu_collectives()
communicator = object.__new__(cpu_communicator_classes()[0])
communicator.__dict__.update(
    device_group=dist.group.WORLD, world_size=2, rank_in_group=rank
)
dtype = getattr(torch, sys.argv[4])
x = torch.full((sizes[rank], 2), rank + 1.0, dtype=dtype)
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
print(json.dumps({"x": gathered[0].tolist(), "ids": gathered[2].tolist(),
                  "weights": gathered[1].tolist(), "back": back.tolist(), "whole": whole.tolist()}))
dist.destroy_process_group()
"""


def both(sizes: list[int], dtype: str) -> list[dict]:
    port = str(free_port())
    command = [sys.executable, "-c", RANK]
    started = [
        subprocess.Popen(
            [*command, str(rank), port, json.dumps(sizes), dtype],
            env=engine_environment(plugin=False),
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    said = [process.communicate(timeout=120)[0] for process in started]
    assert [process.returncode for process in started] == [0, 0]
    return [json.loads(one.strip().splitlines()[-1]) for one in said]


@pytest.mark.parametrize(("sizes", "dtype"), [([3, 1], "bfloat16"), ([2, 2], "float32")])
def test_rows_and_ids_of_none_come_to_both_ranks_and_sums_go_back(sizes, dtype):
    first, second = both(sizes, dtype)
    rows = [[1.0, 1.0]] * sizes[0] + [[2.0, 2.0]] * sizes[1]
    ids = [[0, -1]] * sizes[0] + [[1, -1]] * sizes[1]
    for rank in (first, second):
        assert rank["x"] == rows and rank["ids"] == ids
        assert rank["weights"] == [[0.5, 0.5]] * 4
        assert rank["whole"] == [[0, -1]] * 2 + [[1, -1]] * 2
    # (1 + 2) times what the rank brought.
    assert first["back"] == [[3.0, 3.0]] * sizes[0]
    assert second["back"] == [[6.0, 6.0]] * sizes[1]
