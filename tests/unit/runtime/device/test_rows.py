"""One buffer of rows, at one address, holds the running step and nothing of the one before."""

import pytest
import torch

from leanmoe_runtime.device import rows as module
from leanmoe_runtime.device.rows import StepRows


def rows(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32)


def test_it_says_nobody_until_a_step_begins_and_again_in_a_dummy_run():
    step = StepRows(5, "cpu")
    assert step.rows_T.tolist() == [-1] * 5 and step.tokens == 0
    step.begin(rows(3, 0, 9), 3)
    assert step.rows_T.tolist() == [3, 0, 9, -1, -1] and step.tokens == 3
    step.reset()
    assert step.rows_T.tolist() == [-1] * 5 and step.tokens == 0


def test_a_shorter_step_leaves_no_tail_of_a_longer_one():
    step = StepRows(6, "cpu")
    step.begin(rows(7, 7, 7, 7, 7), 5)
    step.begin(rows(2, 2), 2)
    assert step.rows_T.tolist() == [2, 2, -1, -1, -1, -1]


def test_without_rows_the_step_s_tokens_use_the_engine_s_and_no_others():
    step = StepRows(4, "cpu")
    step.begin(None, 2)
    assert step.rows_T.tolist() == [0, 0, -1, -1]


def test_tokens_that_cannot_be_told_apart_all_use_the_engine_s_row():
    step = StepRows(4, "cpu", aligned=False)
    step.begin(rows(9, 9), 2)
    assert step.rows_T.tolist() == [0] * 4
    step.reset()
    assert step.rows_T.tolist() == [-1] * 4


def test_the_address_never_changes_and_what_is_there_is_not_copied_again(monkeypatch):
    step = StepRows(4, "cpu")
    address = step.rows_T.data_ptr()
    turns = []
    for wanted in (rows(1, 2), rows(1, 2), None, None, rows(0, 0), rows(1)):
        step.begin(wanted, 2 if wanted is None else len(wanted))
        turns.append(step._turn)
    assert turns == [1, 1, 2, 2, 2, 3]
    assert step.rows_T.data_ptr() == address


def test_memory_of_a_copy_in_flight_is_waited_for_before_it_is_written():
    """As on a device: every slot has an event, and each turn of the ring waits for its own."""
    step, said = StepRows(4, "cpu"), []

    class Event:
        def __init__(self, name):
            self.name = name

        def synchronize(self):
            said.append(f"wait {self.name}")

        def record(self):
            said.append(f"record {self.name}")

    step._ring = [slot._replace(copied=Event(i)) for i, slot in enumerate(step._ring)]
    for turn in range(module._RING + 1):
        step.begin(rows(turn), 1)
    assert said[:2] == ["wait 0", "record 0"]
    assert said[-2:] == ["wait 0", "record 0"] and len(said) == 2 * (module._RING + 1)


@pytest.mark.parametrize("tokens", [1, 4])
def test_rows_given_by_the_caller_may_be_changed_afterwards(tokens):
    step, given = StepRows(4, "cpu"), torch.full((tokens,), 5, dtype=torch.int32)
    step.begin(given, tokens)
    given.fill_(6)
    step.begin(given, tokens)
    assert step.rows_T[:tokens].tolist() == [6] * tokens


def test_rows_made_in_inference_mode_can_be_set_outside_it():
    with torch.inference_mode():
        step = StepRows(4, "cpu")
        step.begin(None, 2)
    step.reset()
    assert step.rows_T.tolist() == [-1] * 4
