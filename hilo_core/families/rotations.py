"""Families that build rotary matrices from the size of the grid, without ids: Cosmos-Predict2 and Anima
(comfy/ldm/cosmos/predict2.py, comfy/ldm/anima/model.py), JoyImage (comfy/ldm/joyimage/model.py)."""

from __future__ import annotations

from contextlib import AbstractContextManager, ExitStack
from itertools import count
from typing import Any

import torch

from .base import Family, InputProxy, Sequence, UnsupportedModel, replaced
from .cross_attention import CrossAttention
from .tables import sample_rotations


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
