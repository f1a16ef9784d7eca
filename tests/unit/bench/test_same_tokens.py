"""What is compared of two engines' tokens; the engines themselves run in the bench."""

from __future__ import annotations

from leanmoe_bench.same_tokens import COMMAND, compared, prompts


def test_a_prompt_counts_up_to_its_first_difference():
    found = compared([[1, 2, 3], [4, 5, 6]], [[1, 2, 3], [4, 9, 6]])
    assert found == {"prompts": 2, "alike": 1, "tokens": 6, "agreed": 4}
    said = COMMAND.show({"rows": [{"dtype": "float32", **found}]})
    assert said.startswith("float32: 1 of 2 prompts continued alike, 4 of 6 tokens")


def test_twenty_prompts_of_five_domains():
    held = prompts()
    assert len(held) == 20 and {len(ids) for ids in held} == {32}
    assert len({tuple(ids) for ids in held}) == 20
