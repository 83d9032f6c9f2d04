"""Where a latent's tokens lie on the picture."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hilo_core import Grid


@given(st.integers(16, 700), st.integers(16, 700), st.sampled_from([(8, 2), (16, 1), (8, 1), (16, 2)]))
def test_the_tokens_cover_the_latent_and_the_latent_the_picture(
    height: int, width: int, sizes: tuple[int, int]
) -> None:
    factor, patch = sizes
    grid = Grid.of_picture((height, width), factor, patch)
    assert grid.latent == (height // factor, width // factor)
    assert grid.count == grid.rows * grid.cols
    assert grid.token_px == factor * patch
    for tokens, cells in zip((grid.rows, grid.cols), grid.latent, strict=True):
        assert (tokens - 1) * patch < cells <= tokens * patch, "the last token is covered at least partly"
    for area, side, cells in zip(grid.footprint, (height, width), grid.latent, strict=True):
        # The autoencoder crops to the centre: what is left over lies on both sides, the odd pixel after.
        before, after = area.start, side - area.stop
        assert area.stop - area.start == cells * factor
        assert 0 <= after - before <= 1


@pytest.mark.parametrize(("picture", "latent", "factor"), [
    ((512, 384), (64, 48), 8), ((512, 384), (32, 24), 16), ((515, 390), (64, 48), 8), ((512, 512), (16, 16), 32),
    ((48, 32), (48, 32), 1),
])  # fmt: skip
def test_the_autoencoder_is_told_by_the_sizes(picture: tuple[int, int], latent: tuple[int, int], factor: int) -> None:
    assert Grid.of_latent(picture, latent, 1).factor == factor


def test_the_centre_crop() -> None:
    grid = Grid.of_picture((517, 390))
    assert (grid.top, grid.left) == (2, 3)
    assert grid.footprint == (slice(2, 514), slice(3, 387))


@pytest.mark.parametrize("latent", [(64, 64), (63, 48), (48, 64), (1, 1)])
def test_a_latent_of_another_picture_is_told(latent: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=rf"384 x 512 pixels, but the latent is {latent[1]} x {latent[0]} cells; give"):
        Grid.of_latent((512, 384), latent, 2)


@pytest.mark.parametrize("size", [(7, 64), (64, 7), (3, 3)])
def test_a_picture_smaller_than_a_cell_is_told(size: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=f"image is {size[1]} x {size[0]} pixels, smaller than one latent cell"):
        Grid.of_picture(size)
