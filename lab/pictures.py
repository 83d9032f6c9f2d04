"""Every picture the lab trains and judges on, by kind and seed."""

from __future__ import annotations

from functools import cache

import cv2
import numpy as np
import skimage.data
from sklearn.datasets import load_sample_image

from lab.leaves import leaves
from lab.procedural import KINDS as PROCEDURAL

HELD_OUT_SEED = 2**31  # seeds from here on are for benches; training draws below
SCENES = ("astronaut", "camera", "chelsea", "coins", "flower.jpg", "rocket", "stereo_motorcycle")  # thrice as often
TRAIN_PHOTOS = (
    *SCENES,
    "brick",
    "grass",
    "gravel",
    "hubble_deep_field",
    "immunohistochemistry",
    "moon",
    "retina",
)
HELD_OUT_PHOTOS = ("coffee", "china.jpg")
KINDS = (*PROCEDURAL, "photo")


@cache
def photograph(name: str) -> np.ndarray:
    """One sample photograph (H, W, 3) uint8 of scikit-image, or of scikit-learn when the name ends in .jpg."""
    data = load_sample_image(name) if name.endswith(".jpg") else getattr(skimage.data, name)()
    image = data[0] if isinstance(data, tuple) else data  # the stereo pair gives left, right, disparity
    return np.ascontiguousarray(np.stack([image] * 3, -1) if image.ndim == 2 else image[..., :3])


def photo_crop(rng: np.random.Generator, size: int, held_out: bool) -> np.ndarray:
    """A random crop of a random photograph, scaled to `size` and flipped half of the time."""
    image = photograph(str(rng.choice(HELD_OUT_PHOTOS if held_out else (*TRAIN_PHOTOS, *SCENES, *SCENES))))
    short = min(image.shape[:2])
    side = int(min(short, max(size * rng.uniform(0.6, 1.8), 0.35 * short)))
    top, left = (int(rng.integers(length - side + 1)) for length in image.shape[:2])
    crop = image[top : top + side, left : left + side]
    crop = crop[:, ::-1] if rng.random() < 0.5 else crop
    crop = crop if held_out else varied(rng, crop)
    return cv2.resize(crop, (size, size), interpolation=cv2.INTER_AREA if side > size else cv2.INTER_CUBIC)


def varied(rng: np.random.Generator, crop: np.ndarray) -> np.ndarray:
    """The crop turned by quarters, its colours swapped and the tones of each bent: few photographs must stand for many,
    and grey ones for coloured ones."""
    turned = np.rot90(crop, int(rng.integers(4)))[..., rng.permutation(3)]
    bends = np.exp(rng.normal(0, 0.35) + rng.normal(0, 0.2, 3))
    tones = 255 * np.linspace(0, 1, 256)[:, None] ** bends * rng.uniform(0.6, 1)
    return cv2.LUT(np.ascontiguousarray(turned), np.round(tones).astype(np.uint8)[None])


def training_leaves(rng: np.random.Generator, size: int) -> np.ndarray:
    """Dead leaves in the colours of a training photograph."""
    pixels = photograph(str(rng.choice(TRAIN_PHOTOS))).reshape(-1, 3)
    colours = varied(rng, pixels[None, rng.integers(len(pixels), size=40)])
    return leaves(rng, size, colours.reshape(-1, 3).astype(np.float32))


def picture(kind: str, seed: int, size: int = 256) -> np.ndarray:
    """The picture of this kind and seed, always the same.

    Args:
        kind: one of `KINDS`.
        seed: any non-negative number; from `HELD_OUT_SEED` on it belongs to the benches, and kind "photo"
            then crops `HELD_OUT_PHOTOS`, which training never sees.
        size: height and width in pixels.

    Returns:
        RGB, (size, size, 3) uint8.

    Raises:
        ValueError: for an unknown kind.
    """
    if kind not in KINDS:
        raise ValueError(f"kind is {kind!r}; choose one of {', '.join(KINDS)}")
    rng = np.random.default_rng([KINDS.index(kind), seed])
    if kind == "photo":
        return photo_crop(rng, size, seed >= HELD_OUT_SEED)
    drawn = PROCEDURAL[kind](rng, size)
    grain = rng.normal(0, rng.uniform(0, 2.5), (size, size, 1))
    return np.clip(drawn + grain + 0.5, 0, 255).astype(np.uint8)
