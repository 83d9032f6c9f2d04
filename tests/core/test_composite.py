"""The edit pasted over the source: bit-exact outside."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch

from core.pictures import painted, picture
from hilo_core import PlanSettings, TokenPlan, composite, make_plan
from hilo_core.color import MATCHES, match_color
from hilo_core.composite import BLENDS
from hilo_core.masks import dilate

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


def eight_bit(image: torch.Tensor) -> torch.Tensor:
    """Saved as PNG and loaded again, with the arithmetic of ComfyUI's SaveImage and LoadImage."""
    saved = np.clip(255.0 * image.numpy(), 0, 255).astype(np.uint8)
    return torch.from_numpy(saved.astype(np.float32) / 255.0)


@pytest.mark.parametrize("blend", BLENDS)
@pytest.mark.parametrize("match", MATCHES)
def test_five_rounds_on_one_picture_leave_the_outside_alone(match: str, blend: str) -> None:
    first = image = eight_bit(picture(HEIGHT, WIDTH))
    touched = torch.zeros(1, HEIGHT, WIDTH, dtype=torch.bool)
    for number in range(5):
        box = (20 + 10 * number, 50 + 10 * number, 60, 100)
        p = make_plan(image, painted(HEIGHT, WIDTH, box), PlanSettings(12))
        touched |= p.edit_region
        drifted = (image * 0.9 + 0.02 + 0.01 * torch.rand_like(image)).clamp(0, 1)  # as an autoencoder drifts
        image = eight_bit(composite(p, drifted, 8, match, blend))
        assert torch.equal(image[~touched], first[~touched])
    assert not torch.equal(image[touched], first[touched])


def drifted(p: TokenPlan, shift: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """A picture with something new in the mask, and the same with a drift of colours all over."""
    new = torch.where(p.mask[..., None], picture(HEIGHT, WIDTH).flip(2) * 0.6 + 0.2, p.image).clamp(0.1, 0.9)
    return new, (new + shift).clamp(0, 1)


def grey_plan(dilation: int) -> TokenPlan:
    image = picture(HEIGHT, WIDTH) * 0.6 + 0.2
    return make_plan(image, painted(HEIGHT, WIDTH, (50, 80, 60, 100)), PlanSettings(dilation))


@pytest.mark.parametrize("dilation", [12, 0], ids=["from the band", "from the surroundings"])
def test_an_even_drift_is_taken_off(dilation: int) -> None:
    p = grey_plan(dilation)
    new, drift = drifted(p, torch.full((1, 1, 1, 3), 0.06))
    errors = {match: (composite(p, drift, 0, match) - new)[p.mask].abs().mean() for match in MATCHES}
    assert errors["off"] > 0.055
    assert errors["mean"] < 0.2 * errors["off"] and errors["linear"] < 0.2 * errors["off"]


def test_a_light_from_the_side_needs_the_linear_one() -> None:
    p = grey_plan(24)
    new, drift = drifted(p, torch.linspace(-0.15, 0.15, WIDTH).view(1, 1, WIDTH, 1))
    errors = {match: (composite(p, drift, 0, match) - new)[p.mask].abs().mean() for match in MATCHES}
    assert errors["linear"] < 0.35 * errors["off"] and errors["linear"] < 0.5 * errors["mean"]


def test_what_was_repainted_in_the_ring_does_not_count_as_drift() -> None:
    p = grey_plan(24)
    new, drift = drifted(p, torch.full((1, 1, 1, 3), 0.06))
    drift[:, 26:104, 36:60] = torch.tensor([0.9, 0.1, 0.1])  # the object reaches into a side of the band
    error = (composite(p, drift, 0, "mean") - new)[p.mask].abs().mean()
    assert error < 0.02


def test_a_picture_without_drift_keeps_its_colours() -> None:
    p = grey_plan(12)
    new, _ = drifted(p, torch.zeros(1))
    for match in MATCHES:
        assert (composite(p, new, 0, match) - new)[p.edit_region].abs().max() < 1 / 255


@pytest.mark.parametrize("match", MATCHES)
def test_a_decode_gone_wrong_stays_inside_the_edit_region(match: str) -> None:
    p = plan()
    result = composite(p, torch.full_like(p.image, torch.nan), 8, match)
    assert torch.equal(result[~p.edit_region], p.image[~p.edit_region])
    assert result[p.mask].isnan().all(), "seen, not painted over"


@pytest.mark.parametrize("match", MATCHES)
def test_a_ring_at_odds_with_itself_matches_nothing(match: str) -> None:
    lab = np.full((90, 30, 3), [50, 0, 0], np.float32)
    source = cv2.cvtColor(lab, cv2.COLOR_LAB2RGB)
    for channel in range(3):
        lab[30 * channel : 30 * channel + 30, :, channel] += 20
    new = cv2.cvtColor(lab, cv2.COLOR_LAB2RGB)
    assert np.array_equal(match_color(new, source, np.ones((90, 30), bool), match), new)


def test_a_full_mask_has_no_ring_to_match() -> None:
    image = picture(HEIGHT, WIDTH)
    p = make_plan(image, torch.ones(1, HEIGHT, WIDTH))
    assert torch.equal(composite(p, decoded(), 8, "linear"), decoded())


def test_laplacian_hides_a_step_better_than_a_feather() -> None:
    p = grey_plan(24)
    step = (p.image + 0.15).clamp(0, 1)
    border = p.edit_region[0] ^ torch.from_numpy(dilate(p.edit_region[0].numpy(), 2))
    largest = {}
    for blend in BLENDS:
        change = (composite(p, step, 2, blend=blend) - p.image)[0].mean(-1)
        slope = (change[:, 1:] - change[:, :-1]).abs()
        largest[blend] = slope.max()
        assert change[border].abs().max() == 0
    assert largest["laplacian"] < 0.5 * largest["feather"]


def test_laplacian_keeps_what_was_painted() -> None:
    p = grey_plan(24)
    new, _ = drifted(p, torch.zeros(1))
    difference = (composite(p, new, 16, blend="laplacian") - new)[p.mask].abs()
    assert difference.mean() < 4 / 255


@pytest.mark.parametrize(("match", "blend"), [("median", "feather"), ("off", "poisson")])
def test_an_unknown_choice_is_told(match: str, blend: str) -> None:
    with pytest.raises(ValueError, match="choose one of"):
        composite(plan(), decoded(), 8, match, blend)
