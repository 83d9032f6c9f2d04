"""Context: how the tokens that are left out stay visible to the ones that are computed.

One interface for every choice. ``none`` shows nothing of them (LazyDiffusion); ``low`` lets low-frequency tokens stand in
(HiLo-Token). A context decides what the canvas carries and what attention sees; it knows no family and no host.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .canvas import Canvas


@dataclass(frozen=True)
class Context:
    """The choice ``none``: the model sees the edit region and the high-frequency tokens, nothing else.

    Attributes:
        uses_low: the canvas carries low tokens.
    """

    uses_low: bool = False

    def changes_attention(self, canvas: Canvas) -> bool:
        """False where attention can be left entirely alone, which is the fastest."""
        return False

    def mask(self, mask: torch.Tensor | None, q: torch.Tensor, keys: int, start: int, canvas: Canvas) -> torch.Tensor | None:
        """The mask or bias one attention call gets.

        Args:
            mask: what the model passed: ``None``, bool (true is seen) or an additive float, broadcastable to
                ``(B, heads, queries, keys)`` with 2 to 4 dimensions.
            q: the queries, for device and type.
            keys: number of keys.
            start: where the canvas begins among them.
            canvas: what was packed.
        """
        return mask


@dataclass(frozen=True)
class LowContext(Context):
    """The choice ``low``: low-frequency tokens stand for what is left out.

    Attributes:
        proportional: weigh each low key by the n tokens it stands for, by adding log n to its logits (proportional
            attention, ToMe section 3). Without it a block of 16 tokens has the voice of one.
    """

    uses_low: bool = True
    proportional: bool = True

    def changes_attention(self, canvas: Canvas) -> bool:
        return self.proportional and canvas.low > 0

    def mask(self, mask: torch.Tensor | None, q: torch.Tensor, keys: int, start: int, canvas: Canvas) -> torch.Tensor | None:
        if not self.changes_attention(canvas):
            return mask
        bias = torch.zeros(1, 1, 1, keys, dtype=q.dtype, device=q.device)
        first_low = start + canvas.tokens - canvas.low
        bias[..., first_low : first_low + canvas.low] = canvas.log_count.to(bias)
        if mask is None:
            return bias
        if mask.dtype == torch.bool:
            mask = torch.zeros_like(mask, dtype=q.dtype).masked_fill(~mask, -torch.finfo(q.dtype).max)
        while mask.ndim < 4:  # (L, S) and (B, L, S), as the host's attention functions read them
            mask = mask.unsqueeze(0 if mask.ndim == 2 else 1)
        return mask.to(bias) + bias


CONTEXTS = ("none", "low")


def make_context(name: str, proportional: bool = True) -> Context:
    """The context of a name in ``CONTEXTS``."""
    if name == "none":
        return Context()
    if name == "low":
        return LowContext(proportional=proportional)
    raise ValueError(f"context is {name!r}; it must be one of {', '.join(CONTEXTS)}")
