"""What the quality bench paints: pictures nobody trained on, with masks in the paper's groups and shapes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from hilo_core.masks import fill_pinholes
from lab.masks import GROUPS, sample_mask
from lab.pictures import HELD_OUT_SEED, KINDS, picture

TOKEN = 16  # pixels a token side of the lab's model; sides must be multiples of it
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")


@dataclass(frozen=True)
class Case:
    """One job of the bench.

    Attributes:
        name: unique within a run.
        kind: of picture, one of `lab.pictures.KINDS`, or "folder".
        group: of mask, a key of `lab.masks.GROUPS`.
        image: (H, W, 3) float32 in 0..1, the true picture.
        mask: (H, W) bool, true where it is hidden and painted anew.
        seed: of the sampling noise, and of anything random a row does.
    """

    name: str
    kind: str
    group: str
    image: np.ndarray
    mask: np.ndarray
    seed: int


def kind_of(group: str, number: int) -> str:
    """The kind of picture of `held_out_case`: shifted by the group, so that a few cases a group still see every kind
    and no two groups the same picture."""
    return KINDS[(number + 3 * list(GROUPS).index(group)) % len(KINDS)]


def held_out_case(group: str, number: int, size: int) -> Case:
    """The `number`-th case of a group: kinds in turn, a new picture, mask and noise each time, the same at every call.

    Args:
        group: a key of `GROUPS`.
        number: from 0.
        size: side in pixels, a multiple of 16.
    """
    kind, seed = kind_of(group, number), 3 * number + list(GROUPS).index(group)
    image = picture(kind, HELD_OUT_SEED + seed, size)
    mask = sample_mask(np.random.default_rng([seed, 1]), size, group)
    return Case(f"{group}-{number:03d}-{kind}", kind, group, as_float(image), fill_pinholes(mask), seed)


def folder_cases(images: Path, masks: Path, size: int) -> Iterator[Case]:
    """The pictures of one folder with the masks of the same file name (any suffix) in another.

    Pictures are scaled so that the longer side is `size`, and cropped to multiples of 16 in the middle. A mask paints
    where it is lighter than 5 % grey, and joins the group whose range of covered shares it is nearest to.

    Raises:
        FileNotFoundError: a folder is missing or empty, or a picture has no mask.
        ValueError: a mask is empty or covers the whole picture.
    """
    for folder in (images, masks):
        if not folder.is_dir():
            raise FileNotFoundError(f"{folder} is not a folder; give the folders of --images and --masks")
    by_stem = {path.stem: path for path in sorted(masks.iterdir()) if path.suffix.lower() in SUFFIXES}
    paths = [path for path in sorted(images.iterdir()) if path.suffix.lower() in SUFFIXES]
    if not paths:
        raise FileNotFoundError(f"{images} holds no pictures ({', '.join(SUFFIXES)})")
    for number, path in enumerate(paths):
        if path.stem not in by_stem:
            raise FileNotFoundError(f"{masks} has no mask named {path.stem}.*; every picture needs one")
        image = fitted(read(path, cv2.IMREAD_COLOR_RGB), size, cv2.INTER_AREA)
        grey = read(by_stem[path.stem], cv2.IMREAD_GRAYSCALE)
        mask = fill_pinholes(fitted(grey, size, cv2.INTER_NEAREST) > 0.05 * 255)
        if mask.shape != image.shape[:2]:
            raise ValueError(f"mask {by_stem[path.stem].name} has other proportions than its picture; make them equal")
        if not mask.any() or mask.all():
            raise ValueError(
                f"mask {by_stem[path.stem].name} paints nothing or everything; paint a part of the picture"
            )
        yield Case(path.stem, "folder", group_of(mask), as_float(image), mask, number)


def group_of(mask: np.ndarray) -> str:
    """The group whose range of covered shares is nearest to the mask's."""
    share = float(mask.mean())
    return min(GROUPS, key=lambda group: max(GROUPS[group][0] - share, share - GROUPS[group][1]))


def as_float(image: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8 to float32 in 0..1."""
    return image.astype(np.float32) / 255


def read(path: Path, mode: int) -> np.ndarray:
    """A picture file as uint8.

    Raises:
        ValueError: OpenCV cannot read it.
    """
    image = cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), mode)
    if image is None:
        raise ValueError(f"{path} cannot be read as a picture; save it as PNG or JPEG")
    return image


def fitted(image: np.ndarray, size: int, interpolation: int) -> np.ndarray:
    """Scaled to `size` pixels on the longer side, both sides cropped in the middle to multiples of 16."""
    scale = size / max(image.shape[:2])
    sides = [max(TOKEN, round(side * scale)) for side in image.shape[1::-1]]
    scaled = cv2.resize(image, sides, interpolation=interpolation)
    top, left = ((side % TOKEN) // 2 for side in scaled.shape[:2])
    height, width = (side // TOKEN * TOKEN for side in scaled.shape[:2])
    return scaled[top : top + height, left : left + width]
