"""What a bundle says of its own windows: how far two halves of them decide alike."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

# Above it the windows count as too few: a share of NAEE's loss. On the reference model 4 windows of
# each of eight domains have 1.1 %, 16 have 0.2 % (docs/scores.md).
MOST_EXCESS = 0.005
# Where halves keep the same but for one expert in twenty, a large share is one of very little:
# experts that the text hardly needs cost nothing to lose.
MOST_SHARED = 0.95
# From so many times its own on, how many times is no news.
_HUGE = 9


class HalfAgreement(BaseModel):
    """One method's choices from either half, over all layers."""

    model_config = ConfigDict(extra="forbid")

    # Mean share of the kept experts that both halves keep.
    shared: float
    # NAEE: how much more a half loses by the other's choice than by its own, as a share.
    excess_loss: float | None = None


class Halves(BaseModel):
    """How far two halves of the windows agree where ``keep`` experts per layer stay."""

    model_config = ConfigDict(extra="forbid")

    keep: int
    # What two choices at random would share.
    chance: float
    methods: dict[str, HalfAgreement]

    def too_few(self) -> bool:
        """Whether more windows would give a noticeably better cut, by NAEE's loss."""
        naee = self.methods["naee"]
        return naee.shared < MOST_SHARED and (naee.excess_loss or 0.0) > MOST_EXCESS

    def sentence(self) -> str:
        """What a person should know."""
        naee = self.methods["naee"]
        shares = ", ".join(f"{name} {one.shared:.0%}" for name, one in self.methods.items())
        advice = (
            "the windows are too few: give more or longer text"
            if self.too_few()
            else "more windows would hardly change naee's choice"
        )
        return (
            f"of {self.keep} experts per layer, two halves of the windows choose the same: "
            f"{shares} (by chance {self.chance:.0%}); by naee's loss the other half's choice costs "
            f"{_dearer(naee.excess_loss or 0.0)} its own: {advice}"
        )


def _dearer(excess: float) -> str:
    """By how much; a half that loses next to nothing by its own choice makes any share huge."""
    return f"{excess:.1%} more than" if excess < _HUGE else f"more than {1 + _HUGE} times"
