"""lm-evaluation-harness around our forward pass: the same answers as our own scorer's."""

from __future__ import annotations

import json
import sys

import pytest

from leanmoe.cli import main
from leanmoe_pruning.checkpoints.opening import open_model
from leanmoe_pruning.data.tasks.builtin_tasks import LM_EVAL_TASKS, builtin_names
from leanmoe_pruning.evaluation.harness import ForwardLM
from leanmoe_pruning.evaluation.likelihood import Request, log_likelihoods
from leanmoe_pruning.evaluation.resident import ResidentModel
from leanmoe_pruning.forward.stream import DecoderStream
from tests.tiny import write_tiny_mixtral


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return write_tiny_mixtral(tmp_path_factory.mktemp("tiny") / "model", layers=1, dtype="float32")


def run(capsys, *arguments: str) -> dict:
    capsys.readouterr()
    assert main(["eval", *arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_same_accuracies_as_our_own_scorer(path, tmp_path, capsys):
    answers = tmp_path / "answers.jsonl"
    lines = [{"prompt": "the people", "answer": "x"}, {"prompt": "one", "answer": "two"}]
    answers.write_text("\n".join(map(json.dumps, lines)))
    tasks = f"builtin:arith:40,builtin:cloze-c:12,{answers}"
    own = run(capsys, str(path), "--tasks", tasks)["tasks"]
    found = run(capsys, str(path), "--tasks", tasks, "--backend", "lm-eval")["tasks"]
    assert list(found) == list(own) == ["arith", "cloze-c", "answers"]
    for name, one in found.items():
        metrics = one.pop("metrics")
        assert one == own[name]
        if name != "answers":
            assert metrics["acc,none"] == one["accuracy"]
            assert metrics["acc_bytes,none"] == one["per_byte"]["accuracy"]
    assert 0 < found["arith"]["accuracy"] < 1


def test_generated_answers_are_judged_alike(path, tmp_path, capsys):
    model = ResidentModel.load(DecoderStream(open_model(path)))
    text = ForwardLM(model)._generate("the people", {"until": ["\n"], "max_gen_toks": 32})
    task = tmp_path / "task.jsonl"
    lines = [
        {"prompt": "the people", "answer": text.strip() or "x"},
        {"prompt": "the people", "answer": "y"},
    ]
    task.write_text("\n".join(map(json.dumps, lines)))
    for backend in ("own", "lm-eval"):
        found = run(capsys, str(path), "--tasks", str(task), "--backend", backend)
        assert found["tasks"]["task"]["accuracy"] == (0.5 if text.strip() else 0.0)


def test_shipped_task_files_name_every_builtin_task(path, capsys):
    names = {file.stem.removeprefix("leanmoe_") for file in LM_EVAL_TASKS.glob("leanmoe_*.yaml")}
    assert names == set(builtin_names())
    found = run(capsys, str(path), "--tasks", "leanmoe_facts", "--backend", "lm-eval")
    own = run(capsys, str(path), "--tasks", "builtin:facts")
    assert found["tasks"]["leanmoe_facts"]["accuracy"] == own["tasks"]["facts"]["accuracy"]


def test_tasks_of_a_folder_and_whole_texts(path, tmp_path, capsys):
    (tmp_path / "data.jsonl").write_text(json.dumps({"text": "the people look at the water"}))
    (tmp_path / "words.yaml").write_text(
        "task: words\ndataset_path: json\ndataset_kwargs:\n  data_files:\n"
        f"    test: {tmp_path / 'data.jsonl'}\n  cache_dir: {tmp_path / 'cache'}\n"
        "test_split: test\noutput_type: loglikelihood_rolling\ndoc_to_text: ''\n"
        "doc_to_target: '{{text}}'\nmetric_list:\n  - metric: word_perplexity\n"
    )
    arguments = ["--tasks", "words", "--backend", "lm-eval", "--include-path", str(tmp_path)]
    found = run(capsys, str(path), *arguments)["tasks"]["words"]
    model = ResidentModel.load(DecoderStream(open_model(path)))
    ids = model.tokenizer.encode("the people look at the water")
    (one,) = log_likelihoods(model, [Request((model.start_id,), tuple(ids))])
    assert found["metrics"]["word_perplexity,none"] == pytest.approx(
        2.718281828 ** (-one.log_p / 6)
    )
    assert main(["eval", str(path), *arguments]) == 0
    assert "word_perplexity" in capsys.readouterr().out


def test_whole_texts_longer_than_the_model(path):
    model = ResidentModel.load(DecoderStream(open_model(path)))
    model.stream.config.max_position_embeddings = 8
    text = "the people look at the water and then they go a long way down to see it"
    ids = model.tokenizer.encode(text)
    assert len(ids) > 16

    class Asked:
        args = (text,)

    parts = [ids[i : i + 8] for i in range(0, len(ids), 8)]
    before = [model.start_id, *(part[-1] for part in parts)]
    requests = [Request((b,), tuple(part)) for b, part in zip(before, parts, strict=False)]
    expected = sum(one.log_p for one in log_likelihoods(model, requests))
    assert ForwardLM(model).loglikelihood_rolling([Asked()]) == [pytest.approx(expected)]


def test_refusals(path, tmp_path, capsys, monkeypatch):
    (tmp_path / "far.yaml").write_text(
        "task: far\ndataset_path: someone/data\ntest_split: test\noutput_type: multiple_choice\n"
    )
    far = ["--backend", "lm-eval", "--tasks", "far", "--include-path", str(tmp_path)]
    assert main(["eval", str(path), *far]) == 2
    assert "must be local" in capsys.readouterr().err
    assert main(["eval", str(path), "--tasks", "hellaswag", "--backend", "lm-eval"]) == 2
    assert "neither builtin:NAME nor FILE.jsonl" in capsys.readouterr().err
    arguments = ["eval", str(path), "--tasks", "builtin:facts", "--include-path", str(tmp_path)]
    assert main(arguments) == 2
    assert "--backend lm-eval" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    monkeypatch.delitem(sys.modules, "leanmoe_pruning.evaluation.harness")
    for name in [name for name in sys.modules if name.startswith("lm_eval.")]:
        monkeypatch.delitem(sys.modules, name)
    assert main(["eval", str(path), "--tasks", "builtin:facts", "--backend", "lm-eval"]) == 2
    assert "pip install 'leanmoe[tasks]'" in capsys.readouterr().err
