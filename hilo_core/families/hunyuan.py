"""HunyuanVideo at one frame and HunyuanImage 2.1 (comfy/ldm/hunyuan_video/model.py)."""

from __future__ import annotations

import torch

from .base import Rotary, Sequence, place_canvas


class Hunyuan(Rotary):
    """Picture and text in either order, by host version; ids are ``[frame, row, column]``, or ``[row, column]`` in the
    image model."""

    name = "HunyuanVideo / HunyuanImage 2.1"
    note = "one frame; a reference latent runs dense"
    classes = ("comfy.ldm.hunyuan_video.model.HunyuanVideo",)

    def rewrite(self, ids: torch.Tensor, sequence: Sequence) -> torch.Tensor:
        return place_canvas(ids, sequence, (ids.shape[2] - 2, ids.shape[2] - 1))
