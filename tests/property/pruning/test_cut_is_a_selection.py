"""Cutting any experts and loading gives exactly the chosen rows of every expert tensor."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from leanmoe_pruning.checkpoints.opening import open_model
from leanmoe_pruning.checkpoints.shards import ShardReader
from leanmoe_pruning.cutting.cutter import Cutter
from leanmoe_pruning.cutting.layer_plan import LayerPlan
from leanmoe_pruning.forward.passes import embed_all, step_
from leanmoe_pruning.forward.stream import DecoderStream
from tests.golden.naee_data import CHECKPOINT, probe_ids


def nothing() -> None:
    """A progress bar nobody looks at."""


@given(
    st.integers(2, 8).flatmap(
        lambda keep: st.lists(
            st.sets(st.integers(0, 7), min_size=keep, max_size=keep), min_size=3, max_size=3
        )
    )
)
@settings(max_examples=15)
@torch.inference_mode()
def test_cut_then_load_is_the_selection_and_runs_like_the_masked_model(sets):
    kept = {layer: sorted(chosen) for layer, chosen in enumerate(sets)}
    source = open_model(CHECKPOINT)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        plans = {layer: LayerPlan(keep=tuple(experts)) for layer, experts in kept.items()}
        Cutter(source, plans).write(out, nothing)
        lean = DecoderStream(open_model(out))
        whole = DecoderStream(source)
        check_rows(ShardReader(CHECKPOINT), lean.reader, source, kept)
        small, large = embed_all(lean, [probe_ids()]), embed_all(whole, [probe_ids()])
        for mine, theirs in zip(lean.layers(), whole.layers(), strict=True):
            step_(mine, small)
            step_(theirs, large, kept[mine.index])
        torch.testing.assert_close(small[0], large[0], rtol=1e-5, atol=1e-5)


def check_rows(source_reader, lean_reader, source, kept) -> None:
    name = source.family.expert_name
    for layer, experts in kept.items():
        for new, old in enumerate(experts):
            for projection in ("gate_proj", "up_proj", "down_proj"):
                mine = lean_reader.read(name(layer, new, projection))
                assert torch.equal(mine, source_reader.read(name(layer, old, projection)))
        gate = source.family.gate_name(layer)
        assert torch.equal(lean_reader.read(gate), source_reader.read(gate)[experts])
