"""The token plan: what is kept, in which order, how many, and which low token stands for the rest."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from core.pictures import painted, picture
from hilo_core import PRESETS, Grid, PlanSettings, TokenPlan, make_plan
from hilo_core.plan import CANVAS_WIDTH, LOW_FACTORS

HEIGHT, WIDTH = 256, 320
MASK = painted(HEIGHT, WIDTH, (96, 150, 120, 190))


@st.composite
def plans(draw: st.DrawFn) -> TokenPlan:
    """Any picture size, any box as mask, any settings."""
    height, width = draw(st.integers(48, 300)), draw(st.integers(48, 300))
    top, left = draw(st.integers(0, height - 2)), draw(st.integers(0, width - 2))
    bottom, right = draw(st.integers(top + 1, height)), draw(st.integers(left + 1, width))
    settings = PlanSettings(
        draw(st.integers(0, 60)), draw(st.floats(0, 1)), draw(st.floats(0, 1)), draw(st.sampled_from(LOW_FACTORS))
    )
    return make_plan(picture(height, width), painted(height, width, (top, bottom, left, right)), settings)


grids = st.sampled_from([(8, 2), (16, 1), (8, 1)])


@given(plans(), grids)
def test_a_plan_keeps_its_promises_on_any_grid(plan: TokenPlan, sizes: tuple[int, int]) -> None:
    grid = Grid.of_picture(plan.size, *sizes)
    if not plan.edit_region[0][grid.footprint].any():
        with pytest.raises(ValueError, match="mask lies only in the border"):
            plan.on_grid(grid)
        return
    on_grid = plan.on_grid(grid)
    kept, dropped, low = on_grid.kept, on_grid.dropped, on_grid.low

    touched = torch.zeros(grid.rows, grid.cols, dtype=torch.bool)
    area = plan.edit_region[0][grid.footprint]
    for row in range(grid.rows):
        for col in range(grid.cols):
            side = grid.token_px
            touched[row, col] = area[row * side : (row + 1) * side, col * side : (col + 1) * side].any()
    assert torch.equal(on_grid.edit, touched.flatten()), "any coverage"
    assert not dropped[on_grid.edit].any(), "every touched token is computed"

    assert torch.equal(kept, kept.unique()), "raster order, none twice"
    assert on_grid.order.sort().values.equal(torch.arange(grid.count)), "a ranking of every token"
    assert on_grid.order[: len(kept)].sort().values.equal(kept), "the kept ones are a prefix of it"
    assert on_grid.high == len(kept) - int(on_grid.edit.sum())
    assert on_grid.tokens % CANVAS_WIDTH == 0 or on_grid.dense

    if plan.settings.low_factor and dropped.any():
        assert low is not None
        owners = low.block[dropped]
        assert (owners >= 0).all() and (low.block[~dropped] == -1).all(), "each dropped token has one low token"
        assert torch.equal(torch.bincount(owners, minlength=len(low)), low.count), "counts are true"
        assert int(low.count.sum()) == int(dropped.sum()) and int(low.count.min()) >= 1
        token = torch.nonzero(dropped).flatten()
        factor = low.factor
        block = token // grid.cols // factor * low.shape[1] + token % grid.cols // factor
        assert torch.equal(low.index[owners], block), "and it is the one of its block"
        assert dropped[low.representative()].all() and torch.equal(
            low.block[low.representative()], torch.arange(len(low))
        )
    else:
        assert low is None


def test_centres_lie_in_the_middle_of_their_blocks() -> None:
    low = (
        make_plan(picture(160, 112), painted(160, 112, (0, 8, 0, 8)), PlanSettings(0, 0.0, 0.0, 4))
        .on_grid(Grid.of_picture((160, 112)))
        .low
    )
    assert low is not None and low.shape == (3, 2)
    middle = {tuple(pair) for pair in low.centre.tolist()}
    # 10 x 7 tokens: the last blocks hold 2 rows and 3 columns.
    assert middle == {(r, c) for r in (1.5, 5.5, 8.5) for c in (1.5, 5.0)}


def test_sets_are_nested_over_budgets() -> None:
    plan = make_plan(picture(HEIGHT, WIDTH), MASK, PlanSettings(16, 0.0, 0.0, 4))
    grid, before = Grid.of_picture(plan.size), set()
    for detail in (0.0, 0.1, 0.2, 0.4, 0.7, 1.0):
        kept = set(plan.with_settings(detail=detail).on_grid(grid).kept.tolist())
        assert kept >= before
        before = kept
    assert len(before) == grid.count


def test_detail_caps_and_threshold_selects() -> None:
    plan = make_plan(picture(HEIGHT, WIDTH), MASK, PlanSettings(16, 1.0, 0.5, 0))
    on_grid = plan.on_grid(Grid.of_picture(plan.size))
    loose = plan.with_settings(threshold=0.05).on_grid(on_grid.grid)
    capped = plan.with_settings(threshold=0.05, detail=0.1).on_grid(on_grid.grid)
    outside = on_grid.grid.count - int(on_grid.edit.sum())
    assert on_grid.high < loose.high
    assert capped.high <= 0.1 * outside + CANVAS_WIDTH


def test_the_strongest_edges_come_first() -> None:
    image = torch.full((1, 256, 256, 3), 0.5)
    image[:, 168:, 168:] += 0.1
    image[:, 216:, 216:] = 1.0
    plan = make_plan(image, painted(256, 256, (16, 32, 16, 32)), PlanSettings(0, 1.0, 0.9, 0))
    order = plan.on_grid(Grid.of_picture(plan.size)).order
    assert order[0] == 17, "the edit region leads"
    # The strong step runs along row and column 13; the weak one along 10 follows.
    strong = [int(token) for token in order[1:6]]
    assert all(13 in divmod(token, 16) for token in strong)


@pytest.mark.parametrize("preset", PRESETS)
def test_a_full_mask_runs_dense(preset: str) -> None:
    plan = make_plan(picture(HEIGHT, WIDTH), torch.ones(1, HEIGHT, WIDTH), PRESETS[preset])
    on_grid = plan.on_grid(Grid.of_picture(plan.size))
    assert on_grid.dense and on_grid.low is None and len(on_grid.kept) == on_grid.grid.count


def test_presets_cost_what_their_names_say() -> None:
    image, mask = picture(512, 512), painted(512, 512, (200, 260, 200, 260))
    grid = Grid.of_picture((512, 512))
    tokens = [make_plan(image, mask, PRESETS[name]).on_grid(grid).tokens for name in ("fast", "balanced", "quality")]
    assert tokens[0] < tokens[1] < tokens[2] < grid.count


def test_without_low_tokens() -> None:
    plan = make_plan(picture(HEIGHT, WIDTH), MASK)
    on_grid = plan.on_grid(Grid.of_picture(plan.size), keep_low=False)
    assert on_grid.low is None and on_grid.tokens == len(on_grid.kept)


def test_a_batch_is_planned_as_the_union() -> None:
    images = picture(HEIGHT, WIDTH, batch=2)
    boxes = [painted(HEIGHT, WIDTH, (16, 40, 16, 40)), painted(HEIGHT, WIDTH, (200, 220, 250, 300))]
    grid = Grid.of_picture((HEIGHT, WIDTH))
    both = make_plan(images, torch.cat(boxes), PlanSettings(0, 0.0, 0.0, 0)).on_grid(grid)
    each = [make_plan(images[:1], one, PlanSettings(0, 0.0, 0.0, 0)).on_grid(grid) for one in boxes]
    assert torch.equal(both.edit, each[0].edit | each[1].edit)
    one_mask = make_plan(images, boxes[0])
    assert one_mask.mask.shape == (2, HEIGHT, WIDTH) and torch.equal(one_mask.mask[0], one_mask.mask[1])


def test_the_same_input_gives_the_same_plan() -> None:
    grid = Grid.of_picture((HEIGHT, WIDTH))
    flat = torch.full((1, HEIGHT, WIDTH, 3), 0.5)  # every token ties
    first, second = (make_plan(flat.clone(), MASK.clone(), PRESETS["quality"]).on_grid(grid) for _ in range(2))
    assert torch.equal(first.order, second.order) and torch.equal(first.kept, second.kept)
    outside = first.order[int(first.edit.sum()) :]
    assert torch.equal(outside, outside.sort().values), "ties keep raster order"


def test_the_inputs_are_left_as_they_are() -> None:
    image, mask = picture(HEIGHT, WIDTH), MASK * 0.5
    before = image.clone(), mask.clone()
    make_plan(image, mask)
    assert torch.equal(image, before[0]) and torch.equal(mask, before[1])


def test_a_mask_of_another_size_is_resized_and_noted() -> None:
    plan = make_plan(picture(HEIGHT, WIDTH), painted(HEIGHT // 2, WIDTH // 2, (48, 75, 60, 95)))
    assert plan.notes == (f"mask was {WIDTH // 2} x {HEIGHT // 2} and has been resized to {WIDTH} x {HEIGHT}",)
    same = make_plan(picture(HEIGHT, WIDTH), MASK)
    assert not same.notes
    assert (plan.mask ^ same.mask).sum() < 0.1 * same.mask.sum()


@pytest.mark.parametrize(("image", "mask", "message"), [
    (picture(64, 64), torch.zeros(1, 64, 64), "mask is empty.*paint the area"),
    (picture(64, 64), torch.full((1, 64, 64), 0.04), "mask is empty.*paint the area"),
    (picture(64, 64, 2), torch.stack([torch.ones(64, 64), torch.zeros(64, 64)]), "mask is empty"),
    (picture(64, 64)[..., :1], torch.ones(1, 64, 64), "image has 1 channels; it must be RGB"),
    (torch.rand(1, 64, 64, 4), torch.ones(1, 64, 64), "image has 4 channels; it must be RGB"),
    (torch.rand(1, 0, 64, 3), torch.ones(1, 64, 64), r"image has shape \(1, 0, 64, 3\).*not empty"),
    (torch.rand(0, 64, 64, 3), torch.ones(1, 64, 64), "image has shape.*not empty"),
    (torch.rand(64, 64, 3), torch.ones(1, 64, 64), r"image has shape \(64, 64, 3\); it must be a picture batch"),
    (torch.full((1, 64, 64, 3), torch.nan), torch.ones(1, 64, 64), "image holds NaN or infinite.*check the node"),
    (torch.full((1, 64, 64, 3), torch.inf), torch.ones(1, 64, 64), "image holds NaN or infinite"),
    (picture(64, 64), torch.full((1, 64, 64), torch.nan), "mask holds NaN or infinite values; check the node"),
    (picture(64, 64), torch.ones(1, 0, 64), "mask has shape.*not empty"),
    (picture(64, 64), torch.ones(1, 1, 1, 64, 64), "mask has shape"),
    (picture(64, 64, 2), torch.ones(3, 64, 64), "mask has a batch of 3 and image one of 2; give one mask"),
])  # fmt: skip
def test_bad_input_is_one_clear_sentence(image: torch.Tensor, mask: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_plan(image, mask)


def test_a_mask_in_the_border_that_is_cropped_off() -> None:
    mask = torch.zeros(1, 519, 512)
    mask[:, -2:, 100:200] = 1
    plan = make_plan(picture(519, 512), mask, PlanSettings(dilation=0))
    with pytest.raises(ValueError, match=r"mask lies only in the border .*512 x 519 pixels.* raise dilation"):
        plan.on_grid(Grid.of_picture(plan.size))


def test_one_bad_pixel_is_found() -> None:
    for bad in (torch.nan, torch.inf, -torch.inf):
        image = picture(64, 64)
        image[0, 30, 40, 1] = bad
        with pytest.raises(ValueError, match="image holds NaN"):
            make_plan(image, torch.ones(1, 64, 64))


@pytest.mark.parametrize(("settings", "message"), [
    (dict(dilation=-1), "dilation is -1"), (dict(detail=1.5), "detail is 1.5"), (dict(threshold=-0.1), "threshold is"),
    (dict(low_factor=3), "low_factor is 3; it must be one of"), (dict(detail=float("nan")), "detail is nan"),
])  # fmt: skip
def test_bad_settings_are_told(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PlanSettings(**settings)


def test_dilation_is_not_changed_after_the_fact() -> None:
    with pytest.raises(ValueError, match="make a new plan"):
        make_plan(picture(64, 64), torch.ones(1, 64, 64)).with_settings(dilation=3)
