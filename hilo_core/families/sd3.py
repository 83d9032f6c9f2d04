"""Stable Diffusion 3 and 3.5 (comfy/ldm/modules/diffusionmodules/mmdit.py)."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any, ClassVar

import torch

from ..canvas import Canvas
from .base import Family, Sequence, replaced


class SD3(Family):
    """Absolute positions, added to the picture's tokens: rows of a learned table, cropped to the picture's centre. The
    text comes first; SD3.5-medium also attends within the picture alone."""

    name = "SD3 / SD3.5"
    classes = ("comfy.ldm.modules.diffusionmodules.mmdit.OpenAISignatureMMDITWrapper",)
    blocks: ClassVar = {"double_block": "joint_blocks"}

    def patch_size(self, model: Any) -> int:
        patch = model.x_embedder.patch_size
        return int(patch[0] if isinstance(patch, (tuple, list)) else patch)

    def positions(self, model: Any, sequence: Sequence) -> AbstractContextManager[None]:
        cropped, canvas = model.cropped_pos_embed, sequence.canvas
        patch = self.patch_size(model)

        def true_positions(hw: tuple[int, int], *args: Any, **kwargs: Any) -> torch.Tensor:
            table = cropped((canvas.grid_rows * patch, canvas.grid_cols * patch), *args, **kwargs)
            return sample_table(table, canvas)

        return replaced(model, "cropped_pos_embed", true_positions)

    def canvas_start(self, model: Any, sequence: Sequence, keys: int) -> int | None:
        return keys - sequence.canvas.tokens


def sample_table(table: torch.Tensor, canvas: Canvas) -> torch.Tensor:
    """Read a position table at the canvas's true positions, linearly between its entries for centres of low tokens.

    Args:
        table: ``(1, grid_rows * grid_cols, D)``.

    Returns:
        ``(1, canvas.tokens, D)``; exact table rows for full tokens.
    """
    full = table[:, canvas.index.to(table.device)]
    if not canvas.low:
        return full
    row, col = canvas.position[len(canvas.index) :].to(table.device).unbind(1)
    top, left = row.floor().long(), col.floor().long()
    bottom, right = (top + 1).clamp(max=canvas.grid_rows - 1), (left + 1).clamp(max=canvas.grid_cols - 1)
    down, across = ((row - top)[:, None], (col - left)[:, None])

    def at(rows: torch.Tensor, cols: torch.Tensor) -> torch.Tensor:
        return table[0, rows * canvas.grid_cols + cols].float()

    upper = torch.lerp(at(top, left), at(top, right), across.expand(-1, table.shape[2]))
    lower = torch.lerp(at(bottom, left), at(bottom, right), across.expand(-1, table.shape[2]))
    low = torch.lerp(upper, lower, down.expand(-1, table.shape[2]))
    return torch.cat([full, low[None].to(full)], dim=1)
