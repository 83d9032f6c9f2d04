"""The plan of pictures in ComfyUI's folders, for the page to show before anything runs.

Pictures are decoded by the host's own Load Image and planned by the planner's own code, so what is shown is what a
run would do."""

from __future__ import annotations

import base64
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import Any

import cv2
import folder_paths
import numpy as np
import torch
from PIL import Image, UnidentifiedImageError

from ..hilo_core import PlanSettings, TokenPlan, make_plan, report
from ..hilo_core.outlook import Outlook
from .planner import outlook_of, settings_of

MAX_PIXELS = 32_000_000  # of all frames together: 384 MB as floats, and about a second to plan
THUMBNAIL_PX = 768
CHANNELS = ("alpha", "red", "green", "blue")


@dataclass(frozen=True)
class File:
    """A picture file as it is now: painting over it or saving it anew makes another key of the caches."""

    name: str
    path: Path
    modified_ns: int
    bytes: int


def find_file(name: Any) -> File:
    """A picture in ComfyUI's input folder, or in the one that ``name [output]`` or ``name [temp]`` says.

    Raises:
        ValueError: the name leads elsewhere or nowhere, or to what is no picture, or to one that is too large.
    """
    if not isinstance(name, str) or not name:
        raise ValueError("the request names no picture; give image as the name of a file in ComfyUI's input folder")
    inner, base = folder_paths.annotated_filepath(name)
    folder = Path(base or folder_paths.get_input_directory()).resolve()
    try:
        path = (folder / inner).resolve()
        if not (path.is_relative_to(folder) and path.is_file()):
            raise OSError
    except (OSError, ValueError) as error:  # also a name too long for the system, or with a null byte
        raise ValueError(
            f"there is no picture {name[:80]!r} in ComfyUI's {folder.name} folder; choose it again"
        ) from error
    try:
        with Image.open(path) as picture:  # reads the header only
            pixels = picture.width * picture.height * getattr(picture, "n_frames", 1)
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path.name} cannot be read as a picture; save it anew as PNG") from error
    if pixels > MAX_PIXELS:
        raise ValueError(
            f"{path.name} has {pixels / 1e6:.0f} million pixels, too many for the live preview "
            f"({MAX_PIXELS / 1e6:.0f} million at most); run the graph to see its plan"
        )
    state = path.stat()
    return File(name, path, state.st_mtime_ns, state.st_size)


