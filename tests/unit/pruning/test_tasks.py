"""Task files, and choices and answers judged as plain transformers judges them."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import AutoTokenizer, MixtralForCausalLM

from leanmoe.errors import DataError
from leanmoe_pruning.checkpoints.opening import open_model
from leanmoe_pruning.data.tasks.loading import load_task
from leanmoe_pruning.data.tasks.task import ChoiceItem, OpenItem, Task
from leanmoe_pruning.evaluation.generation import generate
from leanmoe_pruning.evaluation.likelihood import Request, encode_pair, log_likelihoods
from leanmoe_pruning.evaluation.resident import ResidentModel
from leanmoe_pruning.evaluation.task_scoring import score_task, score_tasks
from leanmoe_pruning.forward.skipping import EXACT, Skipping
from leanmoe_pruning.forward.stream import DecoderStream
from tests.tiny import write_tiny_mixtral

GOOD = {"prompt": "one two", "choices": [" go", " see"], "answer": 1}


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return write_tiny_mixtral(tmp_path_factory.mktemp("tiny") / "model", layers=2, dtype="float32")


@pytest.fixture(scope="module")
def model(path):
    return ResidentModel.load(DecoderStream(open_model(path)))


@pytest.fixture(scope="module")
def theirs(path):
    return MixtralForCausalLM.from_pretrained(path, dtype=torch.float32).eval()


def written(tmp_path, *lines: object):
    path = tmp_path / "task.jsonl"
    path.write_text("\n".join(x if isinstance(x, str) else json.dumps(x) for x in lines))
    return path


def test_a_file_and_its_count(tmp_path):
    path = written(tmp_path, GOOD, "", {**GOOD, "answer": 0})
    assert load_task(str(path)).items == (
        ChoiceItem("one two", (" go", " see"), 1),
        ChoiceItem("one two", (" go", " see"), 0),
    )
    assert load_task(f"{path}:1").items[0].answer == 1
    assert len(load_task(f"{path}:1")) == 1


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", "cannot be read as JSON"),
        ("[1]", "holds a list"),
        ({**GOOD, "gold": 1}, "key 'gold'"),
        ({**GOOD, "prompt": 3}, '"prompt" is 3, expected a string'),
        ({**GOOD, "choices": ["one"]}, "expected 2 strings or more"),
        ({**GOOD, "choices": ["a", 7]}, "choice 1 is 7"),
        ({**GOOD, "choices": ["a", ""]}, "choice 1 is empty"),
        ({**GOOD, "choices": ["a", "a"]}, "there twice"),
        ({**GOOD, "answer": 2}, "from 0 to 1"),
        ({**GOOD, "answer": True}, "from 0 to 1"),
        ({**GOOD, "answer": "go"}, "from 0 to 1"),
        ({"prompt": "one", "answer": " "}, "expected one line"),
        ({"prompt": "one", "answer": "a\nb"}, "expected one line"),
        ({"prompt": "one", "answer": "a"}, "put the two kinds into two files"),
        ('{"prompt": "\\ud800", "answer": "a"}', "surrogate"),
    ],
)
def test_lines_that_are_refused(tmp_path, line, words):
    with pytest.raises(DataError, match="line 2") as caught:
        load_task(str(written(tmp_path, GOOD, line)))
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("builtin:nothing", "known: "),
        ("", "names nothing"),
        ("absent.jsonl", "cannot be read"),
        ("https://hub/a.jsonl:4", "--tasks is https://hub/a.jsonl:4, an address"),
        ("{}:0", "count '0'"),
        ("{}:2", "asks for 2 items and there are 1"),
        ("{}:", "count ''"),
    ],
)
def test_specs_that_are_refused(tmp_path, spec, words):
    path = written(tmp_path, GOOD)
    with pytest.raises(DataError) as caught:
        load_task(spec.format(path))
    assert words in str(caught.value)


def test_an_empty_file_and_bytes(tmp_path):
    path = written(tmp_path, "")
    with pytest.raises(DataError, match="no items"):
        load_task(str(path))
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match="UTF-8"):
        load_task(str(path))


def test_split_is_disjoint_and_independent_of_order():
    items = tuple(OpenItem(f"number {i}", str(i)) for i in range(30))
    train, dev, test = Task("t", items).split(12, 8)
    parts = [set(part.items) for part in (train, dev, test)]
    assert [len(part) for part in parts] == [12, 8, 10]
    assert set.union(*parts) == set(items)
    again = Task("t", items[::-1] + items[:3]).split(12, 8)
    assert [part.items for part in again] == [train.items, dev.items, test.items]
    with pytest.raises(DataError, match="30 different items"):
        Task("t", items).split(20, 11)


@torch.inference_mode()
def exact(theirs, request: Request) -> tuple[float, bool]:
    """The request alone, without padding."""
    ids = torch.tensor([request.context + request.continuation])
    log_p = theirs(ids).logits[0, -len(request.continuation) - 1 : -1].log_softmax(-1)
    wanted = torch.tensor(request.continuation)
    total = float(log_p.gather(1, wanted[:, None]).sum())
    return total, bool((log_p.argmax(-1) == wanted).all())


def test_likelihoods_equal_transformers(model, theirs, monkeypatch):
    pairs = [
        ("the people look", " at the water"),
        ("the people look", " at"),
        ("the people look ", "up"),
        ("", "the people"),
        ("one two two one two", " way"),
        ("day", " or a long day of water, which then made them go"),
    ]
    requests = [encode_pair(model.tokenizer, *pair, model.start_id) for pair in pairs]
    greedy = int(theirs(torch.tensor([requests[0].context])).logits[0, -1].argmax())
    requests.append(Request(requests[0].context, (greedy,)))
    # Several passes, several batches in one, several rows in one.
    monkeypatch.setattr("leanmoe_pruning.evaluation.likelihood.BATCH_TOKENS", 24)
    monkeypatch.setattr("leanmoe_pruning.evaluation.likelihood.PASS_TOKENS", 30)
    found = log_likelihoods(model, requests)
    for one, request in zip(found, requests, strict=True):
        total, best = exact(theirs, request)
        assert one.log_p == pytest.approx(total, rel=1e-5)
        assert one.greedy == best
    assert found[-1].greedy


def test_a_shared_prompt_runs_once(model, theirs, monkeypatch):
    ran = []
    whole = ResidentModel.final_hiddens

    def counted(self, batches):
        ran.extend(tuple(ids_NT.shape) for ids_NT, _ in batches)
        return whole(self, batches)

    monkeypatch.setattr(ResidentModel, "final_hiddens", counted)
    requests = [Request((7, 8, 9), (token, 30, 31)) for token in (20, 21, 22)]
    requests.append(Request((7, 8, 9), (20, 30, 40)))
    found = log_likelihoods(model, requests)
    # The prompt's three tokens, and two more of each continuation that differs there.
    assert ran == [(1, 3 + 3 * 2)]
    for one, request in zip(found, requests, strict=True):
        assert one.log_p == pytest.approx(exact(theirs, request)[0], rel=1e-5)


def test_blanks_belong_to_the_continuation(model):
    assert encode_pair(model.tokenizer, "one ", "two", 0) == encode_pair(
        model.tokenizer, "one", " two", 0
    )


def test_what_is_too_long_loses_its_beginning(model):
    long = Request(tuple(range(10, 60)), (3, 4))
    short = Request(long.context[-7:], long.continuation)
    model.stream.config.max_position_embeddings, before = 8, model.max_length
    try:
        found = log_likelihoods(model, [long])
    finally:
        model.stream.config.max_position_embeddings = before
    assert found[0].log_p == pytest.approx(log_likelihoods(model, [short])[0].log_p, rel=1e-5)


@torch.inference_mode()
def test_greedy_text_equals_transformers(model, theirs, path):
    tokenizer = AutoTokenizer.from_pretrained(path)
    prompts = ["the people look", "one", "what is the capital of france"]
    ids = [tokenizer.encode(prompt) for prompt in prompts]
    found = generate(model, ids, 6, lambda *_: False)
    for one, prompt in zip(found, ids, strict=True):
        ours = theirs.generate(torch.tensor([prompt]), max_new_tokens=6, do_sample=False)
        assert one == tokenizer.decode(ours[0, len(prompt) :], skip_special_tokens=True)


def test_scores_of_both_kinds(model):
    items = [ChoiceItem("the people", (" of the water", " go", " a"), n) for n in range(3)]
    result = score_task(model, Task("t", tuple(items)))
    assert sum(result.correct) == sum(result.correct_per_byte) == 1
    best = result.log_p[0].index(max(result.log_p[0]))
    assert result.correct.index(True) == best
    text = generate(model, [model.tokenizer.encode("the people")], 4, lambda *_: False)[0]
    answers = (text.strip().partition("\n")[0] or "x", "certainly not this")
    task = Task("t", tuple(OpenItem("the people", answer) for answer in answers))
    assert score_task(model, task, max_tokens=4).correct == (True, False)


def test_a_streamed_model_answers_alike(model):
    items = tuple(ChoiceItem(f"the people {i}", (" of the water", " go"), 0) for i in range(5))
    tasks = [Task("a", items[:2]), Task("b", (OpenItem("the", "x"),)), Task("c", items[2:])]
    streamed = ResidentModel.streamed(model.stream)
    assert score_tasks(streamed, tasks) == score_tasks(model, tasks)


def test_masked_and_skipping_models_are_judged_too(model):
    request = [Request((5, 6, 7, 8), (9, 10, 11))]
    whole = log_likelihoods(model, request)[0].log_p
    masked = model.changed(kept={0: [0, 1], 1: [2, 3]})
    skipping = model.changed(skipping=Skipping({0: 1.0, 1: 1.0}))
    assert log_likelihoods(masked, request)[0].log_p != whole
    assert log_likelihoods(skipping, request)[0].log_p != whole
    assert log_likelihoods(skipping.changed(skipping=EXACT), request)[0].log_p == whole


def test_sliding_windows_hold_for_branches_and_caches(tmp_path):
    path = write_tiny_mixtral(tmp_path / "model", layers=2, dtype="float32")
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, "sliding_window": 3}))
    model = ResidentModel.load(DecoderStream(open_model(path)))
    theirs = MixtralForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    requests = [Request(tuple(range(9, 17)), (token, 30, 31, 32)) for token in (20, 21)]
    for one, request in zip(log_likelihoods(model, requests), requests, strict=True):
        assert one.log_p == pytest.approx(exact(theirs, request)[0], rel=1e-5)
    prompts = [list(range(9, 17)), [40, 41, 42]]
    for one, prompt in zip(generate(model, prompts, 5, lambda *_: False), prompts, strict=True):
        ours = theirs.generate(torch.tensor([prompt]), max_new_tokens=5, do_sample=False)
        assert one == model.tokenizer.decode(ours[0, len(prompt) :].tolist())
