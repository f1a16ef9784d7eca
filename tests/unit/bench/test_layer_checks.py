"""The checks for a release on a GPU pass a layer that is right and name one that is wrong."""

import pytest
import torch

from leanmoe.messages import SkipMode
from leanmoe_bench.gpu.layer_checks import run_all
from leanmoe_runtime.skip.rule import decide

E, D, K = 8, 4, 2
EXPERTS_EDD = torch.randn(E, D, D, generator=torch.Generator().manual_seed(0))


class Layer:
    """A layer in plain torch whose workspace, graph and counters can be broken one by one."""

    def __init__(self, broken: str = "") -> None:
        self.broken, self.stale, self.count = broken, 0.0, 0

    def inputs(self, tokens, seed):
        random = torch.Generator().manual_seed(seed)
        return tuple(torch.randn(tokens, size, generator=random) for size in (D, E))

    def _experts(self, hidden, weights, ids):
        rows_TKD = torch.einsum("td,tkde->tke", hidden, EXPERTS_EDD[ids.clamp(min=0).long()])
        rows_TKD = rows_TKD * weights[..., None]
        unwritten = self.stale if self.broken == "workspace" else 0.0
        return torch.where((ids < 0)[..., None], unwritten, rows_TKD).sum(1)

    def stock(self, inputs):
        return self._experts(inputs[0], *inputs[1].softmax(-1).topk(K))

    def ours(self, inputs, beta, *, zero=False):
        weights, ids = inputs[1].softmax(-1).topk(K)
        rows = torch.zeros(len(ids), dtype=torch.int32)
        made = decide(
            weights,
            ids,
            torch.tensor([beta]),
            rows,
            renormalize=self.broken == "level 0" or beta > 0,
            mode=SkipMode.ZERO if zero else SkipMode.MASK,
        )
        self.count += 0 if self.broken == "counter" else made.skipped
        shift = 1e-3 if self.broken == "level 0" else 0.0
        size = len(ids) if self.broken == "size" else 0
        return self._experts(inputs[0], made.weights_TK, made.ids_TK) + shift + size

    def replayer(self, inputs):
        if self.broken == "capture":
            raise RuntimeError("operation not permitted when stream is capturing")
        if self.broken == "graph":
            return lambda beta: self.ours(inputs, 0.5)
        return lambda beta: self.ours(inputs, beta)

    def poison(self):
        self.stale = float("nan")

    def skipped(self):
        return self.count


def failed(broken: str) -> set[str]:
    results = run_all(Layer(broken), border=1, tolerance=1e-4)
    return {name for name, result in results.items() if not result["passed"]}


def test_a_layer_that_is_right_passes():
    assert failed("") == set()


@pytest.mark.parametrize(
    ("broken", "check"),
    [
        ("workspace", "mode_equals_zero_on_poison"),
        ("level 0", "exact_at_beta_0"),
        ("graph", "graph_replay_follows_beta"),
        ("capture", "graph_replay_follows_beta"),
        ("counter", "mode_equals_zero_on_poison"),
        ("size", "one_token_as_many"),
    ],
)
def test_a_layer_that_is_wrong_is_found(broken, check):
    assert check in failed(broken)


def test_an_error_in_one_check_is_reported_and_the_others_run():
    results = run_all(Layer("capture"), border=1, tolerance=1e-4)
    assert "capturing" in results["graph_replay_follows_beta"]["error"]
    assert results["one_token_as_many"]["passed"]
