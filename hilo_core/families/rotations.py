"""Families that build rotary matrices from the size of the grid, without ids: Cosmos-Predict2 and Anima
(comfy/ldm/cosmos/predict2.py, comfy/ldm/anima/model.py), JoyImage (comfy/ldm/joyimage/model.py)."""

from __future__ import annotations

from contextlib import AbstractContextManager, ExitStack
from itertools import count
from typing import Any

import torch

from ..canvas import Canvas
from .base import Family, InputProxy, Sequence, UnsupportedModel, replaced
from .cross_attention import CrossAttention


class Cosmos(CrossAttention):
    """Self-attention over the picture, then cross-attention to the text."""

    name = "Cosmos-Predict2 / Anima"
    note = "one frame"
    classes = ("comfy.ldm.cosmos.predict2.MiniTrainDIT", "comfy.ldm.anima.model.Anima")

    def check(self, model: Any) -> None:
        if model.extra_per_block_abs_pos_emb:
            raise UnsupportedModel(
                "this Cosmos-Predict2 model has a second, learned position embedding, which HiLo Token does not know; "
                "it knows the text-to-image models"
            )

    def patch_size(self, model: Any) -> int:
        return int(model.patch_spatial)

    def positions(self, model: Any, sequence: Sequence) -> AbstractContextManager[None]:
        embedder, canvas = model.pos_embedder, sequence.canvas
        generate = embedder.generate_embeddings

        def true_positions(shape: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
            batch, frames, _, _, channels = shape
            whole = generate((batch, frames, canvas.grid_rows, canvas.grid_cols, channels), *args, **kwargs)
            return sample_rotations(whole, canvas)

        return replaced(embedder, "generate_embeddings", true_positions)


class JoyImage(Family):
    """Picture, then references, then text, which has no positions."""

    name = "JoyImage"
    classes = ("comfy.ldm.joyimage.model.JoyImageTransformer3DModel",)
    refers = True

    def patch_size(self, model: Any) -> int:
        return int(model.patch_size[-1])

    def positions(self, model: Any, sequence: Sequence) -> AbstractContextManager[Any]:
        generate, canvas = model._get_rotary_pos_embed_for_range, sequence.canvas
        cut_turns, placed_turns = count(-1), count(-1)  # the picture comes first

        def stand_in(whole: torch.Tensor) -> torch.Tensor:
            packed = sequence.reference(next(cut_turns))
            return whole if packed is None else packed.like(whole)

        def true_positions(start: Any, stop: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
            turn = next(placed_turns)
            if turn < 0:
                whole = generate(start, (stop[0], canvas.grid_rows, canvas.grid_cols), *args, **kwargs)
                return sample_rotations(whole, canvas)
            whole = generate(start, stop, *args, **kwargs)
            packed = sequence.reference(turn)
            placed = whole if packed is None else sample_rotations(whole, packed.canvas)
            sequence.reference_tokens.append(len(placed))
            return placed

        stack = ExitStack()
        stack.enter_context(replaced(model, "_get_rotary_pos_embed_for_range", true_positions))
        if sequence.references:
            stack.enter_context(replaced(model, "img_in", InputProxy(model.img_in, stand_in)))
        return stack

    def canvas_start(self, model: Any, sequence: Sequence, keys: int) -> int | None:
        return 0


def sample_rotations(whole: torch.Tensor, canvas: Canvas) -> torch.Tensor:
    """Read the rotary matrices of a grid at the canvas's true positions, for centres of low tokens between its entries.

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
