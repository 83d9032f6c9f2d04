"""Inpainting masks in the shapes and sizes of the paper's user study."""

from __future__ import annotations

import cv2
import numpy as np

Rng = np.random.Generator
# Ranges whose middles are the paper's group averages: 6.38, 15.92 and 35.36 % of the picture.
GROUPS = {"small": (0.0200, 0.1076), "medium": (0.1076, 0.2108), "large": (0.2108, 0.4964)}
SHAPES = {"scattered": 0.55, "elongated": 0.34, "square": 0.08, "irregular": 0.03}


def skeleton(rng: Rng, size: int, shape: str) -> np.ndarray:
    """The points or strokes a mask grows from: (size, size) uint8, 0 on them and 1 elsewhere."""
    blank = np.ones((size, size), np.uint8)
    if shape == "elongated":
        for _ in range(int(rng.integers(1, 3))):
            heading = rng.uniform(0, 2 * np.pi)
            points = [rng.uniform(0.1, 0.9, 2) * size]
            for _ in range(int(rng.integers(3, 7))):
                heading += rng.normal(0, 0.6)
                points.append(points[-1] + size * rng.uniform(0.1, 0.25) * np.array([np.cos(heading), np.sin(heading)]))
            cv2.polylines(blank, [np.round(points).astype(np.int32)], False, 0, 1)
        return blank
    count = int(rng.integers(3, 9)) if shape == "scattered" else 1
    for x, y in rng.integers(int(size * 0.08), int(size * 0.92), (count, 2)):
        reach = int(rng.uniform(0, 0.08) * size) if shape == "scattered" else 1
        cv2.ellipse(blank, (int(x), int(y)), (reach, reach // 2), rng.uniform(0, 180), 0, 360, 0, -1)
    return blank


def sample_mask(rng: Rng, size: int, group: str = "train") -> np.ndarray:
    """One mask whose covered share is drawn from the group's range and met to the pixel.

    Args:
        rng: source of randomness.
        size: height and width in pixels.
        group: "small", "medium" or "large" (the paper's groups), or "train" (2 to 60 %, small ones more often).

    Returns:
        bool (size, size), True where the picture is to be painted.

    Raises:
        ValueError: for an unknown group.
    """
    if group == "train":
        share = float(np.exp(rng.uniform(np.log(0.02), np.log(0.6))))
    elif group in GROUPS:
        share = float(rng.uniform(*GROUPS[group]))
    else:
        raise ValueError(f"group is {group!r}; choose one of train, {', '.join(GROUPS)}")
    shape = str(rng.choice(list(SHAPES), p=list(SHAPES.values())))
    metric = cv2.DIST_C if shape == "square" else cv2.DIST_L2
    distance = cv2.distanceTransform(skeleton(rng, size, shape), metric, 3 if shape == "square" else 5)
    if shape == "irregular":
        coarse = rng.normal(0, 0.12 * size, (6, 6)).astype(np.float32)
        distance = distance + cv2.resize(coarse, (size, size), interpolation=cv2.INTER_CUBIC)
    # rank instead of threshold, so that ties at the rim cannot change the share
    covered = np.zeros(size * size, bool)
    covered[np.argsort(distance, axis=None, kind="stable")[: round(share * size * size)]] = True
    return covered.reshape(size, size)
