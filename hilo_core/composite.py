"""Paste the edited region over the source picture, bit-exact outside it."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import torch
import torch.nn.functional as F

from . import masks
from .color import match_color
from .grid import Grid
from .plan import TokenPlan

BLENDS = ("feather", "laplacian")

# Pixels round the edit region that show a drift of colours where there is no dilation band to show it.
RING = 16


def composite(
    plan: TokenPlan, decoded: torch.Tensor, feather: int, match: str = "off", blend: str = "feather"
) -> torch.Tensor:
    """Blend a decoded picture into the plan's source.

    Args:
        plan: holds the source picture, the mask and the edit region.
        decoded: ``(n * B, h, w, 3)`` float, the decoded samples; the same size as the source, or up to one latent cell
            smaller because the autoencoder cropped it to the centre. Only the edit region is looked at, and with
            ``match`` ``reach(plan)`` pixels round it.
        feather: pixels over which the border of the edit region blends; it stays inside the dilation band.
        match: takes colour drift off the decoded picture, see ``color.match_color``.
        blend: ``feather`` fades from one picture to the other; ``laplacian`` fades coarse structure wide and fine
            structure narrow over the whole dilation band (Burt and Adelson 1983), whatever ``feather`` says, which
            hides a step in brightness but lets the source's brightness reach into the mask.

    Returns:
        ``(n * B, H, W, 3)`` float: equal to the source, bit for bit, wherever the blend weight is 0.

    Raises:
        ValueError: the picture does not belong to the plan, or an unknown choice.
    """
    if blend not in BLENDS:
        raise ValueError(f"blend is {blend!r}; choose one of {', '.join(BLENDS)}")
    source = plan.image
    copies, rest = divmod(decoded.shape[0], source.shape[0])
    if rest or not copies:
        raise ValueError(
            f"samples hold {decoded.shape[0]} pictures and the plan {source.shape[0]}; the samples must come from the "
            "picture the plan was made for, once or several times"
        )
    decoded = _to_source_size(decoded.detach().to(source), plan.size)
    layers = [
        _Layer(image.numpy(), mask.numpy(), region.numpy(), masks.feather(region.numpy(), mask.numpy(), feather))
        for image, mask, region in zip(source, plan.mask, plan.edit_region, strict=True)
    ]
    # A batch of samples repeats the pictures in turn, as ComfyUI's Repeat Latent Batch does.
    pasted = [layers[place % len(layers)].paste(one.numpy(), match, blend) for place, one in enumerate(decoded)]
    return torch.from_numpy(np.stack(pasted))


@dataclass(frozen=True)
class _Layer:
    """What a decoded picture is pasted over: ``(H, W, 3)`` source, ``(H, W)`` mask, edit region and blend weights."""

    source: np.ndarray
    mask: np.ndarray
    region: np.ndarray
    alpha: np.ndarray

    def paste(self, decoded: np.ndarray, match: str, blend: str) -> np.ndarray:
        """The source with the decoded edit region, ``(H, W, 3)``."""
        if match != "off":
            decoded = match_color(decoded, self.source, ring_of(self.region, self.mask), match)
        result = self.source.copy()
        inside = self.alpha > 0
        if blend == "feather":
            weight = self.alpha[inside, None]
            result[inside] = self.source[inside] * (1 - weight) + decoded[inside] * weight
        else:
            result[inside] = self._laplacian(decoded)[inside]
        return result

    def _laplacian(self, decoded: np.ndarray) -> np.ndarray:
        """Blended in octaves over the bounding box of the edit region; elsewhere the source."""
        to_outside = cv2.distanceTransform(self.region.astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_5)
        width = int(np.clip(to_outside[self.mask].min(), 2, 64))  # of the dilation band, where it is narrowest
        levels = int(np.log2(width))
        pad = 2 ** (levels + 1)
        rows, columns = np.flatnonzero(self.region.any(1)), np.flatnonzero(self.region.any(0))
        box = (
            slice(max(rows[0] - pad, 0), rows[-1] + 1 + pad),
            slice(max(columns[0] - pad, 0), columns[-1] + 1 + pad),
        )
        source = self.source[box]
        inside = np.where(self.region[box][..., None], decoded[box], source)
        cut = masks.feather(self.region, self.mask, width)[box] >= 0.5  # in the middle of the band
        blended = _octaves(source, inside, cut.astype(np.float32), levels)
        # Coarse octaves still differ from the source at the border of the edit region: they end within a quarter of the
        # band, so that there is no step where the source begins.
        end = masks.feather(self.region, self.mask, max(width // 4, 1))[box][..., None]
        result = self.source.copy()
        result[box] += end * (blended - source)
        return result


def reach(plan: TokenPlan) -> int:
    """Pixels round the edit region that ``composite`` looks at to match colours."""
    bands = plan.edit_region & ~plan.mask
    return 0 if bool((bands.sum((1, 2)) > 0).all()) else RING


def ring_of(edit_region: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Where source and decoded picture show the same thing: the dilation band, which is decoded anew but was not to be
    painted; without one, the surroundings of the edit region, which only went through the autoencoder.

    Args:
        edit_region, mask: ``(H, W)`` bool.

    Returns:
        ``(H, W)`` bool, empty where everything is edit region.
    """
    band = edit_region & ~mask
    return band if band.any() else masks.dilate(edit_region, RING) & ~edit_region


def _octaves(source: np.ndarray, decoded: np.ndarray, alpha: np.ndarray, levels: int) -> np.ndarray:
    """Blend fine structure at this scale, the rest at half the size."""
    if not levels or min(alpha.shape) < 4:
        return source + alpha[..., None] * (decoded - source)
    size = alpha.shape[::-1]
    coarse_source, coarse_decoded = cv2.pyrDown(source), cv2.pyrDown(decoded)
    fine_source = source - cv2.pyrUp(coarse_source, dstsize=size)
    fine_decoded = decoded - cv2.pyrUp(coarse_decoded, dstsize=size)
    fine = fine_source + alpha[..., None] * (fine_decoded - fine_source)
    return fine + cv2.pyrUp(_octaves(coarse_source, coarse_decoded, cv2.pyrDown(alpha), levels - 1), dstsize=size)


def _to_source_size(decoded: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Put back the border that the autoencoder cropped, by repeating the outermost decoded pixel."""
    height, width = decoded.shape[1:3]
    missing = (size[0] - height, size[1] - width)
    if missing == (0, 0):
        return decoded
    for factor in (8, 16, 32):
        if (height, width) == (size[0] // factor * factor, size[1] // factor * factor):
            grid = Grid.of_latent(size, (height // factor, width // factor), 1)
            pad = (grid.left, missing[1] - grid.left, grid.top, missing[0] - grid.top)
            return F.pad(decoded.movedim(-1, 1), pad, mode="replicate").movedim(1, -1)
    raise ValueError(
        f"samples decode to {width} x {height} pixels, but the plan's picture is {size[1]} x {size[0]}; unpack with "
        "the plan of the picture that was sampled"
    )
