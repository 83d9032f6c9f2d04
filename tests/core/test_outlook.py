"""What a step will compute is told by the methods and contexts themselves, before there is a model."""

from __future__ import annotations

import pytest

from core.pictures import painted, picture
from hilo_core import CONTEXTS, METHODS, Grid, PlanSettings, make_context, make_method, make_plan
from hilo_core.outlook import Outlook, outlook
from hilo_core.report import step_speed

SIZE = (256, 320)


def seen(context: str = "auto", method: str = "hilo", **settings: float) -> Outlook:
    plan = make_plan(picture(*SIZE), painted(*SIZE, (80, 120, 60, 110)), PlanSettings(**{"dilation": 8, **settings}))
    return outlook(plan, Grid.of_picture(SIZE), make_context(context), make_method(method))


@pytest.mark.parametrize("context", CONTEXTS)
def test_the_legend_is_the_whole_picture(context: str) -> None:
    ahead = seen(context)
    counts = {name: count for _, name, count, _ in ahead.legend()}
    assert sum(counts.values()) == ahead.plan.grid.count
    computed = counts["edit"] + counts.get("high", 0) + (ahead.rest_tokens if ahead.rest in ("low", "renewed") else 0)
    assert ahead.tokens == computed < ahead.plan.grid.count
    assert ahead.headline.startswith(f"{ahead.tokens:,} of {ahead.plan.grid.count:,} tokens, about ")


def test_each_context_says_how_the_rest_is_seen() -> None:
    rests = {context: seen(context).rest for context in CONTEXTS}
    assert rests == {
        "auto": "renewed", "rolling": "renewed", "cache": "cached", "pooled cache": "pooled", "low": "low",
        "none": "unseen",
    }  # fmt: skip
    assert seen("low", low_factor=0).rest == "unseen"


def test_keys_of_a_cache_cost_time() -> None:
    """The same tokens are slower where they see more."""
    alone, cached, pooled = seen("none"), seen("cache"), seen("pooled cache")
    assert alone.tokens == cached.tokens == pooled.tokens and cached.keys == cached.plan.grid.count
    assert alone.keys < pooled.keys < cached.keys
    assert alone.speed is not None and pooled.speed is not None and cached.speed is not None
    assert alone.speed > pooled.speed > cached.speed > 1
    assert alone.speed == step_speed(alone.tokens, alone.plan.grid.count)


@pytest.mark.parametrize("method", METHODS)
def test_a_method_that_computes_all_is_given_no_speed(method: str) -> None:
    ahead = seen(method=method)
    assert (ahead.speed is None) == make_method(method).whole == (ahead.rest == "computed")
    assert ahead.tokens <= seen().plan.grid.count


def test_nothing_to_save() -> None:
    ahead = seen(detail=1.0, threshold=0.0)
    assert ahead.dense and ahead.headline == "nothing to save: runs dense"
