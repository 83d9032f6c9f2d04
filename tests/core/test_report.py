"""The report's numbers add up, and the overlay shows what they say."""

from __future__ import annotations

import re

import cv2
import numpy as np
import pytest
import torch
from skimage.color import deltaE_ciede2000, rgb2lab

from core.pictures import painted, picture
from hilo_core import Grid, PlanSettings, make_plan
from hilo_core.report import COLOURS, NAMES, STRENGTH, describe, legend, mask_outline, overlay, step_speed, token_map

SIZES = [(256, 320), (250, 333)]


def planned(size: tuple[int, int], **settings: float):
    mask = painted(*size, (80, 120, 60, 110))
    plan = make_plan(picture(*size), mask, PlanSettings(**{"dilation": 8, "low_factor": 4, **settings}))
    return plan, plan.on_grid(Grid.of_picture(size))


@pytest.mark.parametrize("size", SIZES)
def test_the_counts_add_up(size: tuple[int, int]) -> None:
    plan, on_grid = planned(size)
    text = describe(plan, on_grid).replace(",", "")
    total, all_tokens = map(int, re.search(r"(\d+) of (\d+) tokens", text).groups())
    parts = [int(re.search(rf"{name} (\d+)", text)[1]) for name in ("edit region", "high frequency", "low frequency")]
    assert sum(parts) == total == on_grid.tokens < all_tokens == on_grid.grid.count


def test_a_dense_plan_says_so() -> None:
    plan, on_grid = planned((256, 320), detail=1.0, threshold=0.0)
    assert describe(plan, on_grid).startswith("nothing to save: runs dense")


def test_notes_are_shown() -> None:
    plan = make_plan(picture(256, 320), painted(128, 160, (40, 60, 30, 55)))
    assert "resized to 320 x 256" in describe(plan, plan.on_grid(Grid.of_picture(plan.size)))


@pytest.mark.parametrize("size", SIZES)
def test_the_overlay_tints_every_token_by_its_class(size: tuple[int, int]) -> None:
    plan, on_grid = planned(size)
    # A grey picture without edges of its own, so that a pixel's tint names its class.
    grey = torch.full_like(plan.image, 0.5)
    shown = overlay(type(plan)(**{**vars(plan), "image": grey}), on_grid)
    assert shown.shape[0] == 1 and shown.shape[2:] == (size[1], 3) and shown.shape[1] > size[0]
    assert shown.min() >= 0 and shown.max() <= 1
    top, left = on_grid.grid.top, on_grid.grid.left
    tints: dict[int, set] = {}
    for row, classes in enumerate(on_grid.classes()[:-1]):
        for col, kind in enumerate(classes[:-1]):
            pixel = shown[0, top + row * 16 + 8, left + col * 16 + 8]
            if (pixel < 0.99).any():  # not the white outline of the mask
                tints.setdefault(int(kind), set()).add(tuple((pixel * 255).round().int().tolist()))
    present = set(on_grid.classes().flatten().tolist())
    assert set(tints) == present and all(len(colours) == 1 for colours in tints.values()), "one colour a class"
    assert len({next(iter(colours)) for colours in tints.values()}) == len(present), "and all of them differ"


def test_all_four_colours_appear() -> None:
    """Left out appears without low tokens, low with them; together with high and the edit region all four are used."""
    seen = set()
    for factor in (0, 4):
        plan, on_grid = planned((256, 320), low_factor=factor)
        seen |= set(on_grid.classes().flatten().tolist())
        legend = (overlay(plan, on_grid)[0, 256:] * 255).round().int()
        for kind in set(on_grid.classes().flatten().tolist()) - {0}:
            assert (legend == torch.from_numpy(COLOURS[kind]).int()).all(-1).any(), f"{NAMES[kind]} is in the legend"
    assert seen == {0, 1, 2, 3} and len(COLOURS) == len(NAMES) == 4


def test_a_wide_and_a_tiny_picture_get_a_legend() -> None:
    for size in ((64, 1200), (64, 64)):
        plan = make_plan(picture(*size), painted(*size, (20, 30, 20, 30)), PlanSettings(0))
        assert overlay(plan, plan.on_grid(Grid.of_picture(size))).shape[2] == size[1]


def test_a_step_is_faster_by_what_it_leaves_out() -> None:
    """No gain for all tokens, more than linear gain where attention weighs, and less where text is most of it."""
    assert step_speed(4096, 4096) == 1
    speeds = [step_speed(tokens, 4096) for tokens in (256, 1184, 1600, 2272)]
    assert speeds == sorted(speeds, reverse=True) and speeds[1] < 4096 / 1184
    assert step_speed(16384, 65536) > 4
    # The paper's own speedups of a DiT, 3.13, 2.59 and 1.67, at masks that give these counts in the speed bench.
    assert np.allclose(speeds[1:], (3.13, 2.59, 1.67), rtol=0.1)


@pytest.mark.parametrize("size", SIZES)
def test_the_token_map_has_the_overlays_colours(size: tuple[int, int]) -> None:
    _, on_grid = planned(size)
    classes = on_grid.classes()
    colours = token_map(classes)
    assert colours.shape == (*classes.shape, 4) and colours.dtype == np.uint8
    for kind, _, _ in legend(on_grid):
        assert (colours[classes == kind] == [*COLOURS[kind], round(STRENGTH[kind] * 255)]).all()


def test_the_outline_encloses_what_was_painted() -> None:
    plan, _ = planned((250, 333))
    filled = np.zeros(plan.size, np.uint8)
    cv2.fillPoly(filled, mask_outline(plan), 1)
    assert np.array_equal(filled > 0, plan.mask[0].numpy())


# Machado, Oliveira and Fernandes 2009, severity 1: linear RGB as a person sees it who lacks one kind of cone.
SIGHT = {
    "all cones": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}


@pytest.mark.parametrize("sight", SIGHT)
def test_classes_are_told_apart_by_everyone(sight: str) -> None:
    """On any grey, two classes differ by 12 or more (CIEDE2000), several times what is just noticed side by side."""
    for grey in np.linspace(0, 1, 9):
        strength = np.array(STRENGTH)[:, None]
        tints = COLOURS / 255 * strength + grey * (1 - strength)
        linear = np.where(tints <= 0.04045, tints / 12.92, ((tints + 0.055) / 1.055) ** 2.4)
        seen = np.clip(linear @ np.transpose(SIGHT[sight]), 0, 1)
        seen = np.where(seen <= 0.0031308, seen * 12.92, 1.055 * seen ** (1 / 2.4) - 0.055)
        lab = rgb2lab(seen[None])[0]
        apart = [deltaE_ciede2000(lab[a], lab[b]) for a in range(4) for b in range(a)]
        assert min(apart) > 12, f"grey {grey:.2f}"
