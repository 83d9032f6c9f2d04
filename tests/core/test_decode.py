"""Rectangles that show an edit region for the least decoding, and how far a cut is felt."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from core.pictures import painted, picture
from hilo_core import Grid, PlanSettings, make_plan
from hilo_core.decode import Rect, cover, margin_of, wanted_cells


def blobs(height: int, width: int, boxes: list[tuple[int, int, int, int]]) -> np.ndarray:
    cells = np.zeros((height, width), bool)
    for top, left, bottom, right in boxes:
        cells[top:bottom, left:right] = True
    return cells


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 70), st.integers(1, 70), st.integers(0, 9), st.floats(0.001, 0.3))
def test_every_wanted_cell_is_shown_once_with_its_margin(seed: int, h: int, w: int, margin: int, share: float) -> None:
    cells = np.random.default_rng(seed).random((h, w)) < share
    cells[0, 0] |= not cells.any()
    shown = np.zeros((h, w), int)
    tiles = cover(cells, margin)
    for tile in tiles:
        shown[tile.inner.slices] += 1
        assert tile.outer == tile.inner.grown(margin, cells.shape)
    assert (shown[cells] == 1).all() and (shown <= 1).all()
    assert sum(tile.outer.area for tile in tiles) <= cells.size


def test_scattered_spots_get_a_tile_each_and_near_ones_share_one() -> None:
    far = blobs(128, 128, [(4, 4, 12, 12), (100, 110, 112, 120), (60, 10, 70, 18)])
    tiles = cover(far, 4)
    assert {tile.inner for tile in tiles} == {Rect(4, 4, 12, 12), Rect(100, 110, 112, 120), Rect(60, 10, 70, 18)}
    assert tiles[0].outer.area < 0.02 * far.size
    near = blobs(128, 128, [(4, 4, 20, 20), (4, 22, 20, 40)])
    assert [tile.inner for tile in cover(near, 4)] == [Rect(4, 4, 20, 40)]


def test_a_diagonal_stroke_is_cut_where_that_pays() -> None:
    stroke = np.zeros((256, 256), bool)
    for place in range(10, 240):
        stroke[place : place + 6, place : place + 6] = True
    one = Rect(10, 10, 245, 245).grown(4, stroke.shape).area
    assert sum(tile.outer.area for tile in cover(stroke, 4)) < 0.3 * one


def test_a_region_of_nearly_everything_is_decoded_whole() -> None:
    for cells in (np.ones((40, 60), bool), blobs(40, 60, [(1, 1, 39, 59)])):
        (tile,) = cover(cells, 4)
        assert tile.inner == tile.outer == Rect(0, 0, 40, 60)


def test_nothing_wanted_is_told() -> None:
    with pytest.raises(ValueError, match="no latent cell is wanted"):
        cover(np.zeros((8, 8), bool), 2)


@pytest.mark.parametrize(("size", "factor"), [((128, 192), 8), ((131, 150), 8), ((128, 192), 16), ((131, 150), 16)])
def test_wanted_cells_hold_every_pixel_of_the_region(size: tuple[int, int], factor: int) -> None:
    plan = make_plan(picture(*size), painted(*size, (50, 80, 60, 100)), PlanSettings(12))
    grid = Grid.of_latent(size, (size[0] // factor, size[1] // factor), 1)
    cells = wanted_cells(plan, grid)
    rows, columns = grid.footprint
    pixels = torch.from_numpy(cells).repeat_interleave(factor, 1).repeat_interleave(factor, 2)
    region = plan.edit_region[:, rows, columns]
    assert (pixels | ~region).all()
    blocks = region.view(1, grid.latent[0], factor, grid.latent[1], factor).any(4).any(2)
    assert torch.equal(torch.from_numpy(cells), blocks), "no cell more than the region touches"
    assert wanted_cells(plan, grid, beyond=16).sum() > cells.sum()


def test_a_margin_is_the_distance_at_which_a_cut_is_no_longer_felt() -> None:
    whole = torch.rand(1, 16, 80, 3)
    cut = whole[:, :, 16:].clone()
    assert margin_of(whole, cut, 8, 1 / 255) == 0
    cut[:, 3, 19] += 0.1  # in the third cell from the cut
    assert margin_of(whole, cut, 8, 1 / 255) == 3
    cut[:, 3, -1] += 0.1
    assert margin_of(whole, cut, 8, 1 / 255) is None
