"""Which steps are dense, when a cache is filled, how budgets change, what is refreshed when, and what is foretold."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch

from core.attention import attention, plan
from hilo_core import make_context
from hilo_core.contexts.kvcache import REACH
from hilo_core.contexts.rolling import ORDERS, refresh_order
from hilo_core.plan import CANVAS_WIDTH
from hilo_core.schedule import Schedule

SIGMAS = [0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2]


def dense_steps(context: str, steps: int = 8, **settings: object) -> list[int]:
    model = attention(make_context(context, **settings), steps=steps)
    return [step for step in range(8) if model.call(step, SIGMAS[step])[0].dense]


@pytest.mark.parametrize(("schedule", "dense"), [
    (Schedule(), []), (Schedule(first=2), [0, 1]), (Schedule(last=1), [7]), (Schedule(every=3), [0, 3, 6]),
    (Schedule(first=1, last=2, every=4), [0, 4, 6, 7]),
])  # fmt: skip
@pytest.mark.parametrize("context", ["none", "low", "cache", "rolling"])
def test_dense_steps(context: str, schedule: Schedule, dense: list[int]) -> None:
    warm_up = [] if context in ("none", "low") or dense[:1] == [0] else [0]
    assert dense_steps(context, schedule=schedule, refresh=0) == warm_up + dense


def test_without_a_step_count_nothing_counts_from_the_end() -> None:
    assert dense_steps("none", steps=0, schedule=Schedule(first=1, last=3)) == [0]


@pytest.mark.parametrize("context", ["cache", "pooled cache", "rolling", "low + cache"])
def test_a_late_capture_has_low_tokens_stand_in_until_then(context: str) -> None:
    model = attention(make_context(context, refresh=0, schedule=Schedule(capture=0.25)))
    calls = [model.call(step, SIGMAS[step])[0] for step in range(4)]
    assert [call.dense for call in calls] == [False, False, True, False]
    assert all(call.canvas.low and call.canvas.tokens % CANVAS_WIDTH == 0 for call in calls[:2])
    assert model.run.caches["conds"].step == 2  # type: ignore[attr-defined]


@pytest.mark.parametrize("budget", [(2.0, 0.5), (0.5, 2.0), (1.0, 0.0)])
@pytest.mark.parametrize("context", ["none", "low", "cache", "low + cache"])
def test_budgets_are_nested_and_fill_canvas_rows(context: str, budget: tuple[float, float]) -> None:
    low = 4 if "low" in context else 0
    model = attention(make_context(context, refresh=0, schedule=Schedule(budget=budget)), low=low, detail=0.3)
    if "cache" in context:
        model.call(0, 0.9)
    kept = [set(model.call(step, 0.9)[0].canvas.index.tolist()) for step in range(8)]
    if budget[0] < budget[1]:
        kept.reverse()
    assert all(more >= fewer for more, fewer in pairwise(kept)) and kept[0] > kept[-1]
    edit = set(torch.nonzero(model.run.plan.edit).flatten().tolist())
    assert kept[-1] >= edit
    assert all(model.run.canvas_at(step).tokens % CANVAS_WIDTH == 0 for step in range(8))


@pytest.mark.parametrize("budget", [(2.0, 0.5), (0.3, 1.0)])
def test_a_cache_shows_what_a_budget_leaves_out_and_nothing_twice(budget: tuple[float, float]) -> None:
    model = attention(make_context("cache", refresh=0, schedule=Schedule(budget=budget)))
    calls = [model.call(step, 0.9) for step in range(8)]
    assert (
        max(model.error(0.9, answers) for _, answers in calls) < 5e-6
    )  # float32 rounding, which differs between processors
    assert not calls[-1][0].dense


def test_a_share_or_blocks_have_no_budget() -> None:
    for context in ("rolling", "pooled cache"):
        model = attention(make_context(context, schedule=Schedule(budget=(3.0, 0.0))))
        assert model.run.canvas_at(0) is model.run.canvas_at(7)


@pytest.mark.parametrize("warm", [True, False])
@pytest.mark.parametrize("order", ORDERS)
def test_rolling_refreshes_every_token_in_turn(order: str, warm: bool) -> None:
    model = attention(make_context("rolling", share=0.25, warm=warm, order=order))
    seen: list[torch.Tensor] = []
    for step in range(6):
        forward, _ = model.call(step, SIGMAS[step])
        if forward.rows is not None:
            seen.append(forward.rows)
    count = model.run.rows  # type: ignore[attr-defined]
    turns = torch.cat(seen)[:count]
    assert torch.equal(turns, torch.arange(count)), "in the order asked for, none twice before all had their turn"


def test_refresh_orders() -> None:
    whole = plan()
    orders = {order: refresh_order(whole, order) for order in ORDERS}
    assert all(torch.equal(one.sort().values, orders["edges"].sort().values) for one in orders.values())
    assert torch.equal(orders["edges"], whole.order[len(whole.kept) :])
    side = whole.grid.cols
    edit = torch.nonzero(whole.edit).flatten()
    away = [min(((t // side - edit // side) ** 2 + (t % side - edit % side) ** 2).tolist()) for t in orders["distance"]]
    assert away == sorted(away)
    assert not torch.equal(orders["random"], orders["edges"])


def test_favoured_rows_are_refreshed_oftener() -> None:
    model = attention(make_context("rolling", share=0.2, favour=3.0))
    turns = torch.zeros(model.run.rows)  # type: ignore[attr-defined]
    for step in range(40):
        forward, _ = model.call(min(step, 7), 0.5)
        if forward.rows is not None:
            turns[forward.rows] += 1
    third = len(turns) // 3
    assert turns[:third].mean() > 1.5 * turns[-third:].mean() and turns.min() >= 2


@pytest.mark.parametrize("context", ["cache", "rolling"])
def test_a_linear_forecast_is_exact_where_keys_are_linear_in_sigma(context: str) -> None:
    """The stand-in's keys and values are, so two captures foretell every later sigma within reach."""
    errors = {}
    for forecast in ("hold", "linear"):
        settings = {"refresh": 0} if context == "cache" else {"share": 0.6}
        schedule = Schedule(first=2)
        model = attention(make_context(context, forecast=forecast, schedule=schedule, **settings))
        for step, sigma in enumerate((0.9, 0.8)):
            model.call(step, sigma)
        _, answers = model.call(2, 0.7)
        errors[forecast] = model.error(0.7, answers)
        if context == "rolling":  # rows captured at different steps have each their own line
            errors[forecast] = max(errors[forecast], model.error(0.65, model.call(3, 0.65)[1]))
    assert errors["linear"] < 5e-6 < 0.01 < errors["hold"]


