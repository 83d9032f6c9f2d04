"""AuraFlow (comfy/ldm/aura/mmdit.py)."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import torch

from .base import PictureLast, Sequence, replaced
from .tables import sample_table


class AuraFlow(PictureLast):
    """Absolute positions from a learned table, cropped to the picture's centre and stretched for pictures larger than
    it. Register tokens and text come first."""

    name = "AuraFlow"
    classes = ("comfy.ldm.aura.mmdit.MMDiT",)

    def positions(self, model: Any, sequence: Sequence) -> AbstractContextManager[None]:
        add_positions, canvas = model.apply_pos_embeds, sequence.canvas

        def add_true_positions(x: torch.Tensor, h: int, w: int) -> torch.Tensor:
            whole = x.new_zeros(1, canvas.grid_rows * canvas.grid_cols, x.shape[2])
            patch = self.patch_size(model)
            return x + sample_table(add_positions(whole, canvas.grid_rows * patch, canvas.grid_cols * patch), canvas)

        return replaced(model, "apply_pos_embeds", add_true_positions)
