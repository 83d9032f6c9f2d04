"""Conditionings that the host evaluates together or apart."""

from __future__ import annotations

import pytest
import torch

from core.attention import attention
from hilo_core import make_context

BOTH, FIRST, SECOND = (("a", "b"), slice(None)), (("a",), slice(0, 1)), (("b",), slice(1, 2))


@pytest.mark.parametrize("place", ["device", "8 bit", "cpu"])
@pytest.mark.parametrize(("context", "settings"), [
    ("cache", {"refresh": 0}), ("cache", {"refresh": 0, "forecast": "linear"}), ("rolling", {"share": 0.3}),
    ("rolling", {"share": 0.3, "forecast": "linear"}), ("pooled cache", {"refresh": 0}), ("auto", {}),
])  # fmt: skip
def test_a_host_may_ask_for_conditionings_together_or_apart(context: str, settings: dict, place: str) -> None:
    """As its memory allows: each way reads what was captured in the other, and nothing is kept twice."""
    turned = attention(make_context(context, cache_place=place, **settings))
    straight = attention(make_context(context, cache_place=place, **settings))
    orders = [[BOTH], [FIRST, SECOND], [SECOND, FIRST], [BOTH], [BOTH], [FIRST, SECOND]]
    for step, calls in enumerate(orders):
        wanted = {}
        straight.conds, straight.batch = BOTH
        forward, answers = straight.call(step, 0.9 - step / 10)
        for conds, batch in calls:
            turned.conds, turned.batch = conds, batch
            mine, found = turned.call(step, 0.9 - step / 10)
            assert mine.dense == forward.dense == (step == 0)
            wanted[conds] = [(one, answer[batch]) for one, answer in zip(found, answers, strict=True)]
        for pairs in wanted.values():
            assert all(torch.equal(one, other) for one, other in pairs)
        assert turned.run.cache_bytes == straight.run.cache_bytes


@pytest.mark.parametrize("conds", [("a", "c"), ("c",), (), "a", ("a", "a", "b")])
def test_conditionings_that_are_new_or_have_no_name_are_captured(conds: object) -> None:
    one = attention(make_context("cache", refresh=0))
    one.conds, one.batch = BOTH
    assert one.call(0, 0.9)[0].dense and not one.call(1, 0.8)[0].dense
    one.conds = conds  # type: ignore[assignment]
    assert one.call(1, 0.8)[0].dense
