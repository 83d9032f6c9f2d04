"""Rolling context: each step also computes the next slice of what is left out, whose fresh keys and values go to the
cache.

The price of refreshing is spread evenly and no step but the first is dense."""

from __future__ import annotations

import math
from collections.abc import Hashable
from dataclasses import dataclass, replace
from typing import ClassVar

import cv2
import numpy as np
import torch

from ..canvas import Canvas
from ..lowres import low_blocks
from ..placed import Placed
from ..plan import CANVAS_WIDTH, GridPlan
from .base import AttentionCall, ContextRun, Forward, KeysValuesMask
from .cache import STAND_IN_FACTOR, CachingContext, CachingRun, append
from .kvcache import KVCache

ORDERS = ("random", "edges", "distance")


@dataclass(frozen=True)
class RollingContext(CachingContext):
    """The choice ``rolling``.

    Attributes:
        share: part of the left out tokens that each step refreshes, above 0 to 1.
        warm: begin with one dense step. Cold, low-frequency tokens stand in for what is not cached yet.
        order: which tokens come first: those with the strongest ``edges``, those at the smallest ``distance`` from the
            edit region, or in ``random`` order, which spreads each slice over the picture and measured best by up to 1
            dB (lab model, 256 px, 6 pictures a group of masks).
        favour: how much oftener the first of them is refreshed than the last: rows go by age x (1 + favour) to age x 1.
            With 0 it is each row's turn, which measured best.
    """

    name: ClassVar[str] = "rolling"
    share: float = 0.2
    warm: bool = True
    order: str = "random"
    favour: float = 0.0

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ValueError(f"share is {self.share}; it must lie above 0 and be at most 1")
        if self.order not in ORDERS:
            raise ValueError(f"order is {self.order!r}; it must be one of {', '.join(ORDERS)}")

    @property
    def takes_budgets(self) -> bool:
        return False  # a step's share is its budget

    def start(self, plan: GridPlan, steps: int = 0) -> ContextRun:
        return RollingRun(self, plan, steps)


@dataclass(frozen=True)
class AutoContext(RollingContext):
    """The choice ``auto``: ``rolling`` as it measured best (lab model, 512 px, 20 steps).

    The first step is dense and shows the whole picture; a capture after a tenth of the run, with low tokens until
    then, cost as much and came out up to 0.4 dB behind. The last is dense, which takes a seam away. In between as many
    tokens as the plan adds to the edit region, and 5 % of the rest, are renewed a step, each in its turn, and others
    carried on in the noise level: with the plan's own tokens in every step and 5 % renewed, at the same cost, PSNR
    against dense fell from 42 to 36 dB. What else is set is left aside.
    """

    name: ClassVar[str] = "auto"
    forecast: str = "linear"

    def start(self, plan: GridPlan, steps: int = 0) -> ContextRun:
        schedule = replace(self.schedule, capture=0.0, last=max(1, self.schedule.last))
        edit = plan.edit.nonzero().flatten()
        renewed = plan.high + math.ceil(0.05 * (plan.grid.count - len(plan.kept)))
        # Not a whole token, which could be rounded up, and no more than there are.
        share = min(1.0, (renewed - 0.5) / (plan.grid.count - len(edit)))
        chosen = replace(self, share=share, warm=True, forecast="linear", schedule=schedule)
        return RollingRun(chosen, replace(plan, kept=edit, high=0, low=None), steps)


