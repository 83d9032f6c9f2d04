"""Keys and values of one run serve the next, when everything but the seed is the same."""

from __future__ import annotations

import gc
from typing import Any

import pytest
import torch

from core.attention import Attention, attention
from hilo_core import make_context
from hilo_core.contexts.cache import CachingRun
from hilo_core.contexts.memory import OnCpu
from hilo_core.contexts.reuse import Reuse, digest

SETTINGS = {"cache": {"refresh": 2}, "rolling": {"share": 0.2}, "pooled cache": {"refresh": 2}}


class Model:
    """Something that lives and dies."""


def started(reuse: Reuse, model: Model, context: str = "cache", prompt: str = "a cat", **settings: Any) -> Attention:
    """A run whose conditionings are known by their content."""
    one = attention(make_context(context, **(SETTINGS[context] | settings)))
    assert isinstance(one.run, CachingRun)
    one.run.reuse = reuse.of_run(model, "plan", torch.arange(3))
    one.conds = ("uuid of this run",)
    one.run.reuse.know(one.conds, prompt)
    return one


def dense(one: Attention, steps: int = 4) -> list[bool]:
    return [one.call(step, 0.9 - step / 10)[0].dense for step in range(steps)]


@pytest.mark.parametrize("forecast", ["hold", "linear"])
@pytest.mark.parametrize("context", SETTINGS)
def test_the_next_run_needs_no_dense_step(context: str, forecast: str) -> None:
    reuse, model = Reuse(), Model()
    first, second = (started(reuse, model, context, forecast=forecast) for _ in range(2))
    spared = dense(first)
    assert any(spared) and not any(dense(second))
    assert second.run.reuse.calls == sum(spared)  # type: ignore[attr-defined]
    if context != "pooled cache":  # an average is no dense step
        third = started(reuse, model, context, forecast=forecast)
        assert third.error(0.9, third.call(0, 0.9)[1]) < 5e-6


def test_what_a_run_writes_does_not_reach_the_next() -> None:
    """Rolling writes fresh rows into its cache; what is kept stays as it was captured."""
    reuse, model = Reuse(), Model()
    for _ in range(3):
        one = started(reuse, model, "rolling", share=0.5)
        assert one.error(0.9, one.call(0, 0.9)[1]) < 5e-6
        for step in range(1, 5):
            one.call(step, 0.9 - step / 10)


def test_another_prompt_plan_level_or_model_is_not_served() -> None:
    reuse, model, other = Reuse(), Model(), Model()
    dense(started(reuse, model))
    assert dense(started(reuse, model, prompt="a dog"))[0]
    assert dense(started(reuse, other))[0]
    moved = started(reuse, model)
    moved.run.reuse = reuse.of_run(model, "plan", torch.arange(1, 4))  # type: ignore[attr-defined]
    moved.run.reuse.know(moved.conds, "a cat")  # type: ignore[attr-defined]
    assert dense(moved)[0]
    assert started(reuse, model).call(0, 0.91)[0].dense
    unknown = started(reuse, model)
    unknown.run.reuse.ignore(unknown.conds)  # type: ignore[attr-defined]
    assert dense(unknown)[0]


def test_what_is_kept_for_later_runs_is_regrouped_like_all_else() -> None:
    """Conditionings together at first, then apart: no new dense call, and none in the next run either."""
    reuse, model = Reuse(), Model()
    for run in range(2):
        one = started(reuse, model, refresh=0)
        seen = []
        for conds, batch in ((("a", "b"), slice(None)), (("a",), slice(0, 1)), (("b",), slice(1, 2))):
            one.run.reuse.know(conds, conds)  # type: ignore[attr-defined]
            one.conds, one.batch = conds, batch
            seen.append(one.call(len(seen), 0.9 - len(seen) / 10)[0].dense)
        assert seen == [run == 0, False, False]


def test_each_kind_of_run_keeps_its_noise() -> None:
    """Rows of two kinds of run are kept side by side, and each is read under the noise it was captured with."""
    reuse, model = Reuse(), Model()
    first, other = (reuse.of_run(model, steps) for steps in (8, 6))
    layers = {0: tuple(OnCpu(torch.ones(1, 1, 4, 2), 2, 2) for _ in range(2))}
    noises = torch.randn(3, 1, 4, 8, 8)
    for one, noise in ((first, noises[0]), (other, noises[1])):
        assert torch.equal(one.noise(noise), noise)
        one.know("uuid", "a cat")
        one.keep("uuid", 0.9, layers)  # type: ignore[arg-type]
    again = reuse.of_run(model, 8)
    assert torch.equal(again.noise(noises[2]), noises[0])
    reuse.of_run(model, 4).noise(noises[2])
    assert len(reuse._noise) == 3
    reuse.clear()
    assert torch.equal(again.noise(noises[2]), noises[2]) and len(reuse._noise) == 1


def test_it_stays_in_its_limit_and_the_oldest_goes_first() -> None:
    model, probe = Model(), Reuse()
    dense(started(probe, model, refresh=0), 1)
    size = probe.bytes
    reuse = Reuse(limit=2 * size)
    for prompt in ("one", "two", "three"):
        dense(started(reuse, model, prompt=prompt, refresh=0), 1)
        assert reuse.bytes <= reuse.limit
    served = [not dense(started(reuse, model, prompt=prompt, refresh=0), 1)[0] for prompt in ("three", "two", "one")]
    assert served == [True, True, False]
    small = Reuse(limit=size - 1)
    dense(started(small, model, refresh=0), 1)
    assert small.bytes == 0
    reuse.clear()
    assert reuse.bytes == 0


def test_captures_of_one_run_do_not_put_each_other_out() -> None:
    model, probe = Model(), Reuse()
    dense(started(probe, model, refresh=0), 1)
    one_capture = probe.bytes
    reuse = Reuse(limit=round(1.5 * one_capture))  # refresh 2 captures twice in four steps
    assert dense(started(reuse, model)) == [True, False, True, False]
    for _ in range(2):
        assert dense(started(reuse, model)) == [False, False, True, False]
    assert dense(started(reuse, model, prompt="a dog"))[0], "another prompt's run is not served"
    assert not dense(started(reuse, model, prompt="a dog"))[0], "but finds room"


def test_it_is_gone_with_the_model() -> None:
    reuse, model = Reuse(), Model()
    dense(started(reuse, model))
    assert reuse.bytes > 0
    del model
    gc.collect()
    assert reuse.bytes == 0


def test_fingerprints() -> None:
    x = torch.arange(6.0)
    different = [(), (x,), (x.view(2, 3),), (x + 1,), (x.double(),), (x.bfloat16(),), (None,), ("",), (0,), (False,),
                 ([x],), ({"a": x},), ({"b": x},), ((x, x),), (torch.zeros(0),), (torch.tensor(1.0),)]  # fmt: skip
    assert len({digest(*parts) for parts in different}) == len(different)
    assert digest({"a": 1, "b": x}) == digest({"b": x.clone(), "a": 1})
    assert digest(x[::2]) == digest(x[::2].clone())
    with pytest.raises(TypeError, match="Model cannot be known"):
        digest(Model())
