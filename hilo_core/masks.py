"""Mask hygiene: from whatever an artist painted to a clean edit region in pixels."""

from __future__ import annotations

import cv2
import numpy as np

# A soft brush, a blurred mask and JPEG noise all arrive as fractions. Everything above this counts as painted, because
# the sampler's noise mask lets even a faint value change the picture.
PAINTED = 0.05


def binarise(mask: np.ndarray) -> np.ndarray:
    """Painted pixels of a soft mask.

    Args:
        mask: ``(H, W)`` float in [0, 1].

    Returns:
        ``(H, W)`` bool.
    """
    return mask > PAINTED


def fill_pinholes(mask: np.ndarray, max_area: int = 256) -> np.ndarray:
    """Close unpainted specks inside the mask, such as a brush leaves between two strokes.

    Args:
        mask: ``(H, W)`` bool.
        max_area: largest hole that is closed, in pixels; one 16 x 16 token by default. Larger holes are intended.

    Returns:
        ``(H, W)`` bool, a superset of ``mask``.
    """
    count, labels, stats, _ = cv2.connectedComponentsWithStats((~mask).astype(np.uint8), connectivity=4)
    height, width = mask.shape
    left, top = stats[:, cv2.CC_STAT_LEFT], stats[:, cv2.CC_STAT_TOP]
    inside = (left > 0) & (top > 0)
    inside &= (left + stats[:, cv2.CC_STAT_WIDTH] < width) & (top + stats[:, cv2.CC_STAT_HEIGHT] < height)
    pinhole = inside & (stats[:, cv2.CC_STAT_AREA] <= max_area)
    pinhole[0] = False  # label 0 is the painted area itself
    return mask | pinhole[labels] if count > 1 else mask


def dilate(mask: np.ndarray, pixels: int) -> np.ndarray:
    """Grow the mask by a Euclidean distance.

    Args:
        mask: ``(H, W)`` bool.
        pixels: radius in pixels, 0 or more.

    Returns:
        ``(H, W)`` bool, true wherever the nearest painted pixel is at most ``pixels`` away.
    """
    if pixels <= 0 or not mask.any():
        return mask.copy()
    return cv2.distanceTransform((~mask).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_5) <= pixels


def feather(edit_region: np.ndarray, mask: np.ndarray, pixels: int) -> np.ndarray:
    """Blend weights that rise from the border of the edit region inwards.

    The ramp is level at both ends (smoothstep), so that neither shows as a line. It never eats into the mask: where the
    dilation band is narrower than ``pixels``, the ramp is steeper.

    Args:
        edit_region: ``(H, W)`` bool, the dilated mask.
        mask: ``(H, W)`` bool, the painted mask.
        pixels: width of the ramp in pixels, 0 for a hard edge.

    Returns:
        ``(H, W)`` float32 in [0, 1]: exactly 0 outside the edit region, exactly 1 on the mask.
    """
    if pixels <= 0:
        return edit_region.astype(np.float32)
    to_outside = cv2.distanceTransform(edit_region.astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_5)
    to_mask = cv2.distanceTransform((~mask).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_5)
    ramp = np.clip(to_outside / np.minimum(pixels, np.maximum(to_outside + to_mask, 1e-6)), 0.0, 1.0)
    ramp = ramp * ramp * (3.0 - 2.0 * ramp)
    ramp[~edit_region] = 0.0
    ramp[mask] = 1.0
    return ramp.astype(np.float32)
