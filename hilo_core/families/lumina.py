"""Lumina Image 2, Z-Image and NewBie (comfy/ldm/lumina/model.py)."""

from __future__ import annotations

from contextlib import AbstractContextManager
from functools import partial

import torch

from .base import Family, PositionProxy, Sequence, place_canvas, replaced


class Lumina(Family):
    """Caption, then picture. Both pass through refiners of their own before they meet; the picture is last."""

    name = "Lumina 2 / Z-Image"
    classes = ("comfy.ldm.lumina.model.NextDiT",)

    def positions(self, model: torch.nn.Module, sequence: Sequence) -> AbstractContextManager[None]:
        rewrite = partial(place_canvas, sequence=sequence, last=True)
        return replaced(model, "rope_embedder", PositionProxy(model.rope_embedder, rewrite))

    def canvas_start(self, model: torch.nn.Module, sequence: Sequence, keys: int) -> int | None:
        # The caption is refined first, alone, and may be as long as the canvas: only the count of calls tells them
        # apart.
        if sequence.calls < len(model.context_refiner):
            return None
        # Z-Image pads the picture's tokens; a canvas fills the multiple, a whole picture may not.
        multiple = getattr(model, "pad_tokens_multiple", None) or 1
        return keys - -(-sequence.canvas.tokens // multiple) * multiple
