"""Which steps run on the compressed sequence."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Window:
    """A range of noise levels.

    Attributes:
        start: sigma at which compression begins (the noisier end).
        end: sigma below which the model runs dense again.
    """

    start: float = float("inf")
    end: float = 0.0

    def active(self, sigma: float) -> bool:
        """Whether a model call at ``sigma`` is compressed. Samplers that evaluate between the steps of the schedule ask
        for the sigma they are at, so no step table is needed."""
        return self.end <= sigma <= self.start
