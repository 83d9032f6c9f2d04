"""Qwen-Image (comfy/ldm/qwen_image/model.py)."""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch

from .base import Family, PositionProxy, Sequence, place_canvas, replaced


class QwenImage(Family):
    """Text, then picture, then references. Rows and columns count from the middle of the picture, and the text begins
    where the longer half of the picture ends, so a smaller picture moves both."""

    name = "Qwen-Image"
    classes = ("comfy.ldm.qwen_image.model.QwenImageTransformer2DModel",)

    def positions(self, model: torch.nn.Module, sequence: Sequence) -> AbstractContextManager[None]:
        def rewrite(ids: torch.Tensor) -> torch.Tensor:
            placed = place_canvas(ids, sequence, centred=True)
            if placed is not ids:
                canvas = sequence.canvas
                true_start = max(canvas.grid_rows // 2, canvas.grid_cols // 2)
                placed[:, : sequence.start] += true_start - max(canvas.rows // 2, canvas.cols // 2)
            return placed

        return replaced(model, "pe_embedder", PositionProxy(model.pe_embedder, rewrite))
