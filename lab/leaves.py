"""Pictures of dead leaves: shapes of every size that hide one another, as things do in photographs.

Sizes follow a power law (Lee, Mumford and Huang 2001), which gives such pictures the statistics of edges and flat areas
that photographs have; networks trained on them do well on photographs (Baradad et al. 2021, arXiv 2106.05963). The lab
has few photographs, so it trains on these too: colours come from the photographs, everything else is drawn.
"""

from __future__ import annotations

import cv2
import numpy as np

from lab.procedural import SUBPIXEL_BITS, Rng, grid

SMALLEST = 0.02  # radius of the smallest leaf, and of the largest below, in sides of the picture
LARGEST = 0.7
FEWEST, MOST = 20, 160  # leaves in a picture
SHADED = 0.05  # a leaf of at least this radius has light and texture of its own


def leaves(rng: Rng, size: int, colours: np.ndarray) -> np.ndarray:
    """One picture of dead leaves.

    Args:
        rng: source of randomness.
        size: height and width in pixels.
        colours: (H, W, 3) uint8, the photograph whose colours the leaves take.

    Returns:
        RGB, (size, size, 3) uint8.
    """
    picture = np.empty((size, size, 3), np.float32)
    picture[:] = shaded(rng, size, some_colour(rng, colours))
    # A power law with exponent 3, by inversion. Half of the pictures have the largest at the back.
    count = int(rng.integers(FEWEST, MOST))
    share = rng.random(count)
    radii = (SMALLEST**-2 - share * (SMALLEST**-2 - LARGEST**-2)) ** -0.5
    radii = np.where(rng.random(count) < 0.15, rng.uniform(SMALLEST, LARGEST, count), radii)
    for radius in np.sort(radii)[::-1] * size if rng.random() < 0.5 else radii * size:
        shape = np.zeros((size, size), np.uint8)
        outline = leaf(rng, radius) + rng.uniform(0, size, 2)
        fixed = np.round(outline * 2**SUBPIXEL_BITS).astype(np.int32)
        cv2.fillPoly(shape, [fixed], 255, cv2.LINE_AA, SUBPIXEL_BITS)
        left, top, width, height = cv2.boundingRect(shape)
        if not width:
            continue
        inside = np.s_[top : top + height, left : left + width]
        paint = some_colour(rng, colours)
        if radius > SHADED * size:
            paint = shaded(rng, size, paint)[inside]
        cover = shape[inside][..., None].astype(np.float32) / 255
        picture[inside] += cover * (paint - picture[inside])
    blur = rng.uniform(0, 1.5)
    picture = cv2.GaussianBlur(picture, (0, 0), blur) if blur > 0.3 else picture
    return np.clip(picture + rng.normal(0, rng.uniform(0, 3), (size, size, 1)) + 0.5, 0, 255).astype(np.uint8)


def some_colour(rng: Rng, colours: np.ndarray) -> np.ndarray:
    """The colour of one pixel, float RGB."""
    return colours[rng.integers(colours.shape[0]), rng.integers(colours.shape[1])].astype(np.float32)


def leaf(rng: Rng, radius: float) -> np.ndarray:
    """The outline of one leaf (n, 2) round the origin: an ellipse, a polygon or something lumpy."""
    turns = np.linspace(0, 2 * np.pi, 48, endpoint=False)
    kind = rng.integers(3)
    if kind == 1:
        turns = np.sort(rng.uniform(0, 2 * np.pi, rng.integers(3, 7)))
    reach = np.full_like(turns, radius)
    if kind == 2:
        for wave in range(1, 6):
            reach *= 1 + rng.normal(0, 0.25 / wave) * np.cos(wave * turns + rng.uniform(0, 2 * np.pi))
    points = np.stack([reach * np.cos(turns), rng.uniform(0.15, 1) * reach * np.sin(turns)], -1)
    cos, sin = np.cos(angle := rng.uniform(0, np.pi)), np.sin(angle)
    return points @ np.array([[cos, -sin], [sin, cos]])


def shaded(rng: Rng, size: int, paint: np.ndarray) -> np.ndarray:
    """A colour under uneven light and with a texture: (size, size, 3)."""
    y, x = grid(size)
    angle = rng.uniform(0, 2 * np.pi)
    light = 1 + rng.normal(0, 0.35) * (np.cos(angle) * y + np.sin(angle) * x) / size
    if rng.random() < 0.5:  # noise of one scale, stretched one way: grain, fur, ripples
        rows, columns = (int(np.clip(size * rng.uniform(0.02, 0.5), 3, size)) for _ in range(2))
        noise = rng.normal(0, rng.uniform(0.02, 0.2), (rows, columns)).astype(np.float32)
        light = light + cv2.resize(noise, (size, size), interpolation=cv2.INTER_CUBIC)
    return paint * np.maximum(light, 0)[..., None].astype(np.float32)
