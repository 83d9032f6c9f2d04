"""Positions that a model holds or makes for a whole grid, read where the canvas's tokens lie in it."""

from __future__ import annotations

import torch

from ..canvas import Canvas


def sample_table(table: torch.Tensor, canvas: Canvas) -> torch.Tensor:
    """Read a table of positions, linearly between its entries for centres of low tokens.

    Args:
        table: ``(1, grid_rows * grid_cols, D)`` in raster order.

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


def sample_rotations(whole: torch.Tensor, canvas: Canvas) -> torch.Tensor:
    """Read the rotary matrices of a grid, for centres of low tokens between its entries.

    One step down or right turns each pair of channels by a fixed angle, well below half a turn, so a part of the step
    turns by that part of the angle.

    Args:
        whole: ``(grid_rows * grid_cols, D, 2, 2)`` in raster order.

    Returns:
        ``(canvas.tokens, D, 2, 2)``; exact entries for full tokens.
    """
    full = whole[canvas.index.to(whole.device)]
    if not canvas.low:
        return full
    grid = whole.view(canvas.grid_rows, canvas.grid_cols, *whole.shape[1:])
    row, col = canvas.position[len(canvas.index) :].to(whole.device).unbind(1)
    top, left = row.floor().long(), col.floor().long()
    down = _turn(grid[0, 0], grid[1, 0]) if canvas.grid_rows > 1 else 0.0
    right = _turn(grid[0, 0], grid[0, 1]) if canvas.grid_cols > 1 else 0.0
    angle = (row - top)[:, None] * down + (col - left)[:, None] * right
    part = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], dim=-1).unflatten(-1, (2, 2))
    return torch.cat([full, part.to(whole) @ grid[top, left]])


def _turn(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """``(D,)`` the angles between rotary matrices ``(D, 2, 2)``."""
    between = second @ first.mT
    return torch.atan2(between[:, 1, 0], between[:, 0, 0])


__all__ = ["sample_rotations", "sample_table"]
