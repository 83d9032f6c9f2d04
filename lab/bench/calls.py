"""Which sort each model call of a caching context's run is, asked of the context itself.

The context goes through the run as it would in a host, with a model of one layer and one channel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from hilo_core.contexts import AttentionCall
from hilo_core.contexts.reuse import Reuse, ReuseOfRun

SORTS = {
    "low": "with low-frequency tokens, while nothing is cached yet",
    "capture": "dense, its keys and values kept",
    "cached": "with keys and values as they were captured",
    "forecast": "with keys and values carried on from two captures",
    "last": "dense, because the schedule ends so",
    "reused": "with those of an earlier run in place of a dense call",
}


class Call(NamedTuple):
    """One model call.

    Attributes:
        sort: a key of `SORTS`; calls of one sort cost the same.
        tokens: of the picture that it computes, low-frequency ones included.
    """

    sort: str
    tokens: int


class Calls(NamedTuple):
    """The model calls of two runs on one picture.

    Attributes:
        first: with nothing kept from before.
        again: with the keys and values that the first has kept (`reuse`).
    """

    first: list[Call]
    again: list[Call]

    @property
    def sorts(self) -> set[str]:
        """All sorts there are."""
        return {call.sort for call in (*self.first, *self.again)}


def calls(context: Any, plan: Any, steps: int) -> Calls:
    """What the context would do.

    Args:
        context: one that caches, of any copy of `hilo_core`.
        plan: a `GridPlan`.
        steps: of the run.
    """
    reuse = Reuse()
    return Calls(*(_run(context.start(plan, steps), steps, reuse.of_run(reuse)) for _ in range(2)))


def _run(state: Any, steps: int, reuse: ReuseOfRun) -> list[Call]:
    state.reuse = reuse
    conds = ()
    reuse.know(conds, "the prompt")
    found: list[Call] = []
    one_capture = 2 * torch.float32.itemsize * state.rows  # bytes of keys and values of one channel
    for step in range(steps):
        state.sigma = 1 - step / steps
        spared, held = state.reused_calls, state.cache_bytes
        forward = state.forward(step, conds)
        if forward.attends:
            q = torch.zeros(1, 1, forward.canvas.tokens, 1)
            state.attend(forward, AttentionCall(0, q, q, q, None, 0, 2))
        state.done(forward)
        if state.reused_calls > spared:
            sort = "reused"
        elif forward.dense:
            sort = "last" if state.schedule.dense(step, steps) else "capture"
        elif not forward.cached:
            sort = "low"
        else:
            sort = "forecast" if held > one_capture else "cached"
        found.append(Call(sort, forward.canvas.tokens))
    return found


def shortest(contexts: Sequence[Any], plan: Any, steps: int) -> tuple[Any, int]:
    """The context and the number of steps, `steps` at most, whose run has every sort of call that the contexts' runs of
    `steps` steps have.

    Raises:
        ValueError: no single run has them all.
    """
    wanted: set[str] = set().union(*(calls(context, plan, steps).sorts for context in contexts))
    for count in range(1, steps + 1):
        for context in contexts:
            if wanted <= calls(context, plan, count).sorts:
                return context, count
    raise ValueError(f"no run of {steps} steps or fewer has calls of all sorts: {', '.join(sorted(wanted))}")
