"""Lumina Image 2, Z-Image and NewBie (comfy/ldm/lumina/model.py)."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import torch

from .base import Rotary, Sequence, replaced


class Lumina(Rotary):
    """Captions, then references, then picture. All pass through refiners of their own before they meet; the picture is
    last."""

    name = "Lumina 2 / Z-Image"
    classes = ("comfy.ldm.lumina.model.NextDiT",)
    embedder = "rope_embedder"
    last = True
    refers = True

    def positions(self, model: Any, sequence: Sequence) -> AbstractContextManager[None]:
        placed = super().positions
        if not hasattr(model, "embed_all"):  # hosts without references ask for all positions in one or two calls
            return placed(model, sequence)
        embed = model.embed_all
        sequence.lead = len(model.context_refiner)
        if sequence.references and model.siglip_refiner is not None:
            sequence.lead += len(model.siglip_refiner)

        def embed_all(one: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            turn = len(sequence.reference_tokens)
            if turn == len(sequence.references):  # the picture comes last
                with placed(model, sequence):
                    return embed(one, *args, **kwargs)
            packed = sequence.reference(turn)
            if packed is None:
                parts = embed(one, *args, **kwargs)
            else:
                with placed(model, Sequence(packed.canvas, sequence.spans)):
                    parts = embed(packed.like(one), *args, **kwargs)
            sequence.reference_tokens.append(parts[0][-1].shape[1])
            return parts

        return replaced(model, "embed_all", embed_all)

    def canvas_start(self, model: Any, sequence: Sequence, keys: int) -> int | None:
        # The captions are refined first, alone, and may be as long as the canvas: only the count of calls tells them
        # apart.
        if sequence.calls < (len(model.context_refiner) if sequence.lead is None else sequence.lead):
            return None
        # Z-Image pads the picture's tokens; a canvas fills the multiple, a whole picture may not.
        multiple = getattr(model, "pad_tokens_multiple", None) or 1
        return keys - -(-sequence.canvas.tokens // multiple) * multiple

    def reference_starts(self, model: Any, sequence: Sequence, keys: int) -> list[int]:
        end = self.canvas_start(model, sequence, keys)
        return [] if end is None else sequence.reference_starts(end - sum(sequence.reference_tokens))
