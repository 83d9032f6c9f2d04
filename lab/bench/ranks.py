"""Ways to rank the tokens outside the edit region, beside the paper's Sobel map: what is that one worth?"""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
import torch
from torch import Tensor

from hilo_core import Grid, TokenPlan

SOBEL = "sobel"

# Wavelengths of 2 to 8 pixels, in cycles a pixel: what a latent cell of 8 pixels has to hold.
BAND = 1 / 8, 1 / 2


def chance(plan: TokenPlan, grid: Grid, seed: int) -> Tensor:
    """Any token is as good as another."""
    return _in_pixels(torch.rand(grid.rows, grid.cols, generator=torch.Generator().manual_seed(seed)), plan, grid)


def laplacian(plan: TokenPlan, grid: Grid, seed: int) -> Tensor:
    """Second derivatives, which lines and texture have and slopes have not."""
    return torch.from_numpy(np.abs(cv2.Laplacian(_luma(plan), cv2.CV_32F)))


def spectrum(plan: TokenPlan, grid: Grid, seed: int) -> Tensor:
    """The amplitude of each token's Fourier transform in `BAND`."""
    side = grid.token_px
    tokens = torch.from_numpy(_luma(plan))[: grid.rows * side, : grid.cols * side].unflatten(0, (grid.rows, side))
    tokens = tokens.unflatten(2, (grid.cols, side)).transpose(1, 2)
    window = torch.hann_window(side, periodic=False)
    waves = torch.fft.fft2((tokens - tokens.mean((-2, -1), keepdim=True)) * window[:, None] * window, norm="ortho")
    frequency = torch.fft.fftfreq(side)
    radius = torch.hypot(frequency[:, None], frequency)
    band = (radius >= BAND[0]) & (radius <= BAND[1])
    return _in_pixels((waves.abs().square() * band).sum((-2, -1)).sqrt(), plan, grid)


def near(plan: TokenPlan, grid: Grid, seed: int) -> Tensor:
    """The Sobel map, half as strong at the distance of the edit region's own side from it."""
    region = plan.edit_region.any(0).numpy()
    distance = cv2.distanceTransform((~region).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    return plan.energy / (1 + torch.from_numpy(distance) / float(region.sum()) ** 0.5)


# (plan, token grid, seed) -> (H, W) float, 0 or more, in the place of `TokenPlan.energy`.
RANKS: dict[str, Callable[[TokenPlan, Grid, int], Tensor]] = {
    "random": chance,
    "laplacian": laplacian,
    "spectrum": spectrum,
    "near": near,
}


def _luma(plan: TokenPlan) -> np.ndarray:
    return cv2.cvtColor(plan.image[0].numpy(), cv2.COLOR_RGB2GRAY)


def _in_pixels(tokens: Tensor, plan: TokenPlan, grid: Grid) -> Tensor:
    """``(rows, cols)`` a value a token, laid over the picture's pixels."""
    height, width = plan.size
    return tokens.repeat_interleave(grid.token_px, 0).repeat_interleave(grid.token_px, 1)[:height, :width]
