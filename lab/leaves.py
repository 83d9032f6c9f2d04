"""Dead leaves: shapes of all sizes that hide one another, the classic model of what photographs have in common.

A few photographs cannot show a model that edges go on behind a mask, that surfaces shade, and that nothing need
repeat; dead leaves (Lee, Mumford and Huang 2001) in the photographs' own colours can. They are for training alone.
"""

from __future__ import annotations

import cv2
import numpy as np

from lab.procedural import Rng, fill

LARGEST, SMALLEST = 0.5, 0.02  # radii, in sides of the picture


def leaves(rng: Rng, size: int, colours: np.ndarray) -> np.ndarray:
    """A picture of dead leaves.

    Args:
        rng: source of randomness.
        size: height and width in pixels.
        colours: (n, 3) in 0..255, those that leaves may have.

    Returns:
        (size, size, 3) uint8.
    """
    picture = np.broadcast_to(rng.choice(colours), (size, size, 3)).astype(np.float32)
    count = int(rng.integers(30, 120))
    # As many of every size, the largest mostly behind: in any other order the small ones would all be hidden.
    radii = np.sort(np.exp(rng.uniform(np.log(SMALLEST), np.log(LARGEST), count)))[::-1] * size
    for radius in radii[np.argsort(np.arange(count) + rng.normal(0, count / 4, count))]:
        leaf(rng, picture, radius, rng.choice(colours))
    light = cv2.resize(rng.normal(1, 0.25, (3, 3)).astype(np.float32), (size, size), interpolation=cv2.INTER_CUBIC)
    picture *= light.clip(0.4, 1.6)[..., None]
    picture += grain(rng, size, rng.uniform(0, 6))[..., None]
    return np.clip(cv2.GaussianBlur(picture, (0, 0), rng.uniform(0.3, 1.3)) + 0.5, 0, 255).astype(np.uint8)


def leaf(rng: Rng, picture: np.ndarray, radius: float, colour: np.ndarray) -> None:
    """Draw one leaf somewhere on the picture (H, W, 3) float32, in place: shaded, textured, softly edged."""
    size = picture.shape[0]
    points = outline(rng, radius) + rng.uniform(-0.1, 1.1, 2) * size
    (left, top), (right, bottom) = np.floor(points.min(0)).astype(int) - 2, np.ceil(points.max(0)).astype(int) + 3
    left, top, right, bottom = max(0, left), max(0, top), min(size, right), min(size, bottom)
    if left >= right or top >= bottom:
        return
    inside = np.zeros((bottom - top, right - left), np.uint8)
    fill(inside, points - (left, top), np.array([255]))
    y, x = np.mgrid[top:bottom, left:right].astype(np.float32) / max(4.0, radius)
    slope = rng.normal(0, 25, 2)
    shade = slope[0] * (y - y.mean()) + slope[1] * (x - x.mean())
    if rng.random() < 0.4:
        side = max(inside.shape)
        shade = shade + grain(rng, side, rng.uniform(0, 25), rng.uniform(0.7, 4))[: len(inside), : inside.shape[1]]
    weight = inside.astype(np.float32)[..., None] / 255
    place = picture[top:bottom, left:right]
    place += (colour + shade[..., None] - place) * weight


def outline(rng: Rng, radius: float) -> np.ndarray:
    """The outline (n, 2) of a leaf round the origin: an ellipse, a polygon, a bar or a blob."""
    turn = np.linspace(0, 2 * np.pi, 64, endpoint=False)
    match rng.choice(4, p=(0.35, 0.25, 0.2, 0.2)):
        case 0:
            shape = np.stack([np.cos(turn), rng.uniform(0.3, 1) * np.sin(turn)], 1)
        case 1:
            corners = np.sort(rng.uniform(0, 2 * np.pi, int(rng.integers(3, 7))))
            shape = np.stack([np.cos(corners), np.sin(corners)], 1)
        case 2:
            length, width = rng.uniform(1, 4), rng.uniform(0.04, 0.3)
            shape = np.array([(-length, -width), (length, -width), (length, width), (-length, width)])
        case _:
            reach = np.ones_like(turn)
            for n in range(2, 6):
                reach += rng.normal(0, 0.25 / n) * np.cos(n * turn + rng.uniform(0, 6.3))
            shape = np.stack([np.cos(turn), np.sin(turn)], 1) * reach[:, None]
    angle = rng.uniform(0, 2 * np.pi)
    return radius * shape @ np.array([(np.cos(angle), -np.sin(angle)), (np.sin(angle), np.cos(angle))])


def grain(rng: Rng, size: int, strength: float, width: float = 0.6) -> np.ndarray:
    """Noise (size, size), blurred to `width` pixels, with `strength` as its standard deviation."""
    noise = cv2.GaussianBlur(rng.standard_normal((size, size), np.float32), (0, 0), width)
    return noise * (strength / max(1e-6, float(noise.std())))
