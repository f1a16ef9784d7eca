"""What a reader has in the folder before the blocks of a page: small, of the real formats."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file

from tests.tiny import write_tiny_mixtral
from tests.tiny_families import write_tiny
from tests.tiny_tasks import write_choices

LAYERS, EXPERTS, KEEP = 2, 8, 4


def write_stand_ins(folder: Path) -> Path:
    """Models (``reference`` is the one of the quickstart), texts, a task, EEP's matrices."""
    folder.mkdir(parents=True, exist_ok=True)
    write_tiny_mixtral(folder / "reference", layers=LAYERS, experts=EXPERTS, hidden=64, ffn=128)
    write_tiny(folder / "deepseek", "deepseek")
    notes = "the model has been called by one or two of them and they were not all there\n"
    (folder / "notes.txt").write_text(notes * 200, encoding="utf-8")
    write_choices(folder / "task.jsonl")
    one_hot = torch.eye(EXPERTS)[:KEEP].expand(LAYERS, KEEP, EXPERTS).contiguous()
    matrices = {"found.W_EM": one_hot, "found.W_RM": one_hot.clone()}
    save_file(matrices, folder / "coeff.safetensors")
    return folder
