"""ToDo, token down-sampling (arXiv 2402.13573): queries stay whole, keys and values are down-sampled on the token grid.

The tokens of a block of ``stride x stride`` share one key and one value. A canvas has no grid, so blocks are those of
the tokens' true positions; on the whole picture that is the paper's method."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from ..canvas import Canvas
from ..contexts import AttentionCall, ContextRun, Forward
from ..contexts.base import KeysValuesMask, as_bias
from ..plan import GridPlan
from .base import Cut, MethodRun, Whole, WholeRun, add_bias
from .hilo import HiLo

MAX_STRIDE = 4
POOLINGS = ("mean", "nearest")


@dataclass(frozen=True)
class Downsampling:
    """How keys and values are down-sampled.

    Attributes:
        stride: tokens a side that share one key and one value, 1 (off) to 4.
        pooling: ``mean`` of the block, or ``nearest``, its first token as in the paper.
        everywhere: in the edit region as well, as the paper does; else there every token keeps its own key.
        proportional: log n on the keys that stand for n tokens; the paper has none, because there all stand for as
            many.
    """

    stride: int = 2
    pooling: str = "mean"
    everywhere: bool = False
    proportional: bool = True

    def __post_init__(self) -> None:
        if not 1 <= self.stride <= MAX_STRIDE:
            raise ValueError(f"stride is {self.stride}; it must lie between 1 and {MAX_STRIDE} tokens")
        if self.pooling not in POOLINGS:
            raise ValueError(f"pooling is {self.pooling!r}; it must be one of {', '.join(POOLINGS)}")


@dataclass(frozen=True, eq=False)
class Pool:
    """Which keys share one.

    Attributes:
        group: ``(K,)`` long, the pooled row of each of the first K canvas slots.
        first: ``(M,)`` long, the slot of each pooled row that lies first in the picture's raster order.
        count: ``(M,)`` long, slots in each pooled row.
    """

    group: torch.Tensor
    first: torch.Tensor
    count: torch.Tensor

    def rows(self, rows: torch.Tensor, dim: int, mean: bool) -> torch.Tensor:
        """Pool K rows of keys or values along ``dim``."""
        first = rows.index_select(dim, self.first)
        if not mean:
            return first
        total = torch.zeros_like(first).index_add_(dim, self.group, rows)
        count = self.count.to(rows).view([-1 if axis == dim else 1 for axis in range(rows.ndim)])
        return total / count

    def to(self, device: torch.device) -> Pool:
        return Pool(self.group.to(device), self.first.to(device), self.count.to(device))


def pool_blocks(canvas: Canvas, kept: int, edit: torch.Tensor, stride: int, everywhere: bool) -> Pool:
    """Group the first slots of a canvas by the blocks of the picture in which they lie.

    Args:
        canvas: the tokens.
        kept: how many of its slots are pooled, from the first one.
        edit: ``(N,)`` bool, tokens of the edit region.
        stride: tokens a block side.
        everywhere: pool tokens of the edit region as well; else each of them keeps its own key.
    """
    index = canvas.index[:kept]
    row, col = index // canvas.grid_cols, index % canvas.grid_cols
    block = (row // stride) * -(-canvas.grid_cols // stride) + col // stride
    if not everywhere:
        own = edit[index]
        block = torch.where(own, block.max() + 1 + torch.arange(kept), block)
    _, group, count = block.unique(return_inverse=True, return_counts=True)
    # The smallest raster index of each group, and the slot that holds it.
    slot = torch.empty(canvas.grid_rows * canvas.grid_cols, dtype=torch.long)
    slot[index] = torch.arange(kept)
    lowest = torch.full((len(count),), len(slot) - 1).scatter_reduce(0, group, index, "amin")
    return Pool(group, slot[lowest], count)


class Pooling:
    """Pools the keys of canvases, grouping each canvas once."""

    def __init__(self, method: Downsampling, edit: torch.Tensor) -> None:
        self.method, self.edit = method, edit
        self._last: tuple[Canvas, torch.device, Pool] | None = None

    @property
    def note(self) -> str:
        """For the log: how many keys are left."""
        if self._last is None:
            return ""
        pool = self._last[2]
        return f"{len(pool.count):,} keys stand for {len(pool.group):,} tokens"

    def __call__(self, canvas: Canvas, kept: int, call: AttentionCall) -> KeysValuesMask:
        """Keys, values and mask of ``call`` with the first ``kept`` canvas slots pooled."""
        pool, dim, start, keys = self._pool(canvas, kept, call.k.device), call.dim, call.start, call.k.shape[call.dim]
        k, v = (self._pooled(rows, pool, dim, start, kept) for rows in (call.k, call.v))
        mask = call.mask
        if mask is not None and mask.shape[-1] > 1:
            mask = as_bias(mask, call.q)
            seen = mask.narrow(-1, start, kept).index_select(-1, pool.first)
            mask = torch.cat([mask[..., :start], seen, mask[..., start + kept :]], dim=-1)
        if self.method.proportional:
            bias = torch.zeros(k.shape[dim], device=k.device)
            bias[start : start + len(pool.count)] = pool.count.float().log()
            mask = add_bias(mask, call.q, bias)
        assert k.shape[dim] == keys - kept + len(pool.count)
        return k, v, mask

    def _pooled(self, rows: torch.Tensor, pool: Pool, dim: int, start: int, kept: int) -> torch.Tensor:
        pooled = pool.rows(rows.narrow(dim, start, kept), dim, self.method.pooling == "mean")
        end = start + kept
        return torch.cat([rows.narrow(dim, 0, start), pooled, rows.narrow(dim, end, rows.shape[dim] - end)], dim)

    def _pool(self, canvas: Canvas, kept: int, device: torch.device) -> Pool:
        last = self._last
        if last is None or last[0] is not canvas or last[1] != device:
            pool = pool_blocks(canvas, kept, self.edit, self.method.stride, self.method.everywhere).to(device)
            self._last = last = (canvas, device, pool)
        return last[2]


@dataclass(frozen=True)
class ToDo(Downsampling, Whole):
    """The choice ``todo``: every token is computed, and attends to fewer keys."""

    needs_attention = True

    def idle(self, plan: GridPlan) -> bool:
        return self.stride == 1 or (not self.everywhere and super().idle(plan))

    def start(self, plan: GridPlan, context: ContextRun, steps: int) -> MethodRun:
        return ToDoRun(self, plan, context, steps)


class ToDoRun(WholeRun):
    """Pools the keys of the picture; those of text and references stay."""

    @property
    def note(self) -> str:
        return self.pooling.note

    def __init__(self, method: ToDo, plan: GridPlan, context: ContextRun, steps: int) -> None:
        super().__init__(method, plan, context, steps)
        self.pooling = Pooling(method, plan.edit)

    def attend(self, forward: Forward, call: AttentionCall, cut: Cut | None = None) -> KeysValuesMask:
        return self.pooling(forward.canvas, forward.canvas.tokens, call)


@dataclass(frozen=True)
class HiLoToDo(Downsampling, HiLo):
    """The choice ``hilo + todo``: the planned tokens, with the keys of those outside the edit region pooled."""

    needs_attention = True

    def start(self, plan: GridPlan, context: ContextRun, steps: int) -> MethodRun:
        return HiLoToDoRun(self, plan, context, steps)


class HiLoToDoRun(MethodRun):
    """The context first, then its canvas's own keys are pooled; what it has cached or made coarse stays."""

    @property
    def note(self) -> str:
        return self.pooling.note

    def __init__(self, method: HiLoToDo, plan: GridPlan, context: ContextRun, steps: int) -> None:
        super().__init__(method, plan, context, steps)
        self.pooling = Pooling(method, plan.edit)

    def forward(self, step: int, conds: object) -> Forward:
        return replace(super().forward(step, conds), attends=True)  # type: ignore[arg-type]

    def attend(self, forward: Forward, call: AttentionCall, cut: Cut | None = None) -> KeysValuesMask:
        k, v, mask = super().attend(forward, call, cut)
        if forward.dense:  # a context captures everything in it
            return k, v, mask
        # The tokens of the context's plan come first on every canvas, and their keys stay in place; what ``auto`` and
        # ``rolling`` renew behind them goes among the cached rows.
        kept = min(len(self.context.plan.kept), len(forward.canvas.index))  # a budget may keep fewer
        return self.pooling(forward.canvas, kept, replace(call, k=k, v=v, mask=mask))
