"""Families that differ from Flux only in names and order: HiDream-I1 (comfy/ldm/hidream/model.py), Krea 2
(comfy/ldm/krea2/model.py) and Ernie-Image (comfy/ldm/ernie/model.py)."""

from __future__ import annotations

from typing import Any

from .base import Rotary
from .references import Referring


class HiDream(Rotary):
    """Picture, then text."""

    name = "HiDream-I1"
    note = "HiDream-E1, with its source picture, runs dense"
    classes = ("comfy.ldm.hidream.model.HiDreamImageTransformer2DModel",)


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
