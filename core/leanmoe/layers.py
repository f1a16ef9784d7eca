"""Identifiers of layers and experts.

``LayerIndex`` is always the decoder layer number, dense layers included.
``ExpertId`` counts from 0 without gaps after pruning; the manifest maps it to
the source model's expert.
"""

from __future__ import annotations

from typing import NewType

LayerIndex = NewType("LayerIndex", int)
ExpertId = NewType("ExpertId", int)
