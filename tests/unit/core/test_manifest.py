"""A manifest survives a round trip; a changed shard or an edited promise does not."""

import json

import pytest

from leanmoe.errors import CheckpointError, InputError, OutputError
from leanmoe.files.digest import file_digest
from leanmoe.files.output import atomic_directory
from leanmoe.manifest import MANIFEST_NAME, Manifest, check_files, read_manifest, write_manifest


def manifest(**changes) -> Manifest:
    return Manifest(**{"family": "mixtral", "method": "naee", "kept": {0: [1, 3]}, **changes})


def test_round_trip(tmp_path):
    write_manifest(tmp_path, manifest())
    assert read_manifest(tmp_path) == manifest()


def test_no_manifest_is_none(tmp_path):
    assert read_manifest(tmp_path) is None


def test_an_edited_manifest_is_refused(tmp_path):
    write_manifest(tmp_path, manifest())
    path = tmp_path / MANIFEST_NAME
    path.write_text(path.read_text().replace('"naee"', '"reap"'))
    with pytest.raises(CheckpointError, match="does not match its own digest"):
        read_manifest(tmp_path)


@pytest.mark.parametrize(
    ("text", "said"),
    [("{", "cannot be read as a manifest"), ("[]", "the manifest"), ('{"family": 3}', "family")],
)
def test_a_broken_manifest_says_where(tmp_path, text, said):
    (tmp_path / MANIFEST_NAME).write_text(text)
    with pytest.raises(CheckpointError, match=said):
        read_manifest(tmp_path)


def test_a_later_schema_is_refused(tmp_path):
    write_manifest(tmp_path, manifest())
    content = json.loads((tmp_path / MANIFEST_NAME).read_text())
    (tmp_path / MANIFEST_NAME).write_text(json.dumps({**content, "schema_version": 2}))
    with pytest.raises(CheckpointError, match="schema_version"):
        read_manifest(tmp_path)


def test_a_changed_file_is_refused(tmp_path):
    shard = tmp_path / "model.safetensors"
    shard.write_bytes(b"weights")
    stated = manifest(files={shard.name: file_digest(shard)})
    check_files(tmp_path, stated)
    shard.write_bytes(b"weighty")
    with pytest.raises(CheckpointError, match=r"model\.safetensors does not match the manifest"):
        check_files(tmp_path, stated)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="is missing"):
        check_files(tmp_path, manifest(files={"model.safetensors": "sha256:0"}))


def test_a_path_out_of_the_directory_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"expected one beside it .* copy the model"):
        check_files(tmp_path, manifest(files={"../secret": "sha256:0"}))


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_an_interrupted_output_leaves_the_old_one(tmp_path, error):
    target = tmp_path / "out"
    target.mkdir()
    (target / "config.json").write_text("old")
    expected = OutputError if isinstance(error, OSError) else KeyboardInterrupt
    with pytest.raises(expected), atomic_directory(target, force=True) as directory:
        (directory / "new").write_text("half")
        raise error
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert (target / "config.json").read_text() == "old" and not (target / "new").exists()


def test_a_finished_output_replaces_the_old_one_only_by_force(tmp_path):
    target = tmp_path / "out"
    target.mkdir()
    (target / "config.json").write_text("old")
    with pytest.raises(InputError, match="exists already"), atomic_directory(target):
        raise AssertionError("never entered")
    with atomic_directory(target, force=True) as directory:
        (directory / "new").write_text("new")
    assert [path.name for path in target.iterdir()] == ["new"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
