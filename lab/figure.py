"""The demo's picture: source, plan and both results side by side, with captions."""

from __future__ import annotations

from dataclasses import dataclass, field

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from hilo_core.report import COLOURS

PAPER, INK, QUIET = (250, 250, 249), (24, 24, 27), (113, 113, 122)  # background, titles, captions
TALLEST = 640  # pixels; larger pictures are shown smaller


@dataclass(frozen=True)
class Panel:
    """One picture of the figure.

    Attributes:
        picture: (H, W, 3) uint8.
        title: a word or two above it, to the left.
        aside: what matters most about it, above it to the right.
        lines: the caption below it.
        legend: texts by class of token, in the colours of `hilo_core.report`, shown below the caption.
    """

    picture: np.ndarray
    title: str
    aside: str = ""
    lines: tuple[str, ...] = ()
    legend: dict[int, str] = field(default_factory=dict)


def outlined(picture: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The picture with the outline of a mask, white on black so that it shows on any ground.

    Args:
        picture: (H, W, 3) uint8.
        mask: (H, W) bool.
    """
    drawn = picture.copy()
    contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
    width = max(1, max(mask.shape) // 256)
    cv2.drawContours(drawn, contours, -1, (0, 0, 0), 2 * width + 1, cv2.LINE_AA)
    cv2.drawContours(drawn, contours, -1, (255, 255, 255), width, cv2.LINE_AA)
    return drawn


def side_by_side(panels: list[Panel]) -> Image.Image:
    """The panels in one row at one scale; their pictures must have the same size."""
    height, width = panels[0].picture.shape[:2]
    scale = min(TALLEST / height, TALLEST / width)
    size = (round(width * scale), round(height * scale))
    unit = size[0] // 24  # everything follows from the width of a picture: type, gaps and margins
    title, text = (ImageFont.load_default(unit * share) for share in (1.15, 0.8))
    gap, line = unit, round(unit * 1.25)
    head, foot = 2 * unit, line * max(len(panel.lines) + -(-len(panel.legend) // 2) for panel in panels) + unit
    sheet = Image.new("RGB", (len(panels) * (size[0] + gap) + gap, gap + head + size[1] + foot), PAPER)
    draw = ImageDraw.Draw(sheet)
    for number, panel in enumerate(panels):
        left, top = gap + number * (size[0] + gap), gap + head
        draw.text((left, gap + head // 2), panel.title, INK, title, anchor="lm")
        draw.text((left + size[0], gap + head // 2), panel.aside, INK, text, anchor="rm")
        sheet.paste(Image.fromarray(panel.picture).resize(size, Image.Resampling.LANCZOS), (left, top))
        top += size[1] + unit // 2 + line // 2
        for row, caption in enumerate(panel.lines):
            draw.text((left, top + row * line), caption, QUIET, text, anchor="lm")
        _legend(draw, panel.legend, (left, top + len(panel.lines) * line), size[0] // 2, line, text)
    return sheet


def _legend(
    draw: ImageDraw.ImageDraw,
    texts: dict[int, str],
    corner: tuple[int, int],
    column: int,
    line: int,
    font: ImageFont.ImageFont | ImageFont.FreeTypeFont,
) -> None:
    """A swatch and a text for each class, in two columns."""
    side = line // 2
    for place, (kind, text) in enumerate(texts.items()):
        x, y = corner[0] + place % 2 * column, corner[1] + place // 2 * line
        colour = tuple(int(value) for value in COLOURS[kind])
        draw.rounded_rectangle((x, y - side // 2, x + side, y + side // 2), side // 5, colour)
        draw.text((x + 2 * side, y), text, QUIET, font, anchor="lm")
