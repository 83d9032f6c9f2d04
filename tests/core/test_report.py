"""The report's numbers add up, and the overlay shows what they say."""

from __future__ import annotations

import re

import pytest
import torch

from core.pictures import painted, picture
from hilo_core import Grid, PlanSettings, make_plan
from hilo_core.report import COLOURS, NAMES, describe, overlay

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
