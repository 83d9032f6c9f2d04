"""Low-frequency tokens: a few tokens of a downsampled picture stand for all that is not computed (HiLo-Token, Method
3)."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import torch
import torch.nn.functional as F

from .grid import Grid


@dataclass(frozen=True)
class LowBlocks:
    """Blocks of ``factor x factor`` tokens, each replaced by one low token.

    Attributes:
        factor: tokens a block side.
        shape: ``(block rows, block cols)`` of the whole grid, blocks that need no token included.
        index: ``(L,)`` long, raster index on ``shape`` of each block that has a token.
        block: ``(N,)`` long, position in ``index`` of the block each *dropped* token belongs to, -1 for kept tokens.
        count: ``(L,)`` long, dropped tokens the low token stands for, 1 or more.
        centre: ``(L, 2)`` float, row and column of the block's centre in token units.
    """

    factor: int
    shape: tuple[int, int]
    index: torch.Tensor
    block: torch.Tensor
    count: torch.Tensor
    centre: torch.Tensor

    def __len__(self) -> int:
        return len(self.index)

    def pool(self, rows: torch.Tensor) -> torch.Tensor:
        """Mean over each block's dropped tokens.

        Args:
            rows: ``(B, N, D)`` one row a token.

        Returns:
            ``(B, L, D)``.
        """
        member = self.block.to(rows.device)
        known = member >= 0
        total = rows.new_zeros(rows.shape[0], len(self), rows.shape[2])
        total.index_add_(1, member[known], rows[:, known])
        return total / self.count.to(rows.device, rows.dtype)[None, :, None]

    def representative(self) -> torch.Tensor:
        """``(L,)`` long, one dropped token of each block: its noise becomes the low token's noise, unit variance and
        fixed over the run."""
        count = len(self.block)
        token = torch.arange(count)
        first = torch.full((len(self),), count, dtype=torch.long)
        known = self.block >= 0
        return first.scatter_reduce(0, self.block[known], token[known], "amin")


def low_blocks(kept: torch.Tensor, rows: int, cols: int, factor: int) -> LowBlocks:
    """The blocks that still hold a dropped token; a block covered by full tokens needs no low one.

    Args:
        kept: ``(K,)`` long, tokens computed at full resolution.
        rows, cols: the token grid.
        factor: tokens a block side, 2 to 16.
    """
    block_rows, block_cols = -(-rows // factor), -(-cols // factor)
    row, col = torch.arange(rows), torch.arange(cols)
    block = ((row // factor)[:, None] * block_cols + (col // factor)[None, :]).flatten()
    dropped = torch.ones(rows * cols, dtype=torch.bool)
    dropped[kept] = False
    count = torch.bincount(block[dropped], minlength=block_rows * block_cols)
    index = torch.nonzero(count).flatten()
    position = torch.full((block_rows * block_cols,), -1, dtype=torch.long)
    position[index] = torch.arange(len(index))

    def centres(blocks: torch.Tensor, side: int) -> torch.Tensor:
        last = torch.clamp((blocks + 1) * factor, max=side) - 1  # a border block may be cut by the picture
        return (blocks * factor + last) / 2

    centre = torch.stack([centres(index // block_cols, rows), centres(index % block_cols, cols)], dim=1)
    return LowBlocks(
        factor=factor,
        shape=(block_rows, block_cols),
        index=index,
        block=torch.where(dropped, position[block], -1),
        count=count[index],
        centre=centre,
    )


def low_latent(latent: torch.Tensor, dropped: torch.Tensor, grid: Grid, factor: int) -> torch.Tensor:
    """Downsample a clean latent by area, over dropped tokens only, so that nothing of the edit region leaks back.

    The fallback when no autoencoder is at hand: an average of latents is not the latent of an average, but it is clean
    and its noise is added afterwards.

    Args:
        latent: ``(B, C, rows * patch, cols * patch)`` clean, padded to whole tokens.
        dropped: ``(N,)`` bool.
        grid: the token grid.
        factor: tokens a block side.

    Returns:
        ``(B, C, block rows * patch, block cols * patch)``; zero where a block has no dropped token.
    """
    weight = dropped.view(1, 1, grid.rows, grid.cols).to(latent)
    weight = weight.repeat_interleave(grid.patch, 2).repeat_interleave(grid.patch, 3)
    pad = (0, -grid.cols % factor * grid.patch, 0, -grid.rows % factor * grid.patch)
    latent, weight = F.pad(latent * weight, pad), F.pad(weight, pad)
    cell, share = F.avg_pool2d(latent, factor), F.avg_pool2d(weight, factor)
    # A cell whose latents all belong to kept tokens takes its block's mean.
    block, block_share = F.avg_pool2d(latent, factor * grid.patch), F.avg_pool2d(weight, factor * grid.patch)
    block = (block / block_share.clamp_min(1e-6)).repeat_interleave(grid.patch, 2).repeat_interleave(grid.patch, 3)
    return torch.where(share > 0, cell / share.clamp_min(1e-6), block)


def low_picture(image: torch.Tensor, mask: torch.Tensor, grid: Grid, factor: int) -> torch.Tensor:
    """The picture downsampled ``factor`` times with the masked area filled from its surroundings, ready to be encoded.

    One token of the result covers one block of ``factor x factor`` tokens of the picture. The average is taken over
    unmasked pixels; what is masked altogether is filled in by OpenCV (Telea), else the object to be removed would leak
    back through the low tokens.

    Args:
        image: ``(B, H, W, 3)`` float in [0, 1].
        mask: ``(B, H, W)`` bool, pixels to forget: the edit region.
        grid: the token grid.
        factor: 2 to 16.

    Returns:
        ``(B, block rows * token_px, block cols * token_px, 3)`` float in [0, 1].
    """
    area = grid.footprint
    pixels = image[:, area[0], area[1]].movedim(-1, 1)
    known = (~mask[:, None, area[0], area[1]]).to(pixels)
    block_px = grid.token_px * factor
    height, width = -(-grid.rows // factor) * block_px, -(-grid.cols // factor) * block_px
    pad = (0, width - pixels.shape[3], 0, height - pixels.shape[2])
    # Padding carries no weight, so the border is averaged and filled from real pixels alone.
    share = F.avg_pool2d(F.pad(known, pad), factor)
    small = F.avg_pool2d(F.pad(pixels * known, pad), factor) / share.clamp_min(1e-6)
    unknown = (share[:, 0] <= 0).numpy().astype(np.uint8)
    filled = []
    for one, hole in zip(small.movedim(1, -1).clamp(0, 1).numpy(), unknown, strict=True):
        eight_bit = np.ascontiguousarray((one * 255).round().astype(np.uint8))
        patched = cv2.inpaint(eight_bit, hole, 3, cv2.INPAINT_TELEA).astype(np.float32) / 255 if hole.any() else one
        filled.append(np.where(hole[..., None] > 0, patched, one))
    return torch.from_numpy(np.stack(filled))
