"""The edit pasted over the source: bit-exact outside."""

from __future__ import annotations

import pytest
import torch

from core.pictures import painted, picture
from hilo_core import PlanSettings, TokenPlan, composite, make_plan

HEIGHT, WIDTH = 131, 150  # no multiple of 8: an autoencoder decodes 128 x 144


def plan(batch: int = 1, dilation: int = 12) -> TokenPlan:
    image = picture(HEIGHT, WIDTH, batch) * 1.3 - 0.1  # a picture may leave [0, 1]; it must still come back
    return make_plan(image, painted(HEIGHT, WIDTH, (50, 80, 60, 100)), PlanSettings(dilation))


def decoded(batch: int = 1, height: int = HEIGHT, width: int = WIDTH) -> torch.Tensor:
    return torch.rand(batch, height, width, 3, generator=torch.Generator().manual_seed(7))


@pytest.mark.parametrize("feather", [0, 1, 16, 200])
@pytest.mark.parametrize("size", [(HEIGHT, WIDTH), (128, 144), (128, 128)], ids=str)
def test_outside_is_the_source_bit_for_bit(feather: int, size: tuple[int, int]) -> None:
    p = plan()
    edit = decoded(1, *size)
    if size == (128, 128):  # a 32-pixel autoencoder
        assert size == (HEIGHT // 32 * 32, WIDTH // 32 * 32)
    result = composite(p, edit, feather)
    assert result.shape == p.image.shape
    assert torch.equal(result[~p.edit_region], p.image[~p.edit_region])
    top, left = (HEIGHT - size[0]) // 2, (WIDTH - size[1]) // 2
    inside = p.mask[0, top : top + size[0], left : left + size[1]]
    got = result[0, top : top + size[0], left : left + size[1]][inside]
    assert torch.equal(got, edit[0][inside]), "the mask itself is the decoded picture, in its true place"


def test_the_band_blends() -> None:
    p = plan()
    p_hard, p_soft = composite(p, decoded(), 0), composite(p, decoded(), 12)
    band = p.edit_region & ~p.mask
    assert torch.equal(p_hard[band], decoded()[band])
    low, high = torch.minimum(p.image, decoded()), torch.maximum(p.image, decoded())
    assert (p_soft[band] >= low[band] - 1e-6).all() and (p_soft[band] <= high[band] + 1e-6).all()
    assert not torch.equal(p_soft[band], p_hard[band])


def test_copies_of_a_batch_meet_their_own_pictures() -> None:
    p, edit = plan(2), decoded(4)
    result = composite(p, edit, 8)
    outside = ~p.edit_region[0]
    for place in range(4):
        assert torch.equal(result[place][outside], p.image[place % 2][outside])
        assert torch.equal(result[place][p.mask[0]], edit[place][p.mask[0]])


def test_half_precision_decodes_are_taken() -> None:
    p = plan()
    result = composite(p, decoded().bfloat16(), 8)
    assert result.dtype == torch.float32 and torch.equal(result[~p.edit_region], p.image[~p.edit_region])


@pytest.mark.parametrize("count", [1, 3])
def test_another_number_of_pictures_is_told(count: int) -> None:
    with pytest.raises(ValueError, match=f"samples hold {count} pictures and the plan 2; the samples must come from"):
        composite(plan(2), decoded(count), 8)


@pytest.mark.parametrize("size", [(HEIGHT + 8, WIDTH), (128, 152), (64, 72), (120, 144)], ids=str)
def test_another_picture_is_told(size: tuple[int, int]) -> None:
    with pytest.raises(
        ValueError, match=rf"decode to {size[1]} x {size[0]} pixels.*is {WIDTH} x {HEIGHT}; unpack with"
    ):
        composite(plan(), decoded(1, *size), 8)
