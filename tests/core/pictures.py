"""Small pictures and masks to plan on."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from hilo_core.lowres import LowBlocks


def picture(height: int, width: int, batch: int = 1, seed: int = 0) -> torch.Tensor:
    """A smooth random picture with a sharp bright frame in it, ``(batch, height, width, 3)`` in [0, 1]."""
    coarse = torch.rand(batch, 3, height // 16 + 2, width // 16 + 2, generator=torch.Generator().manual_seed(seed))
    fine = F.interpolate(coarse, (height, width), mode="bilinear") * 0.6
    fine[..., height // 8 : -height // 8, width // 8 : -width // 8] += 0.3
    return fine.movedim(1, -1).contiguous()


def painted(height: int, width: int, box: tuple[int, int, int, int]) -> torch.Tensor:
    """A mask ``(1, height, width)`` that is 1 in the box (top, bottom, left, right), in pixels."""
    mask = torch.zeros(1, height, width)
    mask[:, box[0] : box[1], box[2] : box[3]] = 1
    return mask


def stand_ins(centre: list[list[float]], count: list[int]) -> LowBlocks:
    """Low tokens at those centres, standing for so many tokens each."""
    index = torch.arange(len(count))
    return LowBlocks(4, (1, len(count)), index, torch.empty(0), torch.tensor(count), torch.tensor(centre))
