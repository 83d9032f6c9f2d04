"""OmniGen2 (comfy/ldm/omnigen/omnigen2.py) and Boogu, which derives from it (comfy/ldm/boogu/model.py)."""

from __future__ import annotations

from contextlib import AbstractContextManager
from functools import partial
from typing import Any

from .base import PositionProxy, Rotary, Sequence, replaced


class OmniGen2(Rotary):
    """Text, then references, then picture. Each is refined alone before they meet."""

    name = "OmniGen2"
    classes = ("comfy.ldm.omnigen.omnigen2.OmniGen2Transformer2DModel",)
    last = True

    def positions(self, model: Any, sequence: Sequence) -> AbstractContextManager[None]:
        owner = model.rope_embedder  # makes the ids; its own rope_embedder turns them into rotations
        proxy = PositionProxy(owner.rope_embedder, partial(self.rewrite, sequence=sequence))
        return replaced(owner, "rope_embedder", proxy)

    def canvas_start(self, model: Any, sequence: Sequence, keys: int) -> int | None:
        if keys == sequence.length:
            return sequence.start
        # Text or references, refined alone, may be as long as the canvas: only the count of calls tells them apart.
        turn = sequence.calls - len(model.context_refiner)
        return 0 if 0 <= turn < len(model.noise_refiner) else None


class Boogu(OmniGen2):
    """Double-stream blocks attend to everything first, then to references and picture without the text."""

    name = "Boogu"
    classes = ("comfy.ldm.boogu.model.BooguTransformer2DModel",)

    def canvas_start(self, model: Any, sequence: Sequence, keys: int) -> int | None:
        if keys == sequence.length and sequence.lead is None:
            sequence.lead = sequence.calls
        if sequence.lead is None:
            return super().canvas_start(model, sequence, keys)
        return keys - sequence.canvas.tokens
