"""The context of the paper: a few tokens of a downsampled picture stand for what is left out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from ..canvas import Canvas
from .base import Context, as_bias


@dataclass(frozen=True)
class LowContext(Context):
    """The choice ``low``: low-frequency tokens stand for what is left out.

    Attributes:
        proportional: weigh each low key by the n tokens it stands for, by adding log n to its logits (proportional
            attention, ToMe section 3). Without it a block of 16 tokens has the voice of one.
    """

    name: ClassVar[str] = "low"
    uses_low: bool = True
    proportional: bool = True

    def changes_attention(self, canvas: Canvas) -> bool:
        return self.proportional and canvas.low > 0

    def mask(
        self, mask: torch.Tensor | None, q: torch.Tensor, keys: int, start: int, canvas: Canvas
    ) -> torch.Tensor | None:
        if not self.changes_attention(canvas):
            return mask
        bias = torch.zeros(1, 1, 1, keys, dtype=q.dtype, device=q.device)
        first_low = start + canvas.tokens - canvas.low
        bias[..., first_low : first_low + canvas.low] = canvas.placed_log_count.on(bias.device)
        return bias if mask is None else as_bias(mask, q) + bias
