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
    ("rolling", {"share": 0.3, "warm": False}),
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
            assert mine.dense == forward.dense == (step == 0 and settings.get("warm", True))
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


@pytest.mark.parametrize("context", ["cache", "rolling", "auto"])
def test_a_conditioning_whose_turn_is_over_gives_back_its_memory(context: str) -> None:
    """Prompts that take turns over the run. What misses every second step is kept."""
    one = attention(make_context(context, **({"refresh": 0} if context == "cache" else {})), steps=20)
    dense, kept = [], []
    for step in range(12):
        one.conds, one.batch = FIRST if step < 6 else SECOND
        dense.append(one.call(step, 0.9 - step / 20)[0].dense)
        kept.append(one.run.cache_bytes)
    assert [step for step, whole in enumerate(dense) if whole] == [0, 6]
    assert kept[8] == kept[2] and kept[11] == kept[5]
    turns = attention(make_context(context, **({"refresh": 0} if context == "cache" else {})), steps=20)
    dense = []
    for step in range(6):
        for turns.conds, turns.batch in [FIRST, SECOND][: 1 if step % 2 else 2]:
            dense.append(turns.call(step, 0.9 - step / 20)[0].dense)
    assert sum(dense) == 2


def test_a_run_that_is_dense_to_its_end_gives_back_its_memory() -> None:
    one = attention(make_context("auto"))
    one.call(0, 0.9)
    assert one.run.cache_bytes > 0
    one.run.release()  # type: ignore[attr-defined]
    assert one.run.cache_bytes == 0 and one.call(1, 0.8)[0].dense
