"""``leanmoe.json``: what was cut out of a checkpoint, from what, how, and what it costs.

The manifest carries a digest over its own content and one per file beside it, so
that neither a changed shard nor an edited promise goes unnoticed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
)

from leanmoe.curve import QualityCurve
from leanmoe.errors import CheckpointError
from leanmoe.files.digest import bytes_digest, file_digest, parse_json
from leanmoe.files.output import TOKENIZER_FOLDERS, atomic_write_json
from leanmoe.files.records import One, read_record, what_is_wrong

MANIFEST_NAME = "leanmoe.json"
# The method of a manifest that `leanmoe curve` began, since the checkpoint had none.
NO_CUT = "none"


class Source(BaseModel):
    """The checkpoint that was cut."""

    model_config = ConfigDict(extra="forbid")

    name: str
    files: dict[str, str] = Field(description="file name -> sha256 of the source's files")
    experts: int | None = Field(default=None, description="routed experts of its largest layer")

    @model_serializer(mode="wrap")
    def _without_what_is_unknown(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # Manifests written before the count was recorded keep their digest.
        content: dict[str, Any] = dump(self)
        if self.experts is None:
            del content["experts"]
        return content


class Manifest(BaseModel):
    """The whole record beside a lean checkpoint (or one that only has a curve)."""

    model_config = ConfigDict(extra="forbid")

    schema_version: One = 1
    family: str
    source: Source | None = None
    method: str = Field(description="pruning method, or 'none' where only a curve was added")
    settings: dict[str, Any] = Field(default_factory=dict)
    kept: dict[int, list[int]] = Field(
        default_factory=dict, description="decoder layer -> source expert ids in new order"
    )
    calibration: str | None = None
    calibration_digest: str | None = None
    tools: dict[str, str] = Field(default_factory=dict)
    files: dict[str, str] = Field(default_factory=dict, description="file name -> sha256")
    curve: QualityCurve | None = None

    def digest(self) -> str:
        """SHA-256 of the canonical content."""
        text = json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
        return bytes_digest([text.encode()])


def weights_digest(files: Mapping[str, str]) -> str:
    """One digest for config and weights among ``files`` (name -> digest).

    It stays the same when a curve or a model card is added beside them.
    """
    named = sorted(
        (name, digest)
        for name, digest in files.items()
        if name == "config.json" or name.endswith(".safetensors")
    )
    return bytes_digest([f"{name} {digest}\n".encode() for name, digest in named])


def write_manifest(directory: Path, manifest: Manifest) -> None:
    """Write ``leanmoe.json`` in one step, its digest included."""
    content = {"digest": manifest.digest(), **manifest.model_dump(mode="json")}
    atomic_write_json(directory / MANIFEST_NAME, content)


def read_manifest(directory: Path) -> Manifest | None:
    """The manifest of ``directory`` with its own digest checked, or ``None`` if it has none."""
    path = directory / MANIFEST_NAME
    if not path.exists():
        return None
    try:
        content = parse_json(path.read_text(encoding="utf-8"))
        stated = content.pop("digest", None) if isinstance(content, dict) else None
        manifest = read_record(Manifest, content)
    except ValidationError as error:
        reason = what_is_wrong(error, "the manifest")
        raise CheckpointError(f"{path}: {reason}; cut again") from None
    except (ValueError, OSError) as error:
        raise CheckpointError(f"{path} cannot be read as a manifest ({error}); cut again") from None
    if stated != manifest.digest():
        raise CheckpointError(
            f"{path} does not match its own digest (states {stated}, content gives "
            f"{manifest.digest()}): it was edited after it was written; cut or measure again"
        )
    return manifest


def experts_before(manifest: Manifest | None) -> list[int]:
    """Routed experts before each cut the manifest tells of, the latest cut's source first."""
    link: dict[str, Any] | None = manifest.model_dump(mode="json") if manifest else None
    found = []
    while link is not None:
        found.append((link["source"] or {}).get("experts"))
        link = link["settings"].get("before")
    return [count for count in found if count is not None]


def _is_inside(name: str) -> bool:
    """Whether a file's name is one beside the manifest, or in a folder of the tokenizer there."""
    *folders, file = name.split("/")
    beside = not folders or (len(folders) == 1 and folders[0] in TOKENIZER_FOLDERS)
    return beside and Path(file).name == file and len(file) <= 255


def check_files(
    directory: Path, manifest: Manifest, tick: Callable[[], None] = lambda: None
) -> None:
    """Raise unless every file the manifest names is there with its stated digest.

    ``tick`` is called after each.
    """
    for name, stated in manifest.files.items():
        path = directory / name
        if not _is_inside(name):
            raise CheckpointError(
                f"{directory / MANIFEST_NAME} names the file {name!r:.300}, expected one beside it "
                "or in a folder of its tokenizer; copy the model again, or cut it again"
            )
        if not path.is_file():
            raise CheckpointError(f"{path} is missing and the manifest names it; copy it again")
        found = file_digest(path)
        if found != stated:
            raise CheckpointError(
                f"{path} does not match the manifest (found {found}, expected {stated}): "
                "it was changed or damaged; copy or cut it again"
            )
        tick()
