"""One layer's attention, by transformers' own class: over whole windows, or as tokens are placed.

N windows, T tokens, S tokens that may be seen, D model.
"""

from __future__ import annotations

from dataclasses import dataclass
from threading import Lock
from typing import Any

import torch

from leanmoe_pruning.forward.placing import Placing

# Some of transformers' rotary embeddings change themselves by the length that they are asked for.
_ROTARY = Lock()


@dataclass(frozen=True)
class Attention:
    """A module with its weights, and what it is given besides the tokens."""

    module: Any
    rotary: Any
    # How far back a token sees, itself counted; None: to the beginning.
    window: int | None
    compute: torch.dtype
    # Whether the module does nothing causal by itself.
    needs_mask: bool = False

    def __call__(self, normed_NTD: torch.Tensor) -> torch.Tensor:
        """What attention adds to the residual stream, ``[N, T, D]``."""
        length = normed_NTD.shape[1]
        return self._mixed(normed_NTD, torch.arange(length)[None], self._mask(length), None)

    def placed(self, normed_NTD: torch.Tensor, placing: Placing) -> torch.Tensor:
        """The same for tokens that do not stand one after the other from the beginning."""
        mask_N1TS = placing.mask(self.window)
        return self._mixed(normed_NTD, placing.positions_NT, mask_N1TS, placing.cache)

    def _mixed(
        self, normed_NTD: torch.Tensor, positions: torch.Tensor, mask: Any, cache: Any
    ) -> torch.Tensor:
        with _ROTARY:
            rotary = self.rotary(normed_NTD, position_ids=positions)
        with torch.autocast("cpu", torch.bfloat16, enabled=self.compute == torch.bfloat16):
            mixed_NTD, _ = self.module(
                hidden_states=normed_NTD,
                position_embeddings=rotary,
                attention_mask=mask,
                past_key_values=cache,
            )
        return mixed_NTD  # type: ignore[no-any-return]

    def _mask(self, length: int) -> torch.Tensor | None:
        windowed = self.window is not None and length > self.window
        if not (windowed or self.needs_mask):
            return None
        ones = torch.ones(length, length, dtype=torch.bool)
        seen = ones.tril() & ones.triu(1 - self.window) if self.window and windowed else ones.tril()
        return torch.zeros(length, length).masked_fill(~seen, float("-inf"))[None, None]
