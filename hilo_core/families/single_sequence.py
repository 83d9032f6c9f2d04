"""Families that differ from Flux only in names and order: HiDream-I1 and E1 (comfy/ldm/hidream/model.py), Krea 2
(comfy/ldm/krea2/model.py) and Ernie-Image (comfy/ldm/ernie/model.py)."""

from __future__ import annotations

from contextlib import AbstractContextManager, ExitStack
from typing import Any

import torch

from ..canvas import Canvas
from .base import Rotary, Sequence, replaced
from .references import Referring


class HiDream(Rotary):
    """Picture, then text. HiDream-E1 joins its source picture to the right of the picture, row by row; here its tokens
    follow the picture's instead, at the same positions, because attention does not care for the order."""

    name = "HiDream-I1 / E1"
    classes = ("comfy.ldm.hidream.model.HiDreamImageTransformer2DModel",)
    refers = True

    def take_references(self, conds: dict[str, Any]) -> tuple[list[torch.Tensor], dict[str, Any]]:
        source = conds.get("image_cond")
        return ([], conds) if source is None else ([source], {**conds, "image_cond": None})

    def positions(self, model: Any, sequence: Sequence) -> AbstractContextManager[Any]:
        if not sequence.latents:
            return super().positions(model, sequence)
        patchify, packed = model.patchify, sequence.reference(0)
        source = sequence.latents[0] if packed is None else packed.latent

        def with_source(picture: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            tokens, *rest = patchify(picture, *args, **kwargs)
            appended = patchify(source.to(picture), *args, **kwargs)[0]
            sequence.reference_tokens = [appended.shape[1]]
            return torch.cat([tokens, appended], dim=1), *rest

        stack = ExitStack()
        stack.enter_context(super().positions(model, sequence))
        stack.enter_context(replaced(model, "patchify", with_source))
        return stack

    def rewrite(self, ids: torch.Tensor, sequence: Sequence) -> torch.Tensor:
        placed = super().rewrite(ids, sequence)
        if not sequence.latents:
            return placed
        packed, picture = sequence.reference(0), sequence.canvas
        canvas = Canvas.whole(picture.grid_rows, picture.grid_cols) if packed is None else packed.canvas
        source = placed.new_zeros(len(placed), canvas.tokens, placed.shape[2])
        source[..., 1:] = canvas.position.to(placed)
        source[..., 2] += picture.grid_cols
        sequence.length += canvas.tokens
        end = sequence.start + picture.tokens
        return torch.cat([placed[:, :end], source, placed[:, end:]], dim=1)


class Krea2(Referring):
    """Text, then picture, then references."""

    name = "Krea 2"
    classes = ("comfy.ldm.krea2.model.SingleStreamDiT",)

    def patch_size(self, model: Any) -> int:
        return int(model.patch)


class Ernie(Rotary):
    """Picture, then text. Its attention calls take no options, so nobody can override them."""

    name = "Ernie-Image"
    classes = ("comfy.ldm.ernie.model.ErnieImageModel",)
    embedder = "pos_embed"
    attends = False
