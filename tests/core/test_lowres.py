"""Low-frequency tokens: nothing of the masked area leaks into them."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from core.pictures import painted, picture
from hilo_core import Grid, PlanSettings, make_plan
from hilo_core.lowres import low_blocks, low_latent, low_picture

sides = st.integers(40, 200)
factors = st.sampled_from([2, 4, 8])


@given(sides, sides, factors, st.data())
def test_the_masked_area_does_not_leak_into_the_picture(
    height: int, width: int, factor: int, data: st.DataObject
) -> None:
    top, left = data.draw(st.integers(0, height - 2)), data.draw(st.integers(0, width - 2))
    box = (top, data.draw(st.integers(top + 1, height)), left, data.draw(st.integers(left + 1, width)))
    region = painted(height, width, box).bool()
    image, grid = picture(height, width), Grid.of_picture((height, width))
    secret = image.clone()
    secret[region] = torch.rand(int(region.sum()), 3, generator=torch.Generator().manual_seed(5))
    small = low_picture(image, region, grid, factor)
    assert torch.equal(small, low_picture(secret, region, grid, factor))
    assert small.shape == (1, -(-grid.rows // factor) * 16, -(-grid.cols // factor) * 16, 3)
    assert small.isfinite().all() and small.min() >= 0 and small.max() <= 1


def test_a_hole_is_filled_from_its_surroundings() -> None:
    image = torch.full((1, 128, 128, 3), 0.25)
    image[:, 32:96, 32:96] = 1.0  # the object to remove
    region = painted(128, 128, (24, 104, 24, 104)).bool()
    assert (low_picture(image, region, Grid.of_picture((128, 128)), 4) - 0.25).abs().max() < 0.01


def test_without_a_mask_it_is_the_mean_over_the_factor() -> None:
    image = picture(128, 192)
    none = torch.zeros(1, 128, 192, dtype=torch.bool)
    small = low_picture(image, none, Grid.of_picture((128, 192)), 4)
    torch.testing.assert_close(small[:, :32, :48], image.view(1, 32, 4, 48, 4, 3).mean((2, 4)))


@given(sides, sides, factors, st.integers(0, 10))
def test_kept_tokens_do_not_leak_into_the_latent(height: int, width: int, factor: int, seed: int) -> None:
    grid = Grid.of_picture((height, width))
    generator = torch.Generator().manual_seed(seed)
    kept = torch.rand(grid.count, generator=generator) < 0.4
    latent = torch.randn(2, 4, grid.rows * 2, grid.cols * 2, generator=generator)
    where = kept.view(grid.rows, grid.cols).repeat_interleave(2, 0).repeat_interleave(2, 1)
    secret = torch.where(where, torch.randn(latent.shape, generator=generator), latent)
    small = low_latent(latent, ~kept, grid, factor)
    assert torch.equal(small, low_latent(secret, ~kept, grid, factor))
    assert small.isfinite().all()
    # A weighted mean stays between what it is a mean of.
    assert small.abs().max() <= latent.abs().max() + 1e-5


def test_the_latent_is_the_mean_over_dropped_tokens() -> None:
    grid = Grid.of_picture((128, 128))
    latent = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    everything = torch.ones(64, dtype=torch.bool)
    small = low_latent(latent, everything, grid, 4)
    torch.testing.assert_close(small, latent.view(1, 3, 4, 4, 4, 4).mean((3, 5)))


def test_pool_is_the_mean_of_each_blocks_dropped_rows() -> None:
    rows = torch.randn(2, 48, 5, generator=torch.Generator().manual_seed(0))
    low = low_blocks(torch.arange(10), 6, 8, 4)
    for place in range(len(low)):
        torch.testing.assert_close(low.pool(rows)[:, place], rows[:, low.block == place].mean(1))


def test_a_plan_forgets_the_whole_edit_region_and_not_the_mask_alone() -> None:
    """What the model may repaint must not be shown to it, so the dilated band is forgotten as well."""
    plan = make_plan(picture(160, 160), painted(160, 160, (64, 96, 64, 96)), PlanSettings(24, 0.0, 0.0, 4))
    grid = Grid.of_picture(plan.size)
    changed = plan.image.clone()
    changed[plan.edit_region] = 0.9
    before, after = (low_picture(image, plan.edit_region, grid, 4) for image in (plan.image, changed))
    assert torch.equal(before, after)
    on_grid = plan.on_grid(grid)
    assert on_grid.low is not None and on_grid.tokens < grid.count
