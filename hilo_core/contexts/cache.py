"""Cached context: keys and values of what is left out, from the last dense step.

What is left out is the known picture, so its keys and values change only with the noise level. A dense step captures
them in every attention call, compressed steps append them (RegionE's region-instruction cache, generic over families).
Attention does not care for the order of keys, so they go to the end."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import ClassVar

import torch

from ..canvas import Canvas
from ..lowres import LowBlocks, low_blocks
from ..placed import Placed
from ..plan import GridPlan
from .base import AttentionCall, Context, ContextRun, Expected, Forward, KeysValuesMask, as_bias
from .kvcache import LAYERS_CHANGED, KVCache
from .low import LowContext
from .memory import Memory
from .regroup import regroup
from .reuse import ReuseOfRun

GB = 1e9

# Tokens a side of the low-frequency tokens that stand in where the plan has none.
STAND_IN_FACTOR = 4


@dataclass(frozen=True)
class CachingContext(Context):
    """What every context that keeps keys and values has in common.

    Attributes:
        cache_place: see ``memory.PLACES``.
        memory_limit: gigabytes (1e9 bytes) of device memory for the cache, 0 for no limit; what lies beyond goes to
            CPU memory.
        forecast: ``hold`` keys and values as captured, or carry them on in the noise level (``linear``, 4 to 10 dB
            nearer to dense on the lab's model, twice the memory), see ``kvcache.KVCache``.
    """

    cache_place: str = "auto"
    memory_limit: float = 0.0
    forecast: str = "hold"

    @property
    def needs_attention(self) -> bool:
        return True

    @property
    def pool(self) -> int:
        """Tokens a side that are averaged into one cached row."""
        return 1


@dataclass(frozen=True)
class CacheContext(CachingContext):
    """The choice ``cache``.

    Attributes:
        refresh: a dense step in so many; 0 for the first one only.
    """

    name: ClassVar[str] = "cache"
    refresh: int = 4

    def start(self, plan: GridPlan, steps: int = 0) -> ContextRun:
        return CacheRun(self, plan, steps)


@dataclass(frozen=True)
class LowCacheContext(CacheContext):
    """The choice ``low + cache``: low-frequency tokens are computed in every step beside the cached rows. Each has the
    weight of one token, because those it stands for are there themselves."""

    name: ClassVar[str] = "low + cache"
    uses_low: bool = True


@dataclass(frozen=True)
class PooledCacheContext(CacheContext):
    """The choice ``pooled cache``: rows averaged over blocks of 2 x 2 left out tokens, a quarter of the memory, each
    with log n on its logits."""

    name: ClassVar[str] = "pooled cache"

    @property
    def takes_budgets(self) -> bool:
        return False  # its blocks are those of one set of kept tokens

    @property
    def pool(self) -> int:
        return 2


class CachingRun(ContextRun):
    """A cache for each call's conditionings, and low-frequency tokens until it may be filled.

    Attributes:
        caches: by conditionings.
        asked: by conditionings, the step at which they were last asked for.
        memory: where they live.
        reuse: what earlier runs have captured, where that is wanted.
    """

    context: CachingContext

    def __init__(self, context: CachingContext, plan: GridPlan, steps: int = 0) -> None:
        super().__init__(context, plan, steps)
        captures = 2 if context.forecast == "linear" else 1
        self.memory = Memory(context.cache_place, round(context.memory_limit * GB), captures=captures)
        self.caches: dict[Hashable, KVCache] = {}
        self.asked: dict[Hashable, int] = {}
        self.low = LowContext()
        self.reuse: ReuseOfRun | None = None

    @property
    def rows(self) -> int:
        """Rows that a layer keeps."""
        raise NotImplementedError

    def expect(self, model: Expected) -> str:
        self.memory.layers = model.layers
        if self.memory.limit and self.memory.place == "auto":  # half of what is free is left to the model's own work
            self.memory.limit = max(1, min(self.memory.limit, model.free // 2))
        rows, references = (count * model.batch for count in (self.rows, model.references))
        return self.memory.foretell(rows, model.width, model.bytes, references)

    def forward(self, step: int, conds: Hashable) -> Forward:
        """Conditionings that two whole steps did without, as where prompts take turns, give back their memory."""
        self.asked[conds] = step
        for key in list(self.caches):
            self.asked.setdefault(key, step)  # what was left when others were taken out of a group
        for key in [key for key, last in list(self.asked.items()) if last < step - 2]:
            self.asked.pop(key, None)
            self.caches.pop(key, None)
        return super().forward(step, conds)

    def release(self) -> None:
        """Let go of all keys and values: the rest of the run has no use for them."""
        self.caches.clear()
        self.asked.clear()

    def cache(self, conds: Hashable) -> KVCache:
        """The cache for a call's conditionings."""
        if conds not in self.caches and not regroup(self.caches, conds):
            self.caches[conds] = KVCache(self.memory, self.rows, self.context.forecast)
        return self.caches[conds]

    def dense(self, step: int, conds: Hashable) -> Forward:
        """A dense call fills the cache, or renews it; where an earlier run has been here, its rows do as well."""
        cache = self.cache(conds)
        kept = self.reuse.find(conds, self.sigma) if self.reuse else None
        if kept is not None:
            cache.borrow(kept, step, self.sigma)
            return self.reading(step, conds, cache)
        cache.begin(self.sigma, torch.arange(self.rows))
        cache.capturing = step
        return Forward(self.whole, dense=True, attends=True, conds=conds, cached=True)

    def reading(self, step: int, conds: Hashable, cache: KVCache) -> Forward:
        """A compressed call that reads the cache."""
        raise NotImplementedError

    def stand_in(self, conds: Hashable) -> Forward:
        """A call in which low-frequency tokens stand in for what is not cached yet."""
        low = self.plan.low is not None
        plan = self.plan if low else self.plan.with_high(self.plan.high, STAND_IN_FACTOR)
        if -1 not in self._canvases:
            self._canvases[-1] = Canvas.of_plan(plan)
        return Forward(self._canvases[-1], attends=True, conds=conds)

    def done(self, forward: Forward) -> None:
        if not forward.cached:
            return
        cache = self.caches[forward.conds]
        if not cache.seen:  # a step cache answered in the model's place
            cache.cancel()
        elif forward.dense:
            cache.step, cache.filled = cache.capturing, self.rows
            if self.reuse:
                self.reuse.keep(forward.conds, self.sigma, cache.layers)
        else:
            cache.check()

    @property
    def reused_calls(self) -> int:
        return self.reuse.calls if self.reuse else 0

    @property
    def cache_bytes(self) -> int:
        return self.memory.bytes

    @property
    def cache_place(self) -> str:
        return self.memory.places


class CacheRun(CachingRun):
    """Dense calls capture, compressed calls append."""

    context: CacheContext  # pyright: ignore[reportIncompatibleVariableOverride]

    def __init__(self, context: CacheContext, plan: GridPlan, steps: int = 0) -> None:
        super().__init__(context, plan, steps)
        smallest = round(plan.high * min(self.schedule.budget))
        plan = plan if smallest >= plan.high else plan.with_high(smallest)
        # In the order of the plan's ranking: what a larger budget computes is the beginning of what is left out.
        self.dropped = plan.order[len(plan.kept) :]
        self._dropped = Placed(self.dropped)
        self.blocks: LowBlocks | None = None
        if context.pool > 1:
            self.blocks = blocks = low_blocks(plan.kept, plan.grid.rows, plan.grid.cols, context.pool)
            self._block, self._count = Placed(blocks.block[self.dropped]), Placed(blocks.count)
            self._log_count = Placed(blocks.count.float().log())
        self.first: int | None = None

    @property
    def rows(self) -> int:
        return len(self.dropped) if self.blocks is None else len(self.blocks)

    def compressed(self, step: int, conds: Hashable) -> Forward:
        if not self.schedule.captures(step, self.steps):
            return self.stand_in(conds)
        self.first = step if self.first is None else self.first
        cache, refresh = self.cache(conds), self.context.refresh
        due = refresh and (step - self.first) % refresh == 0 and cache.step != step
        if cache.step is None or due:
            return self.dense(step, conds)
        return self.reading(step, conds, cache)

    def reading(self, step: int, conds: Hashable, cache: KVCache) -> Forward:
        cache.begin(self.sigma, None)
        return Forward(self.canvas_at(step), attends=True, conds=conds, cached=True)

    def attend(self, forward: Forward, call: AttentionCall) -> KeysValuesMask:
        if not forward.cached:
            mask = self.low.mask(call.mask, call.q, call.k.shape[call.dim], call.start, forward.canvas)
            return call.k, call.v, mask
        cache = self.caches[forward.conds]
        cache.seen += 1
        if forward.dense:
            cache.store(call, self._rows(call.k, call), self._rows(call.v, call))
            return call.k, call.v, call.mask
        computed = self._computed(forward)
        k, v = (rows.narrow(call.dim, computed, self.rows - computed) for rows in cache.read(call))
        bias = None if self.blocks is None else self._log_count.on(k.device)
        return append(call.q, call.k, call.v, call.mask, k, v, call.dim, bias)

    def appended(self, forward: Forward) -> torch.Tensor:
        if forward.dense or not forward.cached:
            return super().appended(forward)
        tokens = self.dropped if self.blocks is None else self.blocks.representative()
        return tokens[self._computed(forward) :]

    def _computed(self, forward: Forward) -> int:
        """Rows, the first ones, of tokens that the budget of a call computes."""
        return len(forward.canvas.index) + len(self.dropped) - self.plan.grid.count

    def _rows(self, rows: torch.Tensor, call: AttentionCall) -> torch.Tensor:
        """What is cached of a dense call's keys or values."""
        dim = call.dim
        chosen = rows.index_select(dim, self._dropped.on(rows.device) + call.start)
        if self.blocks is None:
            return chosen
        block, count = (one.on(rows.device) for one in (self._block, self._count))
        shape = list(chosen.shape)
        shape[dim] = len(self.blocks)
        total = chosen.new_zeros(shape).index_add_(dim, block, chosen)
        return total / count.to(chosen).view([-1 if axis == dim else 1 for axis in range(chosen.ndim)])


def append(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    mask: torch.Tensor | None,
    more_k: torch.Tensor,
    more_v: torch.Tensor,
    dim: int,
    bias: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Append keys and values, visible to every query.

    Args:
        q, k, v, mask: of the attention call.
        more_k, more_v: rows to append along ``dim``.
        dim: which dimension counts tokens.
        bias: ``(rows,)`` added to the logits of the appended keys.
    """
    count = more_k.shape[dim]
    if mask is not None or bias is not None:
        before = q.new_zeros(1, 1, 1, k.shape[dim]) if mask is None else as_bias(mask, q)
        after = q.new_zeros(count) if bias is None else bias.to(q)
        mask = torch.cat([before, after.expand(*before.shape[:-1], count)], dim=-1)
    return torch.cat([k, more_k], dim), torch.cat([v, more_v], dim), mask


__all__ = ["LAYERS_CHANGED", "CacheContext", "CacheRun", "CachingContext", "CachingRun", "PooledCacheContext", "append"]
