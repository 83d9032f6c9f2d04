"""PixArt alpha and sigma (comfy/ldm/pixart/pixartms.py)."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from threading import Lock
from typing import Any

import torch

from .base import Family, Sequence, UnsupportedModel, replaced
from .tables import sample_table

_MODULE = Lock()


class PixArt(Family):
    """Absolute sine-cosine positions, scaled by the size of the picture. Its attention calls take no options, so nobody
    can override them."""

    name = "PixArt"
    classes = ("comfy.ldm.pixart.pixartms.PixArtMS",)
    attends = False

    def check(self, model: Any) -> None:
        if any(block.attn.sr_ratio > 1 for block in model.blocks):
            raise UnsupportedModel(
                "this PixArt model compresses keys and values over neighbouring tokens (kv_compress), which a canvas "
                "does not have"
            )

    def positions(self, model: Any, sequence: Sequence) -> AbstractContextManager[None]:
        module: Any = sys.modules[type(model).__module__]
        generate, canvas, patch = module.get_2d_sincos_pos_embed_torch, sequence.canvas, self.patch_size(model)
        mean_side = (canvas.grid_rows + canvas.grid_cols) * patch // 2  # in latent cells

        def true_positions(width: int, *, h: int, w: int, pe_interpolation: float, **kwargs: Any) -> torch.Tensor:
            # What the model derives from the canvas's size, derived from the picture's.
            kwargs["base_size"] = round(mean_side / 64) * 64 // patch
            if model.pe_interpolation is None or model.pe_precision is not None:
                pe_interpolation = round(mean_side / 64, model.pe_precision or 0)
            table = generate(width, h=canvas.grid_rows, w=canvas.grid_cols, pe_interpolation=pe_interpolation, **kwargs)
            return sample_table(table[None], canvas)[0]

        # The model calls a function of its module, so that is what stands in for one forward.
        return _alone(replaced(module, "get_2d_sincos_pos_embed_torch", true_positions))


@contextmanager
def _alone(context: AbstractContextManager[None]) -> Iterator[None]:
    """One forward at a time, where the host calls the models of several GPUs in threads: they share their module."""
    with _MODULE, context:
        yield
