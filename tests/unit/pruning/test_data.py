"""``--data``: mixes, files, splits, and what is refused."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

from leanmoe.checkpoint import open_checkpoint
from leanmoe.errors import DataError
from leanmoe_pruning.checkpoints.shards import write_tensors
from leanmoe_pruning.data import batch_of_tokens, load_data
from leanmoe_pruning.data.builtin import builtin_ids, builtin_texts
from leanmoe_pruning.data.spec import DOMAINS, parse_spec
from tests.golden.naee_data import CALIBRATION, CHECKPOINT


def refused(spec: str, *words: str, checkpoint=None, **more) -> None:
    with pytest.raises(DataError) as caught:
        load_data(spec, checkpoint or open_checkpoint(CHECKPOINT), "calibration", **more)
    assert all(word in str(caught.value) for word in words), caught.value


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("", ("empty part",)),
        ("builtin:gen,", ("empty part",)),
        ("builtin:latin", ("latin", "known: gen, fr, de")),
        ("builtin:c:0", ("count '0'", "positive")),
        ("builtin:c:-4", ("count '-4'",)),
        ("builtin:c:many", ("count 'many'",)),
        ("builtin:c:²", ("count '²'",)),
        ("builtin:c:--5", ("count '--5'",)),
        ("builtin:c:" + 5000 * "9", ("is not a positive whole number",)),
        ("x" * 300, ("not a file",)),
        ("builtin:c:4,builtin:c:2", ("twice",)),
        ("text.txt:4:5", ("too many ':'",)),
        ("absent.txt", ("absent.txt", "not a file")),
        ("absent.safetensors:ids", ("absent.safetensors", "not a file")),
    ],
)
def test_specs_that_are_refused(spec, words, with_tokenizer):
    refused(spec, *words, checkpoint=with_tokenizer)


def test_builtin_without_a_tokenizer():
    refused("builtin:gen", "tokenizer.json", "missing")


def test_parts_of_a_safetensors_name():
    ids = [(item.tensor, item.count) for item in parse_spec("a.safetensors:x:3,b.safetensors:4")]
    assert ids == [("x", 3), ("input_ids", 4)]


def test_token_ids_are_taken_in_order_and_counted():
    whole = load_data(CALIBRATION, open_checkpoint(CHECKPOINT), "calibration")
    some = load_data(f"{CALIBRATION}:2", open_checkpoint(CHECKPOINT), "calibration")
    assert whole.layout == [(6, 32)]
    assert torch.equal(some.ids[0], whole.ids[0][:2])
    refused(f"{CALIBRATION}:7", "asks for 7", "there are 6")


def test_halves_of_a_file_are_disjoint():
    checkpoint = open_checkpoint(CHECKPOINT)
    whole = load_data(CALIBRATION, checkpoint, "heldout").ids[0]
    first = load_data(CALIBRATION, checkpoint, "calibration", files="halves").ids[0]
    second = load_data(CALIBRATION, checkpoint, "heldout", files="halves").ids[0]
    assert torch.equal(torch.cat([first, second]), whole)
    refused(f"{CALIBRATION}:1", "held out", files="halves")


def test_ids_outside_the_vocabulary(tmp_path):
    for wrong in (128, -1):
        path = tmp_path / "ids.safetensors"
        path.unlink(missing_ok=True)
        write_tensors(path, {"input_ids": torch.tensor([[1, 2, wrong]])})
        refused(str(path), str(wrong), "vocabulary of 128")


def write_ids(path, length: int):
    write_tensors(path, {"input_ids": torch.ones(1, length, dtype=torch.int64)})
    return str(path)


@pytest.mark.parametrize(
    ("change", "longest"),
    [
        ({"max_position_embeddings": 32}, 32),
        # Stretched embeddings reach further than the length before, where a config states that.
        (
            {
                "max_position_embeddings": 32,
                "rope_scaling": {
                    "rope_type": "yarn",
                    "factor": 2.0,
                    "original_max_position_embeddings": 32,
                },
            },
            64,
        ),
    ],
)
def test_windows_longer_than_the_model(model, change_config, tmp_path, change, longest):
    change_config(**change)
    checkpoint = open_checkpoint(model)
    fits = write_ids(tmp_path / "fits.safetensors", longest)
    assert load_data(fits, checkpoint, "calibration").tokens == longest
    long = write_ids(tmp_path / "long.safetensors", longest + 1)
    words = (f"windows of {longest + 1} tokens", f"at most {longest} (max_position_embeddings")
    refused(long, *words, checkpoint=checkpoint)


def test_built_in_windows_longer_than_the_model(with_tokenizer, change_config):
    change_config(max_position_embeddings=64)
    refused("builtin:gen:1", "at most 64", checkpoint=open_checkpoint(with_tokenizer.path))
    checkpoint = open_checkpoint(with_tokenizer.path)
    assert load_data("builtin:gen:1", checkpoint, "calibration", window=64).tokens == 64


def test_numbers_that_are_none_beside_a_text_are_let_be(with_tokenizer, tmp_path):
    path = tmp_path / "table.jsonl"
    path.write_text('{"text": "what a table wrote", "score": NaN}\n')
    assert load_data(str(path), with_tokenizer, "calibration", window=4).windows > 0


@pytest.mark.parametrize(
    "ids", [torch.zeros(0, 8).long(), torch.zeros(3, 1).long(), torch.zeros(3, 4), torch.zeros(4)]
)
def test_ids_of_a_wrong_shape_or_kind(tmp_path, ids):
    path = tmp_path / "ids.safetensors"
    write_tensors(path, {"input_ids": ids})
    refused(str(path), "expected")


def test_two_tensors_of_one_file_are_two_sources(tmp_path):
    path = tmp_path / "ids.safetensors"
    write_tensors(path, {"a": torch.tensor([[1, 2]]), "b": torch.tensor([[3, 4, 5]])})
    data = load_data(f"{path}:a,{path}:b", open_checkpoint(CHECKPOINT), "calibration")
    assert [source.name for source in data.sources] == [f"{path}:a", f"{path}:b"]


def test_an_absent_tensor_lists_the_present(tmp_path):
    path = tmp_path / "ids.safetensors"
    write_tensors(path, {"here": torch.tensor([[1, 2]])})
    refused(f"{path}:there", "'there'", "here")


def test_a_file_that_is_not_safetensors(tmp_path):
    path = tmp_path / "ids.safetensors"
    path.write_bytes(b"nonsense")
    refused(str(path), "not a whole safetensors file")


def test_plain_text_and_json_lines_are_cut_into_windows(with_tokenizer, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("abc defg hij " * 10)
    lines = tmp_path / "lines.jsonl"
    lines.write_text('{"text": "abcdefgh"}\n\n{"text": "ijkl\u2028mnop"}\n')
    data = load_data(f"{text}:2,{lines}", with_tokenizer, "calibration", window=8)
    assert data.layout == [(2, 8), (2, 8)]
    # Documents are joined by the model's end token.
    assert data.ids[1].flatten()[8] == 2


@pytest.mark.parametrize(
    ("stated", "between"), [(2, [2]), ([5, 7], [5]), ([], []), (None, []), ("</s>", [])]
)
def test_documents_are_joined_by_the_first_end_token(stated, between, with_tokenizer, tmp_path):
    path = with_tokenizer.path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"eos_token_id": stated}))
    lines = tmp_path / "lines.jsonl"
    lines.write_text('{"text": "abcd"}\n{"text": "efghij"}\n')
    data = load_data(str(lines), open_checkpoint(with_tokenizer.path), "calibration", window=8)
    assert data.ids[0].flatten()[4 : 4 + len(between)].tolist() == between
    assert data.ids[0].flatten()[4 + len(between)] == ord("e")


def test_too_little_text(with_tokenizer, tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("abc")
    refused(str(path), "3 tokens", "window of 8", checkpoint=with_tokenizer, window=8)
    refused(str(path), "--window 1", checkpoint=with_tokenizer, window=1)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", ("line 2", "cannot be read as JSON")),
        ('{"body": 1}', ("line 2", '"text"', '"messages"')),
        ("[1]", ("line 2", "holds no object", '"text"')),
        ("[" * 50_000, ("line 2", "cannot be read as JSON")),
        ('{"text": "a", "id": ' + 5_000 * "9" + "}", ("line 2", "an integer of 5000 digits")),
        ('{"text": "abcd\\ud800"}', ("line 2", "no Unicode character")),
        ('{"messages": ["hi"]}', ("line 2", "message 0", '"role"')),
        ('{"messages": [{"content": "hi"}]}', ("message 0", '"role"')),
        ('{"messages": [{"role": "user"}]}', ("message 0", '"content"')),
        ('{"messages": [{"role": "user", "content": "hi"}]}', ("chat",)),
    ],
)
def test_json_lines_that_are_refused(with_tokenizer, tmp_path, line, words):
    path = tmp_path / "lines.jsonl"
    path.write_text(json.dumps({"text": "abcdefgh" * 4}) + "\n" + line + "\n")
    refused(str(path), *words, checkpoint=with_tokenizer, window=8)


@pytest.mark.parametrize(
    "spec",
    ["https://hub/a.txt", "http://hub:80/a.jsonl:4", "builtin:gen:1,s3://b/x", "self:hf://x/p:4"],
)
def test_addresses_are_refused_as_such(with_tokenizer, spec):
    """Their colons were taken for those of counts."""
    refused(spec, "--data is ", "://", "an address", "download it", checkpoint=with_tokenizer)


@pytest.mark.parametrize("shape", [(4, 0), (0,), (0, 8)])
def test_windows_of_no_tokens(model, tmp_path, shape):
    path = tmp_path / "ids.safetensors"
    write_tensors(path, {"input_ids": torch.zeros(shape, dtype=torch.int64)})
    refused(str(path), "at least one window of 2 tokens", checkpoint=open_checkpoint(model))


def test_text_that_is_not_utf8(with_tokenizer, tmp_path):
    path = tmp_path / "text.txt"
    path.write_bytes(b"\xff\xfe\x00")
    refused(str(path), "UTF-8", checkpoint=with_tokenizer)


def test_a_broken_tokenizer(model):
    (model / "tokenizer.json").write_text("{}")
    refused("builtin:gen", "is not a tokenizer", checkpoint=open_checkpoint(model))


def test_builtin_text_for_a_model_with_another_tokenizer(with_tokenizer):
    data = load_data("builtin:c:3", with_tokenizer, "calibration", window=64)
    assert data.layout == [(3, 64)]
    assert data.digest() != load_data("builtin:c:3", with_tokenizer, "heldout", window=64).digest()


@pytest.mark.parametrize("domain", DOMAINS)
def test_shipped_texts_cover_every_window(domain):
    for split in ("calibration", "heldout"):
        texts = list(builtin_texts(domain, split))
        assert len(texts) == len(builtin_ids(domain, split)) >= 14
        assert all(texts)


@pytest.mark.parametrize("domain", DOMAINS)
def test_no_heldout_window_is_also_a_calibration_window(domain):
    seen = {tuple(row) for row in builtin_ids(domain, "calibration").tolist()}
    assert not any(tuple(row) in seen for row in builtin_ids(domain, "heldout").tolist())


def test_batches_never_cross_sources():
    assert batch_of_tokens([(3, 2), (2, 1)], 2).tolist() == [0, 0, 0, 0, 1, 1, 2, 2]
    with pytest.raises(DataError, match="--batch-size 0"):
        batch_of_tokens([(3, 2)], 0)


def test_a_chat_is_put_into_the_models_template(with_tokenizer, model, tmp_path):
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "chat_template": "{{messages[0].content}}",
    }
    (model / "tokenizer_config.json").write_text(json.dumps(config))
    chat, text = tmp_path / "chat.jsonl", tmp_path / "text.txt"
    content = "abcdefgh" * 2
    chat.write_text(json.dumps({"messages": [{"role": "user", "content": content}]}))
    text.write_text(content)
    found = load_data(str(chat), with_tokenizer, "calibration", window=8).ids[0]
    assert torch.equal(found, load_data(str(text), with_tokenizer, "calibration", window=8).ids[0])
    shutil.rmtree(model)
