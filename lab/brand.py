"""Draws the pack's icon and banner with its own planner: `python -m lab.brand`, into web/."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from hilo_core import Grid, make_plan
from hilo_core.report import COLOURS, overlay
from lab.environment import ROOT

ICON_PX = 400  # the registry's largest
BANNER_PX = (1470, 630)  # 21:9
NIGHT, INK, QUIET = (17, 24, 32), (240, 240, 240), (150, 165, 180)


def icon() -> Image.Image:
    """A token grid: full tokens in the edit region and on an edge, coarse blocks for the rest."""
    tokens, gap = 10, 4
    row, col = np.mgrid[:tokens, :tokens] + 0.5
    edge = abs(np.hypot(row - 4, col - 4) - 2.9) < 0.5
    edit = np.hypot(row - 7.5, col - 7.5) < 2.4
    classes = np.select([edit, edge], [3, 2], default=1)

    cell = ICON_PX * 4 // tokens  # drawn four times larger, for smooth corners
    sheet = Image.new("RGB", (cell * tokens, cell * tokens), NIGHT)
    draw = ImageDraw.Draw(sheet)
    for row in range(tokens):
        for col in range(tokens):
            kind = classes[row, col]
            coarse = (
                kind == 1 and (classes[row // 2 * 2 : row // 2 * 2 + 2, col // 2 * 2 : col // 2 * 2 + 2] == 1).all()
            )
            if coarse and (row % 2 or col % 2):
                continue  # belongs to the block begun at its top left
            size = cell * (2 if coarse else 1)
            box = (col * cell + gap * 4, row * cell + gap * 4, col * cell + size - gap * 4, row * cell + size - gap * 4)
            draw.rounded_rectangle(box, radius=cell // 6, fill=tuple(COLOURS[kind].tolist()))
    return sheet.resize((ICON_PX, ICON_PX), Image.Resampling.LANCZOS)


def banner() -> Image.Image:
    """The demo's photograph turning into its plan, and one line of text."""
    width, height = BANNER_PX
    assets = ROOT / "lab" / "assets"
    photo = cv2.resize(np.asarray(Image.open(assets / "coffee.jpg").convert("RGB")), (1024, 1024))
    mask = cv2.resize(np.asarray(Image.open(assets / "coffee_mask.png").convert("L")), (1024, 1024)) > 127
    plan = make_plan(torch.from_numpy(photo).float()[None] / 255, torch.from_numpy(mask).float()[None])
    tinted = overlay(plan, plan.on_grid(Grid.of_picture(plan.size)))[0, :1024].numpy() * 255
    x, y = np.meshgrid(np.arange(1024), np.arange(1024))
    shown = np.where((x + 0.3 * y < 560)[..., None], photo, tinted).astype(np.uint8)
    cv2.line(shown, (560, 0), (560 - 307, 1024), (255, 255, 255), 5, cv2.LINE_AA)

    sheet = Image.new("RGB", BANNER_PX, NIGHT)
    sheet.paste(Image.fromarray(shown).resize((height, height), Image.Resampling.LANCZOS), (width - height, 0))
    draw = ImageDraw.Draw(sheet)
    draw.text((70, 190), "HiLo Token", INK, ImageFont.load_default(104))
    draw.text((74, 330), "Inpaint on the tokens that matter,", QUIET, ImageFont.load_default(42))
    draw.text((74, 386), "with the whole picture in view.", QUIET, ImageFont.load_default(42))
    return sheet


def main(folder: Path = ROOT / "web") -> None:
    """Write icon.png and banner.jpg."""
    icon().quantize(64).save(folder / "icon.png", optimize=True)
    banner().save(folder / "banner.jpg", quality=88, optimize=True)


if __name__ == "__main__":
    main()
