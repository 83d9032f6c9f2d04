"""The quality bench's rows keep what they say, cost what they compute, and see the same noise."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hilo_core import PlanSettings, make_plan
from hilo_core.frequency import regionalise
from lab import sampling
from lab.autoencoder import build_autoencoder
from lab.bench.cases import held_out_case
from lab.bench.clock import Clock
from lab.bench.cost import Meter, count_flops
from lab.bench.ranks import RANKS
from lab.bench.rows import ROWS, Kind, chosen, running_order
from lab.bench.runners import Box, LabRunner, compressed, crop_box, shrunk
from lab.dit import CONTEXT_TOKENS
from lab.hilo import grid_of
from lab.masks import GROUPS

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def runner(tiny_dit: Callable[..., torch.nn.Module]) -> LabRunner:
    torch.manual_seed(0)
    return LabRunner(tiny_dit(), build_autoencoder().eval().requires_grad_(False), Clock(CPU), torch.float32)


def test_rows_run_after_what_they_depend_on() -> None:
    rows = chosen(["fewer_steps"])
    assert set(rows) == {"dense", "fewer_steps", ROWS["fewer_steps"].equal_to}
    order = running_order(rows)
    assert order[0] == "dense" and order.index(ROWS["fewer_steps"].equal_to) < order.index("fewer_steps")
    with pytest.raises(ValueError, match="--rows names nonsense"):
        chosen(["nonsense"])


def test_every_context_has_a_row() -> None:
    from hilo_core import CONTEXTS

    assert set(CONTEXTS) == {row.context for row in ROWS.values() if row.node and row.kind is Kind.HILO}


def test_the_meter_agrees_with_pytorchs_counter(runner: LabRunner) -> None:
    """Two points fix the cost outside attention; a third length, with a bias, must fit."""
    bias = torch.zeros(1, 1, 1, 50 + CONTEXT_TOKENS)
    tokens, ids, sigma = torch.randn(1, 50, 384), torch.zeros(50, 3), torch.ones(1)

    def call() -> None:
        with torch.inference_mode():
            sampling.denoise(runner.dit, tokens, ids, sigma, bias)

    runner.meter.start()
    with runner.meter.watching():
        call()
    assert runner.meter.tokens == [50]
    assert runner.meter.flops == pytest.approx(count_flops(call), rel=1e-9)
    linear = 2 * 50 * sum(p.numel() for n, p in runner.dit.named_parameters() if "ff.net" in n and p.ndim == 2)
    assert runner.meter.flops > linear
    assert runner.meter.tokens_for(runner.meter.flops) == pytest.approx(50), "the other way round"


def test_a_wrong_text_length_is_noticed(runner: LabRunner) -> None:
    meter = Meter(runner.dit, CONTEXT_TOKENS + 1)
    with pytest.raises(RuntimeError, match="is text really"), torch.inference_mode():
        meter.calibrate(runner._call)


@pytest.mark.parametrize("name", [name for name, row in ROWS.items() if row.exact])
def test_study_rows_keep_exactly_what_they_say(name: str) -> None:
    row, case = ROWS[name], held_out_case("small", 1, 256)
    vae = build_autoencoder().eval()
    with torch.inference_mode():
        plan = compressed(row, case, 8, vae, CPU).grid_plan
    edit, outside = int(plan.edit.sum()), int((~plan.edit).sum())
    assert len(plan.kept) == edit + round(row.settings.detail * outside)
    assert plan.edit[plan.kept].sum() == edit, "the whole edit region is kept"
    assert (plan.low is not None) == (ROWS[name].context == "low")


@pytest.mark.parametrize("rank", RANKS)
def test_every_rank_chooses_tokens_of_its_own(rank: str) -> None:
    case, vae = held_out_case("small", 1, 256), build_autoencoder().eval()
    kept = {name: compressed(ROWS[name], case, 8, vae, CPU).grid_plan.kept.tolist() for name in (rank, "high")}
    again = compressed(ROWS[rank], case, 8, vae, CPU).grid_plan.kept.tolist()
    assert kept[rank] == again and kept[rank] != kept["high"] and len(kept[rank]) == len(kept["high"])


def test_ranks_find_what_they_are_named_for() -> None:
    """A picture with a smooth slope to the left, fine stripes to the right, and the mask at the left edge."""
    across = torch.linspace(0, 1, 64).expand(64, 64)
    stripes = (torch.arange(64) // 2 % 2).float().expand(64, 64)
    picture = torch.cat([across, stripes], 1)[None, ..., None].expand(-1, -1, -1, 3)
    mask = torch.zeros(1, 64, 128)
    mask[:, :16, :16] = 1
    plan = make_plan(picture, mask, PlanSettings(dilation=0))
    grid = grid_of(plan)
    tokens = {
        rank: regionalise(find(plan, grid, 0), grid.rows, grid.cols, grid.token_px).view(grid.rows, grid.cols)
        for rank, find in RANKS.items()
    }
    for rank in ("laplacian", "spectrum"):
        assert tokens[rank][:, :3].max() < 0.1 * tokens[rank][:, 5:7].min(), rank
    assert tokens["near"][0, 5] > 1.1 * tokens["near"][0, 6], "of two equal tokens the one at the mask"


def test_refresh_orders_follow_the_rank() -> None:
    case, vae = held_out_case("small", 1, 256), build_autoencoder().eval()
    orders = {}
    for name in ("rolling_5_ends", *(f"rolling_5_ends_{rank}" for rank in ("edges", "distance", "laplacian", "near"))):
        run = compressed(ROWS[name], case, 8, vae, CPU)
        state = run.context.start(run.grid_plan, 8)
        orders[name] = tuple(state.ranked.tolist())  # type: ignore[attr-defined]
    assert len(set(orders.values())) == len(orders) and len({tuple(sorted(one)) for one in orders.values()}) == 1


@pytest.mark.parametrize("mark", ["study", "preset"])
def test_marks_choose_rows(mark: str) -> None:
    rows = chosen(None, mark)
    assert "dense" in rows and len(rows) > 5
    assert all(getattr(row, mark) for name, row in rows.items() if name != "dense")


@pytest.mark.parametrize(
    ("name", "plain"),
    [("auto_reuse", "context_auto"), ("auto_fast_reuse", "auto_fast"), ("cache_reuse", "cache_9_linear")],
)
def test_a_second_run_takes_over_the_firsts_keys_and_values(name: str, plain: str, runner: LabRunner) -> None:
    """Of another seed: cheaper by its dense steps, and not the same picture, but nearer to it than without context."""
    case = held_out_case("small", 0, 256)
    rows = {one: runner.run(ROWS[one], case, 10, {}) for one in ("dense", name, plain, "edit_only")}
    assert rows[name].flops < rows[plain].flops - 0.5 * rows["dense"].flops / 10
    error = {one: np.abs(outcome.raw - rows["dense"].raw)[case.mask].mean() for one, outcome in rows.items()}
    assert not np.array_equal(rows[name].raw, rows[plain].raw) and error[name] < error["edit_only"]


def test_rows_see_the_same_noise_and_cost_what_they_compute(runner: LabRunner) -> None:
    case = held_out_case("medium", 0, 128)
    rows = chosen(["dense_other_seed", "edit_only", "crop"])
    done: dict = {}
    for name in running_order(rows):
        done[name] = runner.run(rows[name], case, 2, done)
    repeat = runner.run(rows["dense"], case, 2, {})
    assert np.array_equal(repeat.raw, done["dense"].raw)
    assert not np.array_equal(done["dense_other_seed"].raw, done["dense"].raw)
    assert done["dense"].tokens == 1 and done["edit_only"].tokens < 1
    assert done["edit_only"].flops < done["dense"].flops == done["dense_other_seed"].flops


def test_equal_cost_is_equal(runner: LabRunner) -> None:
    case = held_out_case("small", 2, 256)
    rows = chosen(["fewer_steps", "crop_equal_cost"])
    done: dict = {}
    for name in running_order(rows):
        done[name] = runner.run(rows[name], case, 8, done)
    target = done[ROWS["fewer_steps"].equal_to]
    step = done["dense"].flops / 8
    assert abs(done["fewer_steps"].flops - target.flops) <= step / 2 + 1
    assert 0.85 * target.flops < done["crop_equal_cost"].flops <= target.flops * (1 + 1e-9)
    assert done["crop_equal_cost"].raw.shape == case.image.shape


def test_a_crop_of_everything_is_the_dense_run(runner: LabRunner) -> None:
    from lab.bench.runners import Cropped

    case = held_out_case("medium", 0, 128)
    whole = Cropped(Box(0, 0, 8, 8), case.mask.shape)
    with runner._arithmetic():
        cropped = runner._paint(case, 2, whole.begin)
        dense = runner._paint(case, 2)
    assert np.allclose(cropped.raw, dense.raw, atol=1e-5)


@settings(max_examples=30, deadline=None)
@given(number=st.integers(0, 500), budget=st.integers(1, 256), group=st.sampled_from(list(GROUPS)))
def test_crops_hold_the_mask_and_the_budget(number: int, budget: int, group: str) -> None:
    case = held_out_case(group, number, 128)
    box = crop_box(case.mask)
    outside = case.mask.copy()
    outside[box.pixels] = False
    assert not outside.any()
    if budget >= box.tokens:
        grown = box.grown(budget, case.mask.shape)
        assert box.tokens <= grown.tokens <= budget
        assert grown.top <= box.top and grown.right >= box.right and grown.bottom <= 8 and grown.left >= 0
    else:
        small = shrunk(case, box, budget)
        assert small.mask.size // 256 <= max(budget, box.bottom - box.top, box.right - box.left) and small.mask.any()


def test_context_rows_differ_from_no_context(runner: LabRunner) -> None:
    """A cache that never reached attention would show as a row equal to the edit region alone."""
    case = held_out_case("small", 0, 128)
    done = {
        name: runner.run(ROWS[name], case, 3, {}) for name in ("edit_only", "cache_first", "rolling_20_cold", "low")
    }
    for name in ("cache_first", "rolling_20_cold", "low"):
        assert not np.allclose(done[name].raw, done["edit_only"].raw, atol=1e-5), name
    assert done["cache_first"].flops > done["edit_only"].flops
