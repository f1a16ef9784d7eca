"""``--data self:`` and ``mix:``: text that the model writes itself, and shares of built-in text."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from leanmoe.cli import main
from leanmoe.errors import DataError
from leanmoe_pruning.checkpoints.opening import open_runnable_model
from leanmoe_pruning.data import load_data
from leanmoe_pruning.data.spec import DOMAINS, parse_spec
from leanmoe_pruning.data.tokenizer import ModelTokenizer
from leanmoe_pruning.evaluation.generation import likeliest, sampled
from leanmoe_pruning.forward.stream import DecoderStream
from leanmoe_pruning.scores.bundle import ScoreBundle
from tests.golden.naee_data import CHECKPOINT
from tests.tiny import write_tiny_mixtral

WINDOW = 16


def own(spec: str, split="calibration", **more) -> torch.Tensor:
    model = open_runnable_model(CHECKPOINT)
    [ids_NT] = load_data(spec, model, split, window=WINDOW, **more).ids
    return ids_NT


def test_the_seed_and_the_split_say_what_is_written():
    first = own("self:3")
    assert first.shape == (3, WINDOW)
    assert torch.equal(first, own("self:3"))
    assert not torch.equal(first, own("self:3", seed=1))
    assert not torch.equal(first, own("self:3", split="heldout"))


def test_it_is_likelier_to_the_model_than_text_at_random():
    model = open_runnable_model(CHECKPOINT)
    stream = DecoderStream(model)

    def loss(ids_NT: torch.Tensor) -> float:
        hidden_NTD = stream.embed(ids_NT)
        for layer in stream.layers():
            layer.attend_(hidden_NTD)
            x_TD = layer.block_input(hidden_NTD)
            routing = layer.route(layer.router_logits(x_TD))
            every = torch.ones_like(routing.ids_TK, dtype=torch.bool)
            weights_TK = routing.applied()
            layer.add_(hidden_NTD, layer.experts.routed(x_TD, weights_TK, routing.ids_TK, every))
        log_NTV = stream.log_probabilities(hidden_NTD.flatten(0, 1)).view(*ids_NT.shape, -1)
        return -float(log_NTV[:, :-1].gather(-1, ids_NT[:, 1:, None]).mean())

    with torch.inference_mode():
        written = own("self:16")
        generator = torch.Generator().manual_seed(0)
        size = (16, WINDOW)
        drawn = torch.randint(0, model.config["vocab_size"], size, generator=generator)
        assert loss(written) < loss(drawn)


def test_a_sample_follows_the_distribution_and_greedy_takes_the_likeliest():
    log_NV = torch.tensor([[0.1, 0.6, 0.3]]).log().repeat(4000, 1)
    assert likeliest(log_NV[:2]) == [1, 1]
    counts = torch.bincount(torch.tensor(sampled(torch.Generator().manual_seed(0))(log_NV)))
    torch.testing.assert_close(counts / 4000, torch.tensor([0.1, 0.6, 0.3]), rtol=0, atol=0.03)


@pytest.fixture
def chatting(with_tokenizer):
    """The tiny model with a template whose answers begin with a thought."""
    (with_tokenizer.path / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"})
    )
    (with_tokenizer.path / "chat_template.jinja").write_text(
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
        "{% if add_generation_prompt %}<assistant><think>{% endif %}"
    )
    return open_runnable_model(with_tokenizer.path)


def test_prompts_are_asked_in_turn_and_answers_begin_with_the_thought(chatting, tmp_path):
    asked = [{"role": "user", "content": "why?"}, {"role": "assistant", "content": "because"}]
    lines = [{"messages": asked}, {"text": "Once upon"}]
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("\n".join(map(json.dumps, lines)))
    data = load_data(f"self:{prompts}:6", chatting, "calibration", window=WINDOW)
    assert [source.name for source in data.sources] == [f"self:{prompts}"]
    # This tokenizer puts a space between all tokens.
    text = ModelTokenizer(chatting.path).decode(data.ids[0].flatten().tolist()).replace(" ", "")
    assert text.startswith("<user>why?<assistant><think>") and "because" not in text
    assert "OnceĠupon" in text


def test_a_bundle_of_own_text_is_scored_and_says_so(tmp_path):
    out = tmp_path / "scores"
    score = ["score", str(CHECKPOINT), "--data", "self:4", "--window", "16", "-o", str(out)]
    assert main([*score, "--seed", "3"]) == 0
    description = ScoreBundle(out).description
    assert (description.data, description.layout) == ("self:4", [(4, 16)])
    again = tmp_path / "again"
    assert main([*score[:-1], str(again), "--seed", "3"]) == 0
    assert ScoreBundle(again).description.data_digest == description.data_digest


def counts(spec: str) -> dict[str, int | None]:
    return {item.name: item.count for item in parse_spec(spec)}


def test_a_mix_is_dealt_in_proportion():
    assert counts("mix:all:20") == dict.fromkeys(DOMAINS, 2)
    assert counts("mix:code:10") == {"c": 4, "py": 4, "man": 2}
    assert counts("mix:gen=2+c=1:7") == {"gen": 5, "c": 2}
    assert counts("mix:prose:1,builtin:c:2") == {"gen": 1, "c": 2}


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("mix:all", ("how many windows", "mix:all:COUNT")),
        ("mix:latin:4", ("no mix 'latin'", "known: all, permissive, languages")),
        ("mix:gen=1+gen=2:4", ("'gen'", "named twice")),
        ("mix:gen=0:4", ("count '0'",)),
        ("mix:latin=1:4", ("'latin'", "no built-in text")),
        ("mix:all:20,builtin:c:2", ("names c twice",)),
        ("self:", ("how many windows", "self:COUNT")),
        ("self:prompts.jsonl", ("how many windows",)),
        ("self:0", ("count '0'",)),
    ],
)
def test_what_is_refused(spec, words):
    with pytest.raises(DataError) as caught:
        parse_spec(spec)
    assert all(word in str(caught.value) for word in words), caught.value


def test_prompts_that_are_not_there(tmp_path):
    with pytest.raises(DataError, match="not a file"):
        own(f"self:{tmp_path / 'absent.jsonl'}:2")


@pytest.mark.parametrize("lines", ["", '{"text": ""}\n'])
def test_a_file_without_prompts(lines, chatting, tmp_path):
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text(lines)
    with pytest.raises(DataError, match="holds no prompt"):
        load_data(f"self:{prompts}:2", chatting, "calibration", window=WINDOW)


@pytest.fixture(scope="module")
def small_vocabulary(tmp_path_factory):
    """A model with fewer rows than its tokenizer has ids."""
    path, rows = write_tiny_mixtral(tmp_path_factory.mktemp("model") / "m", layers=1), 260
    tensors = load_file(path / "model.safetensors")
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        tensors[name] = tensors[name][:rows].contiguous()
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, "vocab_size": rows}))
    return path


@pytest.mark.parametrize(
    ("line", "more"),
    [
        ({"text": "question"}, ["score", "--data", "self:FILE:1", "--window", "8"]),
        ({"prompt": "question", "group": "g"}, ["eval", "--long", "2", "--prompts", "FILE"]),
        ({"prompt": "question", "answer": "a"}, ["eval", "--tasks", "FILE"]),
        (
            {"prompt": "question", "choices": ["a", "b"], "answer": 0},
            ["eval", "--tasks", "FILE", "--backend", "lm-eval"],
        ),
    ],
)
def test_ids_outside_the_vocabulary_are_named(small_vocabulary, tmp_path, capsys, line, more):
    file, (command, *given) = tmp_path / "lines.jsonl", more
    file.write_text(json.dumps(line) + "\n")
    given = [one.replace("FILE", str(file)) for one in given]
    out = ["-o", str(tmp_path / "out")] if command == "score" else []
    assert main([command, str(small_vocabulary), *given, *out]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert "is outside the vocabulary of" in said and "which has 260" in said


@pytest.mark.parametrize("start", [99_999, -1])
def test_a_start_token_outside_the_vocabulary_is_named(tmp_path, capsys, start):
    model = write_tiny_mixtral(tmp_path / "m", layers=1)
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "bos_token_id": start}))
    assert main(["score", str(model), "--data", "self:1", "-o", str(tmp_path / "out")]) == 2
    assert f"token id {start} is outside the vocabulary" in capsys.readouterr().err


@pytest.mark.parametrize("settings", ["[]", "{", '{"tokenizer_class": 5}'])
def test_a_tokenizer_that_cannot_be_loaded_is_no_fault_of_the_chat(tmp_path, capsys, settings):
    model, chats = write_tiny_mixtral(tmp_path / "m", layers=1), tmp_path / "chats.jsonl"
    (model / "tokenizer_config.json").write_text(settings)
    chats.write_text(json.dumps({"messages": [{"role": "user", "content": "the"}]}))
    assert main(["score", str(model), "--data", str(chats), "-o", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert f"cannot load the tokenizer in {model}" in said and "chats.jsonl" not in said
    assert len(said.splitlines()) == 1
