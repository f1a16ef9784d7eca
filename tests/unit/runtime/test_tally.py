"""Accounts of requests: their tokens and skipped assignments, however steps mix them."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from leanmoe_runtime.device.rows import DeviceSkipped
from leanmoe_runtime.requests import Batch
from leanmoe_runtime.skip.cpu import Planner
from leanmoe_runtime.state import LayerState
from leanmoe_runtime.tally import HostSkipped, Ran, Tally


class Engine:
    """A tally and the buffer its layers write."""

    def __init__(self) -> None:
        self.counted = HostSkipped()
        self.tally = Tally(self.counted)

    def step(self, skipped_of: dict[str, list[int]], *, finished=(), alive=None, skips=True):
        """One step; each request's tokens had so many assignments skipped."""
        names = list(skipped_of)
        tokens_R = np.array([len(skipped_of[name]) for name in names], dtype=np.int32)
        batch = Batch(names, tokens_R, 0 * tokens_R, tokens_R, alive or names)
        self.tally.begin_step(SimpleNamespace(finished_req_ids=set(finished)), batch, skips)
        if self.counted.skipped_T is not None:
            every = [one for name in names for one in skipped_of[name]]
            room = self.counted.skipped_T[: len(every)]
            room += torch.tensor(every, dtype=torch.int32, device="cpu")


def named(client: str, number: int = 0) -> str:
    return f"chatcmpl-{client}-{number:08x}"


def test_tokens_and_skips_are_booked_on_their_request():
    engine = Engine()
    a, b = named("a"), named("b")
    engine.step({a: [1, 0, 2], b: [5]})
    engine.step({b: [1], a: [0]})
    assert engine.tally.take(["chatcmpl-a", "chatcmpl-b"]) == {
        "chatcmpl-a": Ran(4, 3),
        "chatcmpl-b": Ran(2, 6),
    }
    assert engine.tally.take(["chatcmpl-a"]) == {}


def test_an_ended_request_can_be_asked_about_later_and_its_place_is_used_again():
    engine = Engine()
    engine.step({named("a"): [1]})
    engine.step({named("b"): [7]}, finished=[named("a")])
    engine.step({named("b"): [7], named("c"): [2]})
    assert engine.tally.take(["chatcmpl-a", "chatcmpl-c"]) == {
        "chatcmpl-a": Ran(1, 1),
        "chatcmpl-c": Ran(1, 2),
    }


def test_nothing_is_kept_while_nothing_can_be_skipped():
    engine = Engine()
    engine.step({named("a"): [0]}, skips=False)
    assert engine.counted.skipped_T is None
    assert engine.tally.take(["chatcmpl-a"]) == {}


def test_tokens_go_on_counting_when_skipping_stops_in_the_middle():
    engine = Engine()
    engine.step({named("a"): [1]})
    engine.step({named("a"): [0], named("b"): [0]}, skips=False)
    assert engine.tally.take(["chatcmpl-a", "chatcmpl-b"]) == {"chatcmpl-a": Ran(2, 1)}


def test_samples_and_prompts_of_one_request_are_added_up():
    engine = Engine()
    samples = [f"{i}_cmpl-x-{prompt}-0000000{prompt}" for i in range(2) for prompt in range(2)]
    engine.step({name: [1, 1] for name in samples})
    engine.step({"resp_y_0-00000000": [3], "resp_y_1-00000000": [4]})
    assert engine.tally.take(["cmpl-x", "resp_y"]) == {"cmpl-x": Ran(8, 8), "resp_y": Ran(2, 7)}


def test_two_requests_that_share_a_name_are_not_told():
    engine = Engine()
    engine.step({named("a", 1): [1], named("a", 2): [1], named("a-1"): [4]})
    assert engine.tally.take(["chatcmpl-a", "chatcmpl-a-1"]) == {"chatcmpl-a-1": Ran(1, 4)}


def test_who_ended_unheard_is_let_go_and_old_accounts_are_forgotten():
    engine = Engine()
    engine.step({named("a"): [1], named("b"): [1]})
    engine.step({named("c"): [1]}, alive=[named("b"), named("c")])
    assert list(engine.tally._place_of) == [named("b"), named("c")]
    for number in range(1100):
        engine.step({named(f"n{number}"): [0]}, finished=[named(f"n{number - 1}")])
    assert len(engine.tally._ended) == 1024
    assert engine.tally.take(["chatcmpl-a"]) == {}


SKIPPED = st.lists(st.integers(0, 8), min_size=1, max_size=4)
STEPS = st.lists(st.dictionaries(st.sampled_from("abcde"), SKIPPED, min_size=1), max_size=12)


@given(STEPS)
def test_accounts_add_up_to_what_ran(steps):
    engine = Engine()
    for step in steps:
        engine.step({named(name): held for name, held in step.items()})
    wanted: dict[str, Ran] = {}
    for step in steps:
        for name, held in step.items():
            before = wanted.get(f"chatcmpl-{name}", Ran(0, 0))
            wanted[f"chatcmpl-{name}"] = Ran(before.tokens + len(held), before.skipped + sum(held))
    assert engine.tally.take([f"chatcmpl-{name}" for name in "abcde"]) == wanted


def test_the_planner_counts_each_token():
    layer = LayerState(layer=0, top_k=2, renormalize=True, n_experts=4)
    layer.set_beta(0.5)
    weights_TK = torch.tensor([[0.6, 0.4], [0.9, 0.1], [0.8, 0.2]], device="cpu")
    ids_TK = torch.tensor([[0, 1], [2, 3], [1, 2]], dtype=torch.int32, device="cpu")
    skipped_T = torch.tensor([0, 0, 5], dtype=torch.int32, device="cpu")
    Planner().plan(weights_TK, ids_TK, layer, skipped_T=skipped_T)
    assert skipped_T.tolist() == [0, 1, 6]
    assert layer.counts().skipped == 2
    with pytest.raises(ValueError, match="room for 2 counts was given for 3 tokens"):
        Planner().plan(weights_TK, ids_TK, layer, skipped_T=skipped_T[:2])


@given(STEPS)
def test_a_device_books_the_same_steps_behind(steps):
    host, device = Engine(), Engine()
    device.counted = DeviceSkipped(64, torch.device("cpu"))
    device.tally = Tally(device.counted)
    ended: list[str] = []
    for step in steps:
        for engine in (host, device):
            engine.step({named(name): held for name, held in step.items()}, finished=ended)
        ended = [named(name) for name in list(step)[:1]]
    names = [f"chatcmpl-{name}" for name in "abcde"]
    assert device.tally.take(names) == host.tally.take(names)
    assert not device.counted.skipped_T.any()


def test_a_device_is_not_waited_for_in_the_steps_just_behind():
    engine, waited = Engine(), []
    engine.counted = DeviceSkipped(8, torch.device("cpu"))
    engine.tally = Tally(engine.counted)
    for number, slot in enumerate(engine.counted._ring):
        event = SimpleNamespace(record=lambda: None, synchronize=lambda n=number: waited.append(n))
        engine.counted._ring[number] = slot._replace(copied=event)
    for _ in range(6):
        engine.step({named("a"): [1, 2]})
    assert waited == [0, 1]
    assert engine.tally.take(["chatcmpl-a"]) == {"chatcmpl-a": Ran(12, 18)}
    assert waited == [0, 1, 2, 3, 0, 1]
