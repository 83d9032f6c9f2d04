"""The user's own picture and mask, from files to tensors. Whatever is wrong with them is said in one sentence."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from hilo_core.masks import binarise

SIDE = 16  # pixels a token: both sides of the working picture are multiples of it


class InputError(ValueError):
    """A file or option that cannot be used; the message names it and the fix."""


@dataclass(frozen=True)
class Inputs:
    """What an inpainting run starts from.

    Attributes:
        image: (1, 3, H, W) float in 0..1, sides multiples of 16.
        mask: (1, 1, H, W) float, 1 where to paint, 0 elsewhere.
        notes: sentences about what was done to the files.
    """

    image: Tensor
    mask: Tensor
    notes: tuple[str, ...] = ()

    @property
    def share(self) -> float:
        """Painted share of the picture, 0 to 1."""
        return float(self.mask.mean())


def read_inputs(image: Path, mask: Path | None, size: int) -> Inputs:
    """Read a picture and its mask and bring both to the working size.

    Args:
        image: any file Pillow reads; turned upright as its EXIF data says. Without `mask` its transparent area is the
            mask, as ComfyUI's mask editor saves it.
        mask: any picture, white where to paint; stretched to the picture where its size differs.
        size: the longer side in pixels, rounded down to a multiple of 16. The shorter side is cropped, centred.

    Raises:
        InputError: a file is missing, is no picture or is damaged, or there is nothing to paint.
    """
    picture = _open(image, "--image")
    painted, notes = _transparent(picture, image) if mask is None else _mask(_open(mask, "--mask"), picture.size)
    width, height = _working_size(picture.size, size, image)
    ways = Image.Resampling
    pixels = np.asarray(ImageOps.fit(_rgb(picture), (width, height), ways.LANCZOS))
    inside = binarise(np.asarray(ImageOps.fit(painted, (width, height), ways.BOX)) / 255)
    if not inside.any():
        name = f"--mask {mask}" if mask else f"the transparent area of --image {image}"
        raise InputError(f"{name} is empty at {width} x {height}: paint the area to change white in a --mask file")
    tensor = torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].float() / 255
    ready = Inputs(tensor, torch.from_numpy(inside)[None, None].float(), notes)
    if (width, height) != picture.size:
        resized = f"{image.name} is {picture.width} x {picture.height} and has been brought to {width} x {height}"
        ready = replace(ready, notes=(resized, *notes))
    return ready


def _open(path: Path, option: str) -> Image.Image:
    try:
        with Image.open(path) as file:
            file.load()
            return ImageOps.exif_transpose(file)
    except FileNotFoundError:
        raise InputError(f"{option} {path} does not exist: check the path") from None
    except IsADirectoryError:
        raise InputError(f"{option} {path} is a folder: name a picture file in it") from None
    except PermissionError:
        raise InputError(f"{option} {path} may not be read: check its permissions") from None
    except UnidentifiedImageError:
        raise InputError(f"{option} {path} is not a picture that Pillow can read: use PNG, JPEG or WebP") from None
    except Image.DecompressionBombError:
        raise InputError(f"{option} {path} is too large to open safely: scale it down first") from None
    except (OSError, SyntaxError, ValueError) as error:  # what Pillow's readers raise on damaged files
        raise InputError(f"{option} {path} is damaged ({error}): save it again") from None


def _rgb(picture: Image.Image) -> Image.Image:
    """Any mode as 8-bit RGB, without its transparency: the colours below are kept, as mask editors keep them."""
    if picture.mode.startswith("I"):  # 16-bit grey, which Pillow would clip at 255
        return Image.fromarray((np.asarray(picture).clip(0, 65535) / 257).astype(np.uint8)).convert("RGB")
    return picture.convert("RGBA").convert("RGB") if "transparency" in picture.info else picture.convert("RGB")


def _transparent(picture: Image.Image, path: Path) -> tuple[Image.Image, tuple[str, ...]]:
    """The mask a picture carries: painted where it is transparent."""
    has_alpha = picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info
    alpha = picture.convert("RGBA").getchannel("A") if has_alpha else None
    if alpha is None or alpha.getextrema()[0] == 255:
        raise InputError(f"--image {path} has no transparent area to paint: add --mask FILE, white where to paint")
    note = f"what is transparent in {path.name} is painted; the colours stored below it count as the source in PSNR"
    return ImageOps.invert(alpha), (note,)


def _mask(mask: Image.Image, size: tuple[int, int]) -> tuple[Image.Image, tuple[str, ...]]:
    if mask.mode in ("RGBA", "LA", "PA") or "transparency" in mask.info:  # a stroke on a transparent layer
        layer = mask.convert("RGBA")
        mask = Image.alpha_composite(Image.new("RGBA", layer.size, "black"), layer)
    grey = _rgb(mask).convert("L")
    if grey.size == size:
        return grey, ()
    note = f"the mask was {grey.width} x {grey.height} and has been stretched to the picture's {size[0]} x {size[1]}"
    return grey.resize(size, Image.Resampling.BILINEAR), (note,)


def _working_size(size: tuple[int, int], longer: int, path: Path) -> tuple[int, int]:
    scale = longer / max(size)
    width, height = (round(side * scale) // SIDE * SIDE for side in size)
    if min(width, height) < 2 * SIDE:
        raise InputError(
            f"--image {path} is {size[0]} x {size[1]}, too narrow at --size {longer}: crop it or give a larger --size"
        )
    return width, height