def test_a_forecast_does_not_reach_far() -> None:
    """It is cut off at some times the distance of its two captures, and two captures at one sigma foretell nothing."""
    model = attention(make_context("cache", refresh=0, forecast="linear", schedule=Schedule(first=2)))
    model.call(0, 0.9)
    model.call(1, 0.85)
    assert model.error(0.75, model.call(2, 0.75)[1]) < 1e-5
    model.call(2, 0.1)
    cache = model.run.caches["conds"]  # type: ignore[attr-defined]
    assert cache._weight is not None and float(cache._weight.tensor.max()) == 1 + REACH
    model.call(1, 0.85)
    model.call(2, 0.3)
    assert cache._weight is None


def test_a_step_that_a_step_cache_answered_captures_nothing() -> None:
    for context in ("cache", "rolling"):
        model = attention(make_context(context, refresh=0, forecast="linear"))
        model.call(0, 0.9, layers=0)
        forward, answers = model.call(1, 0.8)
        assert forward.dense and model.error(0.8, answers) == 0
        model.call(2, 0.8, layers=0)
        assert model.error(0.8, model.call(3, 0.8)[1]) < 5e-6


@pytest.mark.parametrize(("settings", "sentence"), [
    ({"first": -1}, "first is -1 steps"), ({"capture": 1.5}, "capture is 1.5"), ({"budget": (1.0, -1.0)}, "budget is"),
])  # fmt: skip
def test_bad_schedules_are_told(settings: dict, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        Schedule(**settings)
    with pytest.raises(ValueError, match="order is 'tide'; it must be one of random"):
        make_context("rolling", order="tide")
    with pytest.raises(ValueError, match="share is 0"):
        make_context("rolling", share=0.0)


@pytest.mark.parametrize("steps", [4, 8, 20, 50])
def test_auto_is_dense_at_both_ends_of_the_run(steps: int) -> None:
    model = attention(make_context("auto", share=0.9, refresh=2), steps=steps)
    calls = [model.call(step, 1 - step / steps)[0] for step in range(steps)]
    assert [step for step, call in enumerate(calls) if call.dense] == [0, steps - 1]
    assert all(call.cached for call in calls)
    assert all(call.rows is not None and len(call.rows) for call in calls[1:-1]), "a part is renewed"


@pytest.mark.parametrize("detail", [0.0, 0.1, 0.3])
def test_auto_spends_what_the_plan_adds_on_renewing(detail: float) -> None:
    """Beyond the edit region a step computes as many tokens as with the plan's own and 5 % more, each in its turn."""
    model = attention(make_context("auto"), steps=20, detail=detail)
    of_plan, grid = plan(detail=detail), model.run.plan.grid
    edit = set(of_plan.edit.nonzero().flatten().tolist())
    asked = len(of_plan.kept) + math.ceil(0.05 * (grid.count - len(of_plan.kept)))
    assert model.call(2, 0.9)[0].dense
    renewed = [set(model.call(step, 1 - step / 20)[0].canvas.index.tolist()) - edit for step in range(3, 6)]
    for tokens in renewed:
        assert asked <= len(edit) + len(tokens) < asked + 32
    turns = min(3, (grid.count - len(edit)) // len(renewed[0]))
    assert len(set().union(*renewed[:turns])) == turns * len(renewed[0]), "none again before all the others"
