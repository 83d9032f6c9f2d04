"""Canvas: the chosen tokens laid out as a small latent, so that a DiT simply sees a smaller picture.

Everything inside the model (patchify, LoRA, step caches, torch.compile) works on the canvas unaware. Only the positions
of its tokens must be overridden, which is the families' job."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F

from .lowres import LowBlocks
from .placed import Placed
from .plan import CANVAS_WIDTH, GridPlan


@dataclass(frozen=True, eq=False)
class Canvas:
    """Which token sits where on the canvas, in raster order: full tokens first, then low ones.

    Attributes:
        rows, cols: the canvas in tokens.
        grid_rows, grid_cols: the picture's token grid.
        index: ``(K,)`` long, picture tokens of the first K slots.
        blocks: the low tokens of the last L slots.
    """

    rows: int
    cols: int
    grid_rows: int
    grid_cols: int
    index: torch.Tensor
    blocks: LowBlocks | None = None

    @property
    def tokens(self) -> int:
        return self.rows * self.cols

    @property
    def low(self) -> int:
        """Number of low slots; they are the last ones."""
        return len(self.blocks) if self.blocks else 0

    @cached_property
    def position(self) -> torch.Tensor:
        """``(K + L, 2)`` float, true row and column of every slot, in token units of the picture."""
        full = torch.stack([self.index // self.grid_cols, self.index % self.grid_cols], dim=1).float()
        return torch.cat([full, self.blocks.centre]) if self.blocks else full

    @cached_property
    def log_count(self) -> torch.Tensor:
        """``(L,)`` float, log of the number of tokens that each low slot stands for."""
        return self.blocks.count.float().log() if self.blocks else torch.empty(0)

    @cached_property
    def placed_log_count(self) -> Placed:
        """``log_count`` for attention, which needs it in every layer."""
        return Placed(self.log_count)

    @classmethod
    def of_plan(cls, plan: GridPlan) -> Canvas:
        """The canvas of a plan whose token count fills whole rows, as ``TokenPlan.on_grid`` makes them."""
        return cls.of_tokens(plan.kept, plan.grid.rows, plan.grid.cols, plan.low)

    @classmethod
    def of_tokens(cls, index: torch.Tensor, grid_rows: int, grid_cols: int, low: LowBlocks | None = None) -> Canvas:
        """A canvas of any tokens in any order.

        Args:
            index: ``(K,)`` long, tokens of the picture.
            grid_rows, grid_cols: the picture's token grid.
            low: low tokens that stand for the others.
        """
        rows, cols = canvas_shape(len(index) + (len(low) if low else 0))
        return cls(rows, cols, grid_rows, grid_cols, index, low)

    @classmethod
    def whole(cls, grid_rows: int, grid_cols: int) -> Canvas:
        """All tokens where they are: the canvas of a dense call."""
        return cls(grid_rows, grid_cols, grid_rows, grid_cols, torch.arange(grid_rows * grid_cols))

    def pack(self, tokens: torch.Tensor, low: torch.Tensor | None = None) -> torch.Tensor:
        """Lay tokens out as a latent.

        Args:
            tokens: ``(B, N, C, p, p)`` the whole picture's tokens, see ``to_tokens``.
            low: ``(B, L, C, p, p)`` the low tokens.

        Returns:
            ``(B, C, rows * p, cols * p)``.
        """
        chosen = tokens[:, self.index.to(tokens.device)]
        if self.low:
            if low is None or low.shape[1] != self.low:
                raise ValueError(
                    f"the canvas has {self.low} low slots; got {0 if low is None else low.shape[1]} low tokens"
                )
            chosen = torch.cat([chosen, low.to(chosen)], dim=1)
        return from_tokens(chosen, self.rows, self.cols)

    def unpack(self, canvas: torch.Tensor, patch: int) -> torch.Tensor:
        """The full-resolution tokens of a canvas latent, ``(B, K, C, p, p)``, in the order of ``index``; the low ones
        have done their work and are dropped."""
        return to_tokens(canvas, patch)[:, : len(self.index)]


def canvas_shape(count: int) -> tuple[int, int]:
    """Rows and columns of a canvas that holds exactly ``count`` tokens, 32 wide where that fits.

    A wide canvas, not a strip: SD3 and AuraFlow size their position tables by the longer side, ids stay exact in bf16,
    and its raster is a unique signature among reference latents."""
    if count < 1:
        raise ValueError("a canvas needs at least one token")
    if count % CANVAS_WIDTH == 0:
        return count // CANVAS_WIDTH, CANVAS_WIDTH
    cols = max(divisor for divisor in range(1, math.isqrt(count) + 1) if count % divisor == 0)
    return count // cols, cols


def to_tokens(latent: torch.Tensor, patch: int) -> torch.Tensor:
    """Cut a latent into tokens.

    Args:
        latent: ``(B, C, h, w)``; padded to whole tokens by wrapping round, as ComfyUI's models pad.
        patch: cells a token side.

    Returns:
        ``(B, N, C, patch, patch)`` in raster order.
    """
    latent = pad_to_tokens(latent, patch)
    batch, channels, height, width = latent.shape
    grid = latent.view(batch, channels, height // patch, patch, width // patch, patch)
    return grid.permute(0, 2, 4, 1, 3, 5).reshape(batch, -1, channels, patch, patch)


def pad_to_tokens(latent: torch.Tensor, patch: int) -> torch.Tensor:
    """``(B, C, h, w)`` padded right and below to whole tokens, wrapping round (comfy/ldm/common_dit.py)."""
    pad = (0, -latent.shape[-1] % patch, 0, -latent.shape[-2] % patch)
    return F.pad(latent, pad, mode="circular") if any(pad) else latent


def from_tokens(tokens: torch.Tensor, rows: int, cols: int, size: tuple[int, int] | None = None) -> torch.Tensor:
    """Put tokens ``(B, rows * cols, C, p, p)`` back into a latent ``(B, C, h, w)``, cropped to ``size`` when given."""
    batch, _, channels, patch, _ = tokens.shape
    grid = tokens.view(batch, rows, cols, channels, patch, patch).permute(0, 3, 1, 4, 2, 5)
    latent = grid.reshape(batch, channels, rows * patch, cols * patch)
    return latent if size is None else latent[..., : size[0], : size[1]]
