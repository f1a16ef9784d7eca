"""What a stopped training is taken up from: a folder beside the output, never half-written.

Layer by layer it holds each finished layer's final tensors; for the whole model, values and
optimiser moments of one step. ``training.json`` says of which run, and is written last.
"""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict
from safetensors.torch import load_file

from leanmoe.errors import InputError, OutputError
from leanmoe.files.digest import parse_json
from leanmoe.files.output import atomic_write_text
from leanmoe.files.records import read_record, what_is_wrong
from leanmoe.files.scratch import discard, remove_folder
from leanmoe_pruning.checkpoints.shards import write_tensors
from leanmoe_pruning.cutting.spool import WeightSpool
from leanmoe_pruning.distillation.local import LayerCourse
from leanmoe_pruning.distillation.whole import Progress, StepLoss, WholeModel

NAME = "training.json"


class TrainingState(BaseModel):
    """The content of ``training.json``."""

    model_config = ConfigDict(extra="forbid")

    # Model, teacher, data and settings: only the same run goes on.
    run: dict[str, Any]
    # Local: what became of the loss of each finished layer.
    layers: dict[int, LayerCourse] = {}
    # Whole model: the file that holds ``step``, the fixed factor and both losses by step.
    file: str | None = None
    step: int = 0
    factor: float | None = None
    losses: list[tuple[float, float]] = []


_PARTIAL = re.compile(
    r"layer-\d+\.safetensors|\.?step-\d+\.safetensors(\.part)?|\.training\.json\.new-\w{8}"
)


def folder_of(out: Path) -> Path:
    """Where the state of a training that writes ``out`` lies."""
    return out.parent / f"{out.name}.training"


class StateFolder:
    """The state on disk; opened for a new run, or to go on."""

    def __init__(self, out: Path, run: dict[str, Any], resume: bool) -> None:
        self._out, self.directory = out, folder_of(out)
        self.state = TrainingState(run=run)
        self.remove_if_stillborn()
        if not self.directory.exists():
            if resume:
                raise InputError(f"there is no {self.directory} to resume from; drop --resume")
            return
        if not resume:
            raise InputError(
                f"{self.directory} holds an unfinished training; pass --resume to go on with it, "
                "or remove it"
            )
        self.state = self._read()
        wrong = sorted(key for key in run if self.state.run.get(key) != run[key])
        if wrong:
            raise InputError(
                f"{self.directory} is of a run with {wrong[0]} {self.state.run.get(wrong[0])}, and "
                f"{run[wrong[0]]} was given; give the same to resume, or remove the folder"
            )

    def remove_if_stillborn(self) -> None:
        """What a run left that ended before its first state was whole: nothing goes on from it."""
        if not self.directory.is_dir() or (self.directory / NAME).exists():
            return
        if all(_PARTIAL.fullmatch(one.name) for one in self.directory.iterdir()):
            remove_folder(self.directory)

    def _read(self) -> TrainingState:
        path = self.directory / NAME
        try:
            return read_record(TrainingState, parse_json(path.read_text(encoding="utf-8")))
        except (OSError, ValueError) as error:
            raise InputError(
                f"{path} is not the state of a training ({what_is_wrong(error)}); remove "
                f"{self.directory}"
            ) from None

    def _write(self) -> None:
        atomic_write_text(self.directory / NAME, self.state.model_dump_json(indent=1) + "\n")

    @property
    def is_kept(self) -> bool:
        """Whether there is a state to go on from."""
        return (self.directory / NAME).is_file()

    def remove(self) -> None:
        """All of it, once the result is in place."""
        discard(self.directory, self._out)

    def spool(self) -> WeightSpool:
        """Where finished layers are kept, those of the run before in it."""
        spool = WeightSpool(self.directory)
        for layer in self.state.layers:
            spool.find(layer)
        return spool

    def add_layer(self, layer: int, course: LayerCourse) -> None:
        """Note a layer whose tensors were put into the spool."""
        self.state.layers[layer] = course
        self._write()

    def put_model(self, model: WholeModel) -> None:
        """Keep the step that was just made, then let go of the one before."""
        before, progress = self.state.file, model.progress
        name = f"step-{progress.step}.safetensors"
        self._put(name, _tensors_of(model))
        self.state.file, self.state.step = name, progress.step
        self.state.factor = progress.factor
        self.state.losses = [(one.text, one.experts) for one in progress.losses]
        self._write()
        if before is not None and before != name:
            (self.directory / before).unlink(missing_ok=True)

    def restore(self, model: WholeModel) -> None:
        """Bring a model to the kept step, if there is one."""
        if self.state.file is None:
            return
        held = load_file(self.directory / self.state.file)
        for layer, optimiser in model.optimisers.items():
            for name in model.student.trained(layer):
                value = model.student.reader.values[name]
                value.data.copy_(held[name])
                if f"{name}.step" in held:
                    optimiser.state[value] = {
                        key: held[f"{name}.{key}"] for key in ("step", "exp_avg", "exp_avg_sq")
                    }
        losses = [StepLoss(*pair) for pair in self.state.losses]
        model.progress = Progress(self.state.step, self.state.factor, losses)

    def _put(self, name: str, tensors: dict[str, torch.Tensor]) -> None:
        part = self.directory / f".{name}.part"
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            write_tensors(part, tensors)
            part.replace(self.directory / name)
        except OSError as error:
            part.unlink(missing_ok=True)
            with suppress(OSError):
                self.directory.rmdir()  # where there was no state before
            raise OutputError(
                f"could not write {self.directory / name}: {error.strerror}"
            ) from error


def _tensors_of(model: WholeModel) -> dict[str, torch.Tensor]:
    tensors: dict[str, torch.Tensor] = {}
    for layer, optimiser in model.optimisers.items():
        for name in model.student.trained(layer):
            value = model.student.reader.values[name]
            tensors[name] = value.detach()
            for key, held in optimiser.state.get(value, {}).items():
                tensors[f"{name}.{key}"] = held
    return tensors
