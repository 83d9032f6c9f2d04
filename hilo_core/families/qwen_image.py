"""Qwen-Image (comfy/ldm/qwen_image/model.py), and two that share its way to count from the middle of the picture:
Mage-Flow (comfy/ldm/mage_flow/model.py) and Lens (comfy/ldm/lens/model.py)."""

from __future__ import annotations

from typing import Any, ClassVar

import torch

from .base import Rotary, Sequence
from .references import Referring


class TextAfterTheHalf(Rotary):
    """Rows and columns count from the middle of the picture, and the text begins where the longer half of the picture
    ends, so a smaller picture moves both."""

    def zero(self, side: int) -> int:
        return side // 2

    def text(self, sequence: Sequence) -> slice:
        """Where the text lies in the sequence."""
        return slice(0, sequence.start)

    def rewrite(self, ids: torch.Tensor, sequence: Sequence) -> torch.Tensor:
        placed = super().rewrite(ids, sequence)
        if placed is not ids:
            canvas = sequence.canvas
            true_start = max(canvas.grid_rows // 2, canvas.grid_cols // 2)
            placed[:, self.text(sequence)] += true_start - max(canvas.rows // 2, canvas.cols // 2)
        return placed


class QwenImage(TextAfterTheHalf, Referring):
    """Text, then picture, then references."""

    name = "Qwen-Image"
    classes = ("comfy.ldm.qwen_image.model.QwenImageTransformer2DModel",)
    blocks: ClassVar = {"double_block": "transformer_blocks"}
    patch_embedding = "img_in"


class Lens(TextAfterTheHalf):
    """The picture comes first. Of an odd side the larger half lies before the middle; a token is one latent cell."""

    name = "Lens"
    classes = ("comfy.ldm.lens.model.LensTransformer2DModel",)
    embedder = "pos_embed"

    def patch_size(self, model: Any) -> int:
        return 1

    def zero(self, side: int) -> int:
        return side - side // 2

    def text(self, sequence: Sequence) -> slice:
        return slice(sequence.start + sequence.canvas.tokens, None)


class MageFlow(Referring):
    """As Lens counts, but the text comes first and has no positions; references come last."""

    name = "Mage-Flow"
    classes = ("comfy.ldm.mage_flow.model.MageFlowTransformer2DModel",)

    def zero(self, side: int) -> int:
        return side - side // 2
