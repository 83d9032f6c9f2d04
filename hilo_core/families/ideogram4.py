"""Ideogram 4 (comfy/ldm/ideogram4/model.py)."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import torch

from .base import PictureLast, Sequence, replaced


class Ideogram4(PictureLast):
    """Text, then picture; the unconditional call has the picture alone. A token is one latent cell."""

    name = "Ideogram 4"
    classes = ("comfy.ldm.ideogram4.model.Ideogram4Transformer2DModel",)

    def patch_size(self, model: Any) -> int:
        return 1

    def positions(self, model: Any, sequence: Sequence) -> AbstractContextManager[None]:
        ids, canvas = model._image_position_ids, sequence.canvas

        def true_ids(rows: int, cols: int, device: Any) -> torch.Tensor:
            # Every axis counts from one offset far from the text's; float32 holds its halves exactly.
            placed = ids(rows, cols, device)[:1].float().repeat(canvas.tokens, 1)
            placed[:, 1:] += canvas.position.to(placed)
            return placed

        return replaced(model, "_image_position_ids", true_ids)
