"""Flux.1 dev, schnell, Fill and Kontext, Flux.2 dev and klein (comfy/ldm/flux/model.py), Chroma, which derives from
them (comfy/ldm/chroma/model.py), and Chroma Radiance (comfy/ldm/chroma_radiance/model.py)."""

from __future__ import annotations

from typing import Any, ClassVar

from .base import Rotary, UnsupportedModel
from .references import Referring


class Flux(Referring):
    """Text, then picture, then reference latents, in one sequence of ids ``[index, row, column]``; Flux.2 counts its
    text on a fourth axis."""

    name = "Flux.1 / Flux.2"
    classes = ("comfy.ldm.flux.model.Flux",)
    blocks: ClassVar = {"double_block": "double_blocks", "single_block": "single_blocks"}
    patch_embedding = "img_in"


class Chroma(Rotary):
    """As Flux.1, without references."""

    name = "Chroma"
    classes = ("comfy.ldm.chroma.model.Chroma",)
    blocks: ClassVar = Flux.blocks
    patch_embedding = Flux.patch_embedding


class ChromaRadiance(Chroma):
    """Chroma on pixels: each token's pixels are drawn from that token alone, unless the model ends in a convolution."""

    name = "Chroma Radiance"
    note = "with the linear head"
    classes = ("comfy.ldm.chroma_radiance.model.ChromaRadiance",)
    patch_embedding = ""

    def check(self, model: Any) -> None:
        if model.params.nerf_final_head_type != "linear":
            raise UnsupportedModel(
                "this Chroma Radiance model ends in a convolution (conv head), which would mix tokens that are "
                "neighbours on the canvas and not in the picture; HiLo Token knows the one with the linear head"
            )
