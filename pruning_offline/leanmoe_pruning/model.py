"""Opening the model a command works on, its manifest checked before anything is computed."""

from __future__ import annotations

from pathlib import Path

from leanmoe.checkpoint import Checkpoint, open_checkpoint
from leanmoe.manifest import MANIFEST_NAME, check_files
from leanmoe.provenance import file_digest

WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack", ".onnx")


def open_model(path: Path) -> Checkpoint:
    """The checkpoint at ``path``; raise when its manifest or a file named there was changed."""
    checkpoint = open_checkpoint(path)
    if checkpoint.manifest is not None:
        check_files(path, checkpoint.manifest)
    return checkpoint


def model_files(path: Path) -> list[Path]:
    """The files a checkpoint consists of, by name; hidden ones and the manifest left out."""
    return sorted(
        file
        for file in path.iterdir()
        if file.is_file() and not file.name.startswith(".") and file.name != MANIFEST_NAME
    )


def source_digests(path: Path) -> dict[str, str]:
    """Digest of config and weights: what makes this model this model."""
    return {
        file.name: file_digest(file)
        for file in model_files(path)
        if file.name == "config.json" or file.suffix == ".safetensors"
    }
