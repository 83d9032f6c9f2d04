"""Rolling context: each step also computes the next slice of what is left out, whose fresh keys and values go to the
cache.

The price of refreshing is spread evenly and no step but the first is dense. Slices follow the plan's ranking, edges
first."""

from __future__ import annotations

import math
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import ClassVar

import torch

from ..canvas import Canvas
from ..families.base import UnsupportedModel
from ..lowres import low_blocks
from ..plan import CANVAS_WIDTH, GridPlan
from .base import AttentionCall, Context, ContextRun, Forward, KeysValuesMask
from .cache import LAYERS_CHANGED, KVCache, append
from .low import LowContext


@dataclass(frozen=True)
class RollingContext(Context):
    """The choice ``rolling``.

    Attributes:
        share: part of the left out tokens that each step refreshes, above 0 to 1.
        warm: begin with one dense step. Cold, low-frequency tokens stand in for what is not cached yet.
    """

    name: ClassVar[str] = "rolling"
    share: float = 0.2
    warm: bool = True

    @property
    def needs_attention(self) -> bool:
        return True

    def start(self, plan: GridPlan) -> ContextRun:
        return RollingRun(self, plan)


@dataclass(frozen=True)
class RollingForward(Forward):
    """A call that refreshes part of the cache.

    Attributes:
        rows: ``(S,)`` long, rows of the cache that the canvas computes afresh; they follow the kept tokens on it.
    """

    rows: torch.Tensor = field(default_factory=lambda: torch.arange(0))


@dataclass
class RollingCache(KVCache):
    """Adds to the cache how far it is filled, and where the next slice begins. Rows follow the plan's ranking."""

    filled: int = 0
    next: int = 0


class RollingRun(ContextRun):
    """Slices of the canvas go back into the cache; the cache takes their place among the keys."""

    context: RollingContext

    def __init__(self, context: RollingContext, plan: GridPlan) -> None:
        super().__init__(context, plan)
        self.plan = plan
        self.whole = Canvas.whole(plan.grid.rows, plan.grid.cols)
        self.ranked = plan.order[len(plan.kept) :]
        self.low = LowContext()
        self.low_factor = plan.low.factor if plan.low is not None else 4
        self.caches: dict[Hashable, RollingCache] = {}

    def forward(self, step: int, conds: Hashable) -> Forward:
        cache = self.caches.get(conds)
        if cache is None:
            cache = self.caches[conds] = RollingCache(step)
            if self.context.warm:
                return RollingForward(self.whole, dense=True, attends=True, conds=conds)
        cache.seen = 0
        rows, canvas = self._slice(cache)
        return RollingForward(canvas, attends=True, conds=conds, rows=rows)

    def _slice(self, cache: RollingCache) -> tuple[torch.Tensor, Canvas]:
        """The next rows to refresh, rounded up to full canvas rows, and the canvas that computes them."""
        count, kept = len(self.ranked), self.plan.kept
        grid = self.plan.grid
        rows, low = torch.arange(0), None
        for size in range(max(1, math.ceil(self.context.share * count)), count + 1):
            rows = torch.arange(cache.next, cache.next + size) % count
            low = None
            if max(cache.filled, min(cache.next + size, count)) < count:
                known = torch.cat([kept, self.ranked[: cache.next + size]])
                low = low_blocks(known, grid.rows, grid.cols, self.low_factor)
            if (len(kept) + size + (len(low) if low else 0)) % CANVAS_WIDTH == 0:
                break
        return rows, Canvas.of_tokens(torch.cat([kept, self.ranked[rows]]), grid.rows, grid.cols, low)

    def attend(self, forward: Forward, call: AttentionCall) -> KeysValuesMask:
        assert isinstance(forward, RollingForward)
        layer, q, k, v, dim, start = call.layer, call.q, call.k, call.v, call.dim, call.start
        cache = self.caches[forward.conds]
        cache.seen += 1
        if forward.dense:
            index = (self.ranked + start).to(k.device)
            cache.layers[layer] = (k.index_select(dim, index), v.index_select(dim, index))
            return k, v, call.mask
        if layer not in cache.layers:
            if cache.filled:
                raise UnsupportedModel(LAYERS_CHANGED)
            cache.layers[layer] = (_empty(k, dim, len(self.ranked)), _empty(v, dim, len(self.ranked)))
        mask = self.low.mask(call.mask, q, k.shape[dim], start, forward.canvas)
        first = start + len(self.plan.kept)
        slice_end = first + len(forward.rows)
        known = max(cache.filled, min(cache.next + len(forward.rows), len(self.ranked)))
        rows = forward.rows.to(k.device)
        cached_k, cached_v = cache.layers[layer]
        cached_k.index_copy_(dim, rows, k.narrow(dim, first, len(rows)))
        cached_v.index_copy_(dim, rows, v.narrow(dim, first, len(rows)))
        k, v = _without(k, first, slice_end, dim), _without(v, first, slice_end, dim)
        if mask is not None and mask.shape[-1] > 1:
            mask = _without(mask, first, slice_end, mask.ndim - 1)
        return append(q, k, v, mask, cached_k.narrow(dim, 0, known), cached_v.narrow(dim, 0, known), dim)

    def done(self, forward: Forward) -> None:
        cache = self.caches[forward.conds]
        if not cache.seen:  # a step cache skipped the call
            if not cache.layers:
                del self.caches[forward.conds]
            return
        if forward.dense:
            cache.filled = len(self.ranked)
        elif cache.seen != len(cache.layers):
            raise UnsupportedModel(LAYERS_CHANGED)
        elif isinstance(forward, RollingForward):
            end = cache.next + len(forward.rows)
            cache.filled = max(cache.filled, min(end, len(self.ranked)))
            cache.next = end % len(self.ranked)

    @property
    def cache_bytes(self) -> int:
        return sum(cache.bytes for cache in self.caches.values())

    @property
    def cache_place(self) -> str:
        return "device" if self.caches else ""


def _empty(like: torch.Tensor, dim: int, count: int) -> torch.Tensor:
    shape = list(like.shape)
    shape[dim] = count
    return like.new_empty(shape)


def _without(rows: torch.Tensor, first: int, end: int, dim: int) -> torch.Tensor:
    """Rows before ``first`` and from ``end`` on."""
    return torch.cat([rows.narrow(dim, 0, first), rows.narrow(dim, end, rows.shape[dim] - end)], dim)
