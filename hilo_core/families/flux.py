"""Flux.1 dev, schnell, Fill and Kontext, Flux.2 dev and klein (comfy/ldm/flux/model.py), and Chroma, which derives from
them (comfy/ldm/chroma/model.py)."""

from __future__ import annotations

from typing import ClassVar

from .base import Rotary
from .references import Referring


class Flux(Referring):
    """Text, then picture, then reference latents, in one sequence of ids ``[index, row, column]``; Flux.2 counts its
    text on a fourth axis."""

    name = "Flux.1 / Flux.2"
    classes = ("comfy.ldm.flux.model.Flux",)
    blocks: ClassVar = {"double_block": "double_blocks", "single_block": "single_blocks"}


class Chroma(Rotary):
    """As Flux.1, without references."""

    name = "Chroma"
    classes = ("comfy.ldm.chroma.model.Chroma",)
    blocks: ClassVar = Flux.blocks