def preview(
    image: Any,
    mask: Any,
    channel: Any,
    settings: dict[str, Any],
    with_picture: bool = False,
    use: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """The plan of a picture as JSON, see ``shown``.

    Args:
        image, mask: names as Load Image takes them, such as ``sub/cat.png`` or ``cat.png [temp]``.
        channel: what of the mask's picture is the mask: ``alpha`` (as the mask editor saves it), ``red``, ...
        settings: the planner's widgets by name.
        with_picture: add the picture itself, as a small JPEG.
        use: the widgets of HiLo Patch Model that say what becomes of the plan, see ``outlook_of``.

    Raises:
        ValueError: one sentence that names the input and the fix.
    """
    if channel not in CHANNELS:
        raise ValueError(f"channel is {str(channel)[:40]!r}; it must be one of {', '.join(CHANNELS)}")
    _known("settings", settings, settings_of, "HiLo Token Planner")
    use = use or {}
    _known("use", use, outlook_of, "HiLo Patch Model that the plan's size depends on")
    try:
        chosen = settings_of(**settings)
    except TypeError as error:
        raise ValueError("settings holds a value of the wrong kind; send each widget's own value") from error
    plan = _plan(find_file(image), find_file(mask), channel, chosen.dilation)
    plan = plan.with_settings(
        **{name: value for name, value in vars(chosen).items() if name != "dilation"}  # a new edit region, a new plan
    )
    try:
        answer = shown(plan, outlook_of(plan, **use))
    except TypeError as error:
        raise ValueError("use holds a value of the wrong kind; send each widget's own value") from error
    if with_picture:
        answer["picture"] = thumbnail(image)
    return answer


def _known(what: str, given: dict[str, Any], taker: Callable[..., Any], node: str) -> None:
    """Refuse names that no parameter of ``taker`` has."""
    unknown = given.keys() - inspect.signature(taker).parameters.keys() | ({"plan"} & given.keys())
    if unknown:
        raise ValueError(f"{what} has {min(unknown)[:40]!r}, which is no widget of {node}")


def shown(plan: TokenPlan, seen: Outlook) -> dict[str, Any]:
    """What the page draws, in numbers that it words in its own language.

    Returns:
        ``tokens`` of ``all_tokens`` a step, its ``speed`` against a dense one (``None`` where no count tells it),
        whether the run is ``dense``; the ``legend``: ``kind``, ``count``, ``part`` (see ``Outlook.legend``) and
        ``colour``; the share of the picture that is ``masked``, ``dilation`` and ``token_px`` in pixels, and ``notes``
        on the plan; the picture's ``size``, the token ``map`` as a PNG of one pixel a token, its place on the picture
        (``area``: left, top, width, height), and the mask's ``outline``.
    """
    height, width = plan.size
    grid = seen.plan.grid
    side = grid.token_px
    return {
        "tokens": seen.tokens,
        "all_tokens": grid.count,
        "speed": seen.speed,
        "dense": seen.dense,
        "legend": [
            {"kind": name, "count": count, "part": part, "colour": "#{:02x}{:02x}{:02x}".format(*report.COLOURS[kind])}
            for kind, name, count, part in seen.legend()
        ],
        "masked": float(plan.mask.float().mean()),
        "dilation": plan.settings.dilation,
        "token_px": side,
        "notes": list(plan.notes),
        "size": [width, height],
        "area": [grid.left, grid.top, grid.cols * side, grid.rows * side],
        "map": _data_url(".png", cv2.cvtColor(report.token_map(seen.classes()), cv2.COLOR_RGBA2BGRA)),
        "outline": [" ".join(f"{x},{y}" for x, y in line.tolist()) for line in report.mask_outline(plan)],
    }


def thumbnail(image: Any) -> str:
    """A picture of ComfyUI's folders as the data URL of a small JPEG."""
    return _picture(find_file(image))[2]


@lru_cache(maxsize=2)
def _picture(file: File) -> tuple[torch.Tensor, torch.Tensor, str]:
    """Picture ``(B, H, W, 3)`` and mask ``(B, h, w)`` as Load Image gives them, and a thumbnail."""
    host_nodes = import_module("nodes")  # the host's, which may still be loading when this module is imported
    image, mask = host_nodes.LoadImage().load_image(file.name)
    image, mask = (part.to("cpu", torch.float32) for part in (image[..., :3], mask))
    small = (image[0].clamp(0, 1) * 255).to(torch.uint8).numpy()
    scale = THUMBNAIL_PX / max(small.shape[:2])
    if scale < 1:
        small = cv2.resize(small, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    return image, mask, _data_url(".jpg", cv2.cvtColor(small, cv2.COLOR_RGB2BGR))


@lru_cache(maxsize=2)
def _plan(image: File, mask: File, channel: str, dilation: int) -> TokenPlan:
    """The plan, with its Sobel map and edit region, of which only the selection depends on the other settings."""
    drawn = _picture(mask)[1] if channel == "alpha" else _picture(mask)[0][..., CHANNELS.index(channel) - 1]
    return make_plan(_picture(image)[0], drawn, PlanSettings(dilation=dilation))


def _data_url(kind: str, picture: np.ndarray) -> str:
    """``(h, w, channels)`` uint8 in OpenCV's order of channels."""
    data = cv2.imencode(kind, picture)[1].tobytes()
    return f"data:image/{'jpeg' if kind == '.jpg' else 'png'};base64,{base64.b64encode(data).decode()}"
