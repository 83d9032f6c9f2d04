"""The lab's pictures and masks are what the benches take them for."""

from __future__ import annotations

import numpy as np
import pytest

from lab.masks import GROUPS, sample_mask
from lab.pictures import (
    HELD_OUT_PHOTOS,
    HELD_OUT_SEED,
    KINDS,
    PROCEDURAL,
    SCENES,
    TRAIN_PHOTOS,
    picture,
    training_leaves,
)
from lab.procedural import TILE
from lab.replay import draw


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_seed_draws_the_same_picture(kind: str) -> None:
    first, again, other = picture(kind, 5, 96), picture(kind, 5, 96), picture(kind, 6, 96)
    assert first.shape == (96, 96, 3) and first.dtype == np.uint8
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_held_out_photographs_are_not_trained_on() -> None:
    assert not set(HELD_OUT_PHOTOS) & set(TRAIN_PHOTOS)
    assert set(SCENES) < set(TRAIN_PHOTOS)


def test_photo_seeds_choose_the_side_of_the_split(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    plain = np.zeros((600, 600, 3), np.uint8)
    monkeypatch.setattr("lab.pictures.photograph", lambda name: asked.append(name) or plain)
    for seed in range(40):
        picture("photo", seed, 64)
    assert set(asked) <= set(TRAIN_PHOTOS)
    asked.clear()
    for seed in range(HELD_OUT_SEED, HELD_OUT_SEED + 20):
        picture("photo", seed, 64)
    assert set(asked) == set(HELD_OUT_PHOTOS)


def test_training_draws_dead_leaves_in_the_colours_of_training_photographs(monkeypatch: pytest.MonkeyPatch) -> None:
    first, again = (training_leaves(np.random.default_rng(3), 96) for _ in range(2))
    assert first.shape == (96, 96, 3) and first.dtype == np.uint8 and np.array_equal(first, again)
    asked: list[str] = []
    pixels = np.full((20, 20, 3), (200, 0, 0), np.uint8)
    monkeypatch.setattr("lab.pictures.photograph", lambda name: asked.append(name) or pixels)
    means = np.stack([training_leaves(np.random.default_rng(seed), 64).mean((0, 1)) for seed in range(20)])
    assert set(asked) <= set(TRAIN_PHOTOS)
    assert (means.max(1) > 2 * np.sort(means, axis=1)[:, 1]).all(), "one channel was bright in every photograph"

    monkeypatch.setattr("lab.replay.training_leaves", lambda rng, size: np.zeros(0))
    monkeypatch.setattr("lab.replay.picture", lambda kind, seed, size: np.zeros(1 if kind == "photo" else 2))
    rng = np.random.default_rng(0)
    drawn = np.bincount([draw(rng, 64, 0.55).size for _ in range(3000)]) / 3000
    assert np.abs(drawn - [0.55 / 3, 0.55 * 2 / 3, 0.45]).max() < 0.03


def test_leaves_hide_one_another_and_leave_nothing_bare() -> None:
    """Neighbours are mostly alike and now and then far apart, as in a photograph; no colour fills the picture."""
    for seed in range(8):
        grey = training_leaves(np.random.default_rng(seed), 128).astype(float).mean(-1)
        step = np.abs(np.diff(grey, axis=0))
        assert np.median(step) < 12 and np.percentile(step, 99.5) > 4 * np.median(step)
        assert np.bincount(grey.astype(int).ravel()).max() < 0.5 * grey.size


def test_an_unknown_kind_is_named() -> None:
    with pytest.raises(ValueError, match="kind is 'cats'"):
        picture("cats", 0)


@pytest.mark.parametrize(("kind", "same"), [("mirror", True), ("rotation", False)])
def test_kaleidoscopes_have_a_mirror_image(kind: str, same: bool) -> None:
    """Every "mirror" picture equals one of its own reflections, moved by some pixels; others do not."""
    for seed in range(4):
        drawn = PROCEDURAL[kind](np.random.default_rng(seed), TILE)
        turned = [drawn[:, ::-1], drawn[::-1], drawn.transpose(1, 0, 2), drawn[::-1, ::-1].transpose(1, 0, 2)]
        # the best shift of two periodic pictures by their circular correlation, exact for an exact copy
        nearest = [np.abs(drawn - np.roll(other, best_shift(drawn, other), (0, 1))).mean() for other in turned]
        assert (min(nearest) < 1) == same


def best_shift(a: np.ndarray, b: np.ndarray) -> tuple[int, int]:
    """The shift (rows, columns) of `b` that is most like `a`, both periodic (H, W, 3)."""
    spectra = np.fft.fft2(a - a.mean((0, 1)), axes=(0, 1)) * np.fft.fft2(b - b.mean((0, 1)), axes=(0, 1)).conj()
    peak = np.fft.ifft2(spectra, axes=(0, 1)).real.sum(-1).argmax()
    row, column = divmod(int(peak), a.shape[1])
    return row, column


@pytest.mark.parametrize(("group", "mean"), [("small", 0.0638), ("medium", 0.1592), ("large", 0.3536)])
def test_mask_groups_average_as_in_the_paper(group: str, mean: float) -> None:
    rng = np.random.default_rng(0)
    shares = np.array([sample_mask(rng, 64, group).mean() for _ in range(600)])
    low, high = GROUPS[group]
    assert low - 1e-3 <= shares.min() and shares.max() <= high + 1e-3
    assert abs(shares.mean() - mean) < 4 * shares.std() / np.sqrt(len(shares))


def test_training_masks_cover_the_whole_range() -> None:
    rng = np.random.default_rng(1)
    shares = [sample_mask(rng, 64).mean() for _ in range(300)]
    assert min(shares) < 0.04 and max(shares) > 0.45


def test_an_unknown_group_is_named() -> None:
    with pytest.raises(ValueError, match="group is 'huge'"):
        sample_mask(np.random.default_rng(0), 64, "huge")


@pytest.mark.parametrize(
    "kind", ["lighting", "stripes", "checkers", "mirror", "rotation", "motif", "glyphs", "perspective"]
)
def test_lattices_close_after_a_tile(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under even light a lattice picture repeats exactly after a tile, and not after an eighth of one."""
    monkeypatch.setattr("lab.procedural.lit", lambda rng, drawn: drawn)
    for seed in range(6):
        drawn = PROCEDURAL[kind](np.random.default_rng(seed), 2 * TILE)
        assert np.abs(drawn[:TILE] - drawn[TILE:]).max() < 1
        assert np.abs(drawn[:, :TILE] - drawn[:, TILE:]).max() < 1
        assert np.abs(drawn - np.roll(drawn, (TILE // 8, TILE // 8), (0, 1))).mean() > 1
