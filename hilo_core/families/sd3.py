"""Stable Diffusion 3 and 3.5 (comfy/ldm/modules/diffusionmodules/mmdit.py)."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any, ClassVar

import torch

from .base import PictureLast, Sequence, replaced
from .tables import sample_table


class SD3(PictureLast):
    """Absolute positions, added to the picture's tokens: rows of a learned table, cropped to the picture's centre. The
    text comes first; SD3.5-medium also attends within the picture alone."""

    name = "SD3 / SD3.5"
    classes = ("comfy.ldm.modules.diffusionmodules.mmdit.OpenAISignatureMMDITWrapper",)
    blocks: ClassVar = {"double_block": "joint_blocks"}

    def patch_size(self, model: Any) -> int:
        return super().patch_size(model.x_embedder)

    def positions(self, model: Any, sequence: Sequence) -> AbstractContextManager[None]:
        cropped, canvas = model.cropped_pos_embed, sequence.canvas
        patch = self.patch_size(model)

        def true_positions(hw: tuple[int, int], *args: Any, **kwargs: Any) -> torch.Tensor:
            table = cropped((canvas.grid_rows * patch, canvas.grid_cols * patch), *args, **kwargs)
            return sample_table(table, canvas)

        return replaced(model, "cropped_pos_embed", true_positions)
