"""Cached context: keys and values of what is left out, from the last dense step.

What is left out is the known picture, so its keys and values change only with the noise level. A dense step captures
them in every attention call, compressed steps append them (RegionE's region-instruction cache, generic over families).
Attention does not care for the order of keys, so they go to the end."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import ClassVar

import torch

from ..canvas import Canvas
from ..families.base import UnsupportedModel
from ..lowres import LowBlocks, low_blocks
from ..plan import GridPlan
from .base import AttentionCall, Context, ContextRun, Forward, KeysValuesMask, as_bias


@dataclass
class KVCache:
    """Keys and values of one call's conditionings.

    Attributes:
        step: schedule step of the dense call they come from.
        layers: for each attention call, ``(K, V)`` whose token dimension holds the cached rows.
        seen: attention calls of the running forward.
    """

    step: int
    layers: dict[int, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)
    seen: int = 0

    @property
    def bytes(self) -> int:
        return sum(tensor.nbytes for pair in self.layers.values() for tensor in pair)


@dataclass(frozen=True)
class CacheContext(Context):
    """The choice ``cache``.

    Attributes:
        refresh: a dense step in so many; 0 for the first one only.
    """

    name: ClassVar[str] = "cache"
    refresh: int = 4

    @property
    def needs_attention(self) -> bool:
        return True

    def start(self, plan: GridPlan) -> ContextRun:
        return CacheRun(self, plan)

    @property
    def pool(self) -> int:
        """Tokens a side that are averaged into one cached row."""
        return 1


@dataclass(frozen=True)
class PooledCacheContext(CacheContext):
    """The choice ``pooled cache``: rows averaged over blocks of 2 x 2 left out tokens, a quarter of the memory, each
    with log n on its logits."""

    name: ClassVar[str] = "pooled cache"

    @property
    def pool(self) -> int:
        return 2


class CacheRun(ContextRun):
    """Dense calls capture, compressed calls append."""

    context: CacheContext

    def __init__(self, context: CacheContext, plan: GridPlan) -> None:
        super().__init__(context, plan)
        grid = plan.grid
        self.whole = Canvas.whole(grid.rows, grid.cols)
        self.blocks: LowBlocks | None = None
        self.dropped = torch.nonzero(plan.dropped).flatten()
        if context.pool > 1:
            self.blocks = low_blocks(plan.kept, grid.rows, grid.cols, context.pool)
        self.caches: dict[Hashable, KVCache] = {}
        self.first: int | None = None

    def forward(self, step: int, conds: Hashable) -> Forward:
        self.first = step if self.first is None else self.first
        cache = self.caches.get(conds)
        refresh = self.context.refresh
        if cache is None or (refresh and (step - self.first) % refresh == 0 and cache.step != step):
            self.caches[conds] = KVCache(step)
            return Forward(self.whole, dense=True, attends=True, conds=conds)
        cache.seen = 0
        return Forward(self.canvas, attends=True, conds=conds)

    def attend(self, forward: Forward, call: AttentionCall) -> KeysValuesMask:
        cache = self.caches[forward.conds]
        cache.seen += 1
        if forward.dense:
            cache.layers[call.layer] = (self._rows(call.k, call), self._rows(call.v, call))
            return call.k, call.v, call.mask
        if call.layer not in cache.layers:
            raise UnsupportedModel(LAYERS_CHANGED)
        cached_k, cached_v = cache.layers[call.layer]
        bias = None if self.blocks is None else self.blocks.count.float().log()
        return append(call.q, call.k, call.v, call.mask, cached_k, cached_v, call.dim, bias)

    def done(self, forward: Forward) -> None:
        cache = self.caches[forward.conds]
        if not cache.layers:  # a step cache skipped the dense call: capture in the next one
            del self.caches[forward.conds]
        elif not forward.dense and cache.seen not in (0, len(cache.layers)):
            raise UnsupportedModel(LAYERS_CHANGED)

    @property
    def cache_bytes(self) -> int:
        return sum(cache.bytes for cache in self.caches.values())

    @property
    def cache_place(self) -> str:
        return "device" if self.caches else ""

    def _rows(self, rows: torch.Tensor, call: AttentionCall) -> torch.Tensor:
        """What is cached of a dense call's keys or values."""
        dim = call.dim
        chosen = rows.index_select(dim, (self.dropped + call.start).to(rows.device))
        if self.blocks is None:
            return chosen
        block = self.blocks.block[self.dropped].to(rows.device)
        shape = list(chosen.shape)
        shape[dim] = len(self.blocks)
        total = chosen.new_zeros(shape).index_add_(dim, block, chosen)
        count = self.blocks.count.to(chosen).view([-1 if axis == dim else 1 for axis in range(chosen.ndim)])
        return total / count


LAYERS_CHANGED = (
    "HiLo Patch Model: the model's attention calls differ from those of the cached step (another node skips layers), "
    "so cached context cannot be used; choose context low"
)


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