class RollingRun(CachingRun):
    """Slices of the canvas go back into the cache; the cache takes their place among the keys."""

    context: RollingContext  # pyright: ignore[reportIncompatibleVariableOverride]

    def __init__(self, context: RollingContext, plan: GridPlan, steps: int = 0) -> None:
        self.ranked = refresh_order(plan, context.order)
        self._ranked = Placed(self.ranked)
        super().__init__(context, plan, steps)
        self.low_factor = plan.low.factor if plan.low is not None else STAND_IN_FACTOR
        self.weight = torch.linspace(1 + context.favour, 1, len(self.ranked))

    @property
    def rows(self) -> int:
        return len(self.ranked)

    def compressed(self, step: int, conds: Hashable) -> Forward:
        if not self.schedule.captures(step, self.steps):
            return self.stand_in(conds)
        cache = self.cache(conds)
        if self.context.warm and cache.step is None:
            return self.dense(step, conds)
        return self.reading(step, conds, cache)

    def reading(self, step: int, conds: Hashable, cache: KVCache) -> Forward:
        rows, canvas = self._slice(cache)
        cache.begin(self.sigma, rows)
        return Forward(canvas, attends=True, conds=conds, cached=True, rows=rows)

    def _slice(self, cache: KVCache) -> tuple[torch.Tensor, Canvas]:
        """The next rows to refresh, rounded up to full canvas rows, and the canvas that computes them."""
        count, kept, grid = self.rows, self.plan.kept, self.plan.grid
        empty = torch.arange(count) >= cache.filled
        # Empty rows first, in their order; then by age.
        urgency = torch.where(empty, torch.inf, (cache.age + 1) * self.weight)
        turn = urgency.argsort(descending=True, stable=True)
        rows, low = turn, None
        for size in range(max(1, math.ceil(self.context.share * count)), count + 1):
            rows, low = turn[:size], None
            if cache.filled + size < count:
                known = torch.cat([kept, self.ranked[: cache.filled + size]])
                low = low_blocks(known, grid.rows, grid.cols, self.low_factor)
            if (len(kept) + size + (len(low) if low else 0)) % CANVAS_WIDTH == 0:
                break
        return rows, Canvas.of_tokens(torch.cat([kept, self.ranked[rows]]), grid.rows, grid.cols, low)

    def attend(self, forward: Forward, call: AttentionCall) -> KeysValuesMask:
        q, k, v, dim, start = call.q, call.k, call.v, call.dim, call.start
        if not forward.cached:
            return k, v, self.low.mask(call.mask, q, k.shape[dim], start, forward.canvas)
        cache = self.caches[forward.conds]
        cache.seen += 1
        if forward.dense:
            index = self._ranked.on(k.device) + start
            cache.store(call, k.index_select(dim, index), v.index_select(dim, index))
            return k, v, call.mask
        assert forward.rows is not None
        mask = self.low.mask(call.mask, q, k.shape[dim], start, forward.canvas)
        first, count = start + len(self.plan.kept), len(forward.rows)
        cache.write(call, forward.rows, k.narrow(dim, first, count), v.narrow(dim, first, count))
        k, v = _without(k, first, first + count, dim), _without(v, first, first + count, dim)
        if mask is not None and mask.shape[-1] > 1:
            mask = _without(mask, first, first + count, mask.ndim - 1)
        known = self._known(forward)
        more_k, more_v = (rows.narrow(dim, 0, known) for rows in cache.read(call))
        return append(q, k, v, mask, more_k, more_v, dim)

    def appended(self, forward: Forward) -> torch.Tensor:
        return super().appended(forward) if forward.rows is None else self.ranked[: self._known(forward)]

    def _known(self, forward: Forward) -> int:
        """Rows, the first ones, that hold something once a call has computed its own."""
        assert forward.rows is not None
        return min(self.caches[forward.conds].filled + len(forward.rows), self.rows)

    def done(self, forward: Forward) -> None:
        super().done(forward)
        if forward.rows is not None and self.caches[forward.conds].seen:
            cache = self.caches[forward.conds]
            cache.filled = min(cache.filled + len(forward.rows), self.rows)


def refresh_order(plan: GridPlan, order: str) -> torch.Tensor:
    """``(N - K,)`` long, the left out tokens in one of ``ORDERS``."""
    dropped = plan.order[len(plan.kept) :]
    if order == "random":
        return dropped[torch.randperm(len(dropped), generator=torch.Generator().manual_seed(0))]
    if order == "distance":
        outside = (~plan.edit).view(plan.grid.rows, plan.grid.cols).numpy().astype(np.uint8)
        distance = torch.from_numpy(cv2.distanceTransform(outside, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)).flatten()
        return dropped[distance[dropped].argsort(stable=True)]
    return dropped


def _without(rows: torch.Tensor, first: int, end: int, dim: int) -> torch.Tensor:
    """Rows before ``first`` and from ``end`` on."""
    return torch.cat([rows.narrow(dim, 0, first), rows.narrow(dim, end, rows.shape[dim] - end)], dim)
