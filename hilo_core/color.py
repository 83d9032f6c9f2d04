"""Matching the colours of a generated part to the picture it goes into."""

from __future__ import annotations

import cv2
import numpy as np

MATCHES = ("off", "mean", "linear")

# Pixels of a ring below which nothing is matched: a handful says nothing about a drift.
ENOUGH = 64
# Ring pixels whose difference lies farther than so many median deviations from the median were repainted, not drifted.
OUTLIER = 3.0


def match_color(decoded: np.ndarray, source: np.ndarray, ring: np.ndarray, how: str) -> np.ndarray:
    """Take brightness and colour drift off a decoded picture, as the ring shows it.

    The drift is what separates the two pictures where they show the same thing. It is taken in CIE L*a*b*, where equal
    steps look equal.

    Args:
        decoded: ``(H, W, 3)`` float32 in [0, 1], RGB.
        source: ``(H, W, 3)`` float32 in [0, 1].
        ring: ``(H, W)`` bool, where both pictures exist and show the same thing.
        how: one of ``MATCHES``; ``mean`` takes off one colour, ``linear`` one that changes evenly with position, such
            as a light from the side. Outside the ring's bounding box the colour stays as at its border.

    Returns:
        ``(H, W, 3)`` float32 in [0, 1]; ``decoded`` itself where the ring is too small, or its pixels too
            much at odds, to tell, and where the picture is not finite.

    Raises:
        ValueError: ``how`` is unknown.
    """
    if how not in MATCHES:
        raise ValueError(f"match_color is {how!r}; choose one of {', '.join(MATCHES)}")
    rows, columns = np.nonzero(ring)
    if how == "off" or len(rows) < ENOUGH or not np.isfinite(decoded.sum()):  # NaN of a decoder stays to be seen
        return decoded
    lab = cv2.cvtColor(np.ascontiguousarray(decoded, np.float32), cv2.COLOR_RGB2LAB)
    wanted = cv2.cvtColor(np.ascontiguousarray(source, np.float32).clip(0, 1), cv2.COLOR_RGB2LAB)
    drift = wanted[ring] - lab[ring]
    same = _inliers(drift)
    if not same.any():
        return decoded
    rows, columns, drift = rows[same], columns[same], drift[same]
    if how == "mean":
        shift = drift.mean(0)
    else:
        across = _position(np.arange(ring.shape[1]), columns)
        down = _position(np.arange(ring.shape[0]), rows)
        terms = np.stack([np.ones(len(rows)), across[columns], down[rows]], 1)
        plane = np.linalg.lstsq(terms, drift, rcond=1e-3)[0].astype(np.float32)
        shift = plane[0] + across[None, :, None] * plane[1] + down[:, None, None] * plane[2]
    return cv2.cvtColor((lab + shift).astype(np.float32), cv2.COLOR_LAB2RGB).clip(0, 1)


def _inliers(drift: np.ndarray) -> np.ndarray:
    """``(N,)`` bool, the pixels that drifted like most others; ``drift`` is ``(N, 3)``."""
    away = np.abs(drift - np.median(drift, 0))
    spread = np.median(away, 0) + 0.5  # half a step of L* or so is noise of 8 bits
    return np.asarray((away <= OUTLIER * spread).all(1))


def _position(places: np.ndarray, ring: np.ndarray) -> np.ndarray:
    """Coordinates from -1 to 1 over the ring's extent, and no farther beyond it."""
    low, high = int(ring.min()), int(ring.max())
    if low == high:
        return np.zeros(len(places), np.float32)
    return (2 * (places.clip(low, high) - low) / (high - low) - 1).astype(np.float32)
