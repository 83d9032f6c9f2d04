"""Mask hygiene: binarise, pinholes, Euclidean dilation, feather."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from hilo_core import masks

small_masks = arrays(bool, st.tuples(st.integers(1, 40), st.integers(1, 40)))


def box(height: int, width: int, top: int, bottom: int, left: int, right: int) -> np.ndarray:
    mask = np.zeros((height, width), bool)
    mask[top:bottom, left:right] = True
    return mask


def test_faint_paint_counts_and_noise_does_not() -> None:
    assert masks.binarise(np.array([[0.0, 0.02, 0.06, 0.5, 1.0]])).tolist() == [[False, False, True, True, True]]


def test_pinholes_close_and_intended_holes_stay() -> None:
    mask = box(64, 64, 4, 60, 4, 60)
    mask[10:14, 10:14] = False  # 16 pixels
    mask[30:50, 30:50] = False  # 400 pixels, more than a token
    filled = masks.fill_pinholes(mask)
    assert filled[10:14, 10:14].all()
    assert not filled[30:50, 30:50].any()
    assert not filled[:4].any() and not filled[:, 60:].any(), "the outside is not a hole"


def test_a_bay_at_the_border_of_the_picture_is_not_a_pinhole() -> None:
    mask = np.ones((32, 32), bool)
    mask[0:4, 10:14] = False
    assert np.array_equal(masks.fill_pinholes(mask), mask)


@given(small_masks)
def test_filling_only_adds_and_settles(mask: np.ndarray) -> None:
    filled = masks.fill_pinholes(mask)
    assert (filled >= mask).all()
    assert np.array_equal(masks.fill_pinholes(filled), filled)


@pytest.mark.parametrize("pixels", [1, 5, 12, 24])
def test_dilation_is_a_euclidean_distance(pixels: int) -> None:
    mask = box(96, 80, 40, 44, 30, 33)
    mask[20, 60] = True
    points = np.argwhere(mask)
    exact = np.hypot(*(np.indices(mask.shape)[..., None] - points.T[:, None, None])).min(-1)
    grown = masks.dilate(mask, pixels)
    # OpenCV's 5 x 5 chamfer distance is within 2 % of the Euclidean one.
    assert grown[exact <= pixels * 0.98].all()
    assert not grown[exact > pixels * 1.02 + 1e-3].any()
    square = np.abs(np.arange(96)[:, None] - 20).clip(min=np.abs(np.arange(80)[None] - 60)) <= pixels
    assert (square & ~grown).any(), "a square would reach further into the corners"


@given(small_masks, st.integers(0, 20))
def test_dilation_holds_the_mask_and_grows(mask: np.ndarray, pixels: int) -> None:
    grown = masks.dilate(mask, pixels)
    assert (grown >= mask).all()
    assert (masks.dilate(mask, pixels + 1) >= grown).all()
    if not mask.any() or pixels == 0:
        assert np.array_equal(grown, mask)


@given(small_masks, st.integers(0, 12), st.integers(0, 40))
def test_feather_is_0_outside_and_1_on_the_mask(mask: np.ndarray, dilation: int, pixels: int) -> None:
    region = masks.dilate(mask, dilation)
    weight = masks.feather(region, mask, pixels)
    assert weight.dtype == np.float32
    assert (weight[~region] == 0).all()
    assert (weight[mask] == 1).all()
    assert ((weight >= 0) & (weight <= 1)).all()
    assert (weight[region] > 0).all()


def test_feather_rises_inwards() -> None:
    mask = box(80, 80, 36, 44, 36, 44)
    weight = masks.feather(masks.dilate(mask, 20), mask, 10)[40]
    ramp = weight[16:27]
    assert (np.diff(ramp) >= 0).all() and ramp[0] < 0.2 and ramp[-1] == 1.0
    assert ((ramp > 0.2) & (ramp < 0.8)).sum() >= 4, "a ramp and not a step"
