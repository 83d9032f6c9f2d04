"""Families that attend within the picture alone and read the text through cross-attention: Wan 2.1 and 2.2 at one frame
(comfy/ldm/wan/model.py) and Kandinsky 5 (comfy/ldm/kandinsky5/model.py)."""

from __future__ import annotations

from typing import Any

from .base import Rotary, Sequence, UnsupportedModel


class CrossAttention(Rotary):
    """Each block attends within the picture first. The text may be as long as the picture, so calls are told apart by
    their turn in the block and not by length."""

    embedder = "rope_embedder"

    def calls_before_blocks(self, model: Any) -> int:
        """Attention calls of a forward before its first block."""
        return 0

    def calls_a_block(self, model: Any) -> int:
        """Attention calls of a block."""
        return 2

    def canvas_start(self, model: Any, sequence: Sequence, keys: int) -> int | None:
        turn = sequence.calls - self.calls_before_blocks(model)
        return sequence.start if turn >= 0 and turn % self.calls_a_block(model) == 0 else None


class Wan(CrossAttention):
    """Models with a picture encoder read its features in a third call. Subclasses for video control stay out."""

    name = "Wan 2.1 / 2.2"
    note = "one frame; no Vace, Camera, S2V, HuMo, Animate or SCAIL"
    classes = ("comfy.ldm.wan.model.WanModel",)

    def calls_a_block(self, model: Any) -> int:
        return 2 if model.img_emb is None else 3


class Kandinsky5(CrossAttention):
    """Text is refined alone before the blocks."""

    name = "Kandinsky 5"
    note = "the image model"
    classes = ("comfy.ldm.kandinsky5.model.Kandinsky5",)
    embedder = "rope_embedder_3d"

    def check(self, model: Any) -> None:
        if model.model_dim == 4096:
            raise UnsupportedModel(
                "this model is a Kandinsky 5 Pro video model, which scales positions by the size of the picture, so "
                "HiLo Token cannot run it; it knows the image model"
            )

    def calls_before_blocks(self, model: Any) -> int:
        return len(model.text_transformer_blocks)
