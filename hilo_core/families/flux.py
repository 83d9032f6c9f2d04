"""Flux.1 dev, schnell, Fill and Kontext (comfy/ldm/flux/model.py)."""

from __future__ import annotations

from contextlib import AbstractContextManager
from functools import partial

import torch

from .base import Family, PositionProxy, Sequence, UnsupportedModel, place_canvas, replaced


class Flux(Family):
    """Text, then picture, then reference latents, in one sequence of ids ``[index, row, column]``."""

    name = "Flux.1"
    classes = ("comfy.ldm.flux.model.Flux",)

    def check(self, model: torch.nn.Module) -> None:
        if len(model.pe_embedder.axes_dim) != 3:
            raise UnsupportedModel("this model is a Flux.2, which HiLo Token does not know yet; it knows Flux.1")

    def positions(self, model: torch.nn.Module, sequence: Sequence) -> AbstractContextManager[None]:
        return replaced(
            model, "pe_embedder", PositionProxy(model.pe_embedder, partial(place_canvas, sequence=sequence))
        )
