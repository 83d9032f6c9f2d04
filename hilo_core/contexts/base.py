"""Context: how the tokens that are left out stay visible to the ones that are computed.

One interface for every choice. A context decides what each model call computes and what attention sees; it knows no
family and no host."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch

from ..canvas import Canvas
from ..plan import GridPlan
from ..schedule import Schedule


@dataclass(frozen=True)
class Forward:
    """What one model call computes.

    Attributes:
        canvas: the tokens; for a dense call all of them in raster order.
        dense: the model gets the whole latent instead of a canvas.
        attends: attention must pass through ``ContextRun.attend``.
        conds: identifies the conditionings of this call.
        cached: keys and values are captured (dense) or appended, for contexts that keep any.
        rows: ``(R,)`` long, rows of the cache that the canvas computes afresh; they follow the kept tokens on it.
    """

    canvas: Canvas
    dense: bool = False
    attends: bool = False
    conds: Hashable = ()
    cached: bool = False
    rows: torch.Tensor | None = None


KeysValuesMask = tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]


@dataclass(frozen=True)
class AttentionCall:
    """One attention call of a forward, as the model made it.

    Attributes:
        layer: its index in the forward.
        q, k, v: queries, keys and values.
        mask: as in ``Context.mask``.
        start: where the canvas begins among the keys.
        dim: which dimension of ``k`` and ``v`` counts tokens, 1 or 2.
        heads: of the queries; needed where ``q`` is ``(B, N, H * D)``.
    """

    layer: int
    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    mask: torch.Tensor | None
    start: int
    dim: int
    heads: int = 1

    @property
    def head_dim(self) -> int:
        """Channels of a head."""
        return self.q.shape[-1] if self.q.ndim == 4 else self.q.shape[-1] // self.heads


@dataclass(frozen=True)
class Expected:
    """What is known of a model before it is called.

    Attributes:
        layers: attention calls of a forward, 0 where that is not known.
        width: channels of a row of keys.
        bytes: of one number.
        batch: pictures times conditionings that are cached.
        free: bytes of device memory that are free.
        references: rows that are kept of references that show the picture, for each of ``batch``.
    """

    layers: int
    width: int
    bytes: int
    batch: int
    free: int
    references: int = 0


class ContextRun:
    """A context at work in one sampling run; this base computes a plan's canvas.

    Args:
        context: the choice.
        plan: on this run's grid.
        steps: of the schedule, 0 where it is not known.

    Attributes:
        canvas: what a compressed call computes, or begins with.
        whole: what a dense call computes.
        sigma: noise level of the running call.
    """

    def __init__(self, context: Context, plan: GridPlan, steps: int = 0) -> None:
        self.context, self.plan, self.steps = context, plan, steps
        self.schedule = context.schedule
        if not context.takes_budgets:
            self.schedule = replace(self.schedule, budget=(1.0, 1.0))
        self.sigma = 0.0
        self._canvases: dict[int, Canvas] = {plan.high: Canvas.of_plan(plan)}
        self.canvas = self.canvas_at(0)
        self.whole = Canvas.whole(plan.grid.rows, plan.grid.cols)

    def forward(self, step: int, conds: Hashable) -> Forward:
        """What the next model call computes.

        Args:
            step: index of the schedule's step; samplers may ask several times a step.
            conds: identifies the conditionings of the call: with CFG, two calls a step or one for both.
        """
        if self.schedule.dense(step, self.steps):
            return self.dense(step, conds)
        return self.compressed(step, conds)

    def dense(self, step: int, conds: Hashable) -> Forward:
        """A dense call, see ``forward``."""
        return Forward(self.whole, dense=True, conds=conds)

    def compressed(self, step: int, conds: Hashable) -> Forward:
        """A compressed call, see ``forward``."""
        canvas = self.canvas_at(step)
        return Forward(canvas, attends=self.context.changes_attention(canvas), conds=conds)

    def canvas_at(self, step: int) -> Canvas:
        """The plan's canvas under the budget of a step; the sets of two steps are nested."""
        high = round(self.plan.high * self.schedule.budget_at(step, self.steps))
        if high not in self._canvases:
            self._canvases[high] = Canvas.of_plan(self.plan.with_high(high))
        return self._canvases[high]

    def attend(self, forward: Forward, call: AttentionCall) -> KeysValuesMask:
        """Keys, values and mask that one attention call of ``forward`` gets."""
        mask = self.context.mask(call.mask, call.q, call.k.shape[call.dim], call.start, forward.canvas)
        return call.k, call.v, mask

    def appended(self, forward: Forward) -> torch.Tensor:
        """``(M,)`` long, the tokens whose keys ``attend`` puts at the end, in its order; one of its block for a key
        that stands for several."""
        return torch.empty(0, dtype=torch.long)

    def done(self, forward: Forward) -> None:
        """The call has returned."""

    def expect(self, model: Expected) -> str:
        """Prepare for a model, before its first call.

        Returns:
            One sentence on the memory it will take, "" where it takes none.
        """
        return ""

    @property
    def reused_calls(self) -> int:
        """Dense calls that an earlier run has spared this one."""
        return 0

    @property
    def cache_bytes(self) -> int:
        """Bytes of keys and values it keeps."""
        return 0

    @property
    def cache_place(self) -> str:
        """Where it keeps them, "" where it keeps nothing."""
        return ""


@dataclass(frozen=True)
class Context:
    """The choice ``none``: the model sees the edit region and the high-frequency tokens, nothing else (LazyDiffusion).

    Attributes:
        name: on the node.
        uses_low: the plan's canvas carries low tokens.
        schedule: which steps are dense, and the budget of the others.
    """

    name: ClassVar[str] = "none"
    uses_low: bool = False
    schedule: Schedule = field(default_factory=Schedule)

    @property
    def needs_attention(self) -> bool:
        """It cannot work on a model whose attention calls cannot be overridden."""
        return False

    @property
    def takes_budgets(self) -> bool:
        """The number of high-frequency tokens may change over the run."""
        return True

    def start(self, plan: GridPlan, steps: int = 0) -> ContextRun:
        """The context at work on a plan.

        Args:
            plan: on this run's grid.
            steps: of the schedule, 0 where it is not known.
        """
        return ContextRun(self, plan, steps)

    def changes_attention(self, canvas: Canvas) -> bool:
        """False where attention can be left entirely alone, which is the fastest."""
        return False

    def mask(
        self, mask: torch.Tensor | None, q: torch.Tensor, keys: int, start: int, canvas: Canvas
    ) -> torch.Tensor | None:
        """The mask or bias one attention call gets.

        Args:
            mask: what the model passed: ``None``, bool (true is seen) or an additive float, broadcastable to
                ``(B, heads, queries, keys)`` with 2 to 4 dimensions.
            q: the queries, for device and type.
            keys: number of keys.
            start: where the canvas begins among them.
            canvas: what was packed.
        """
        return mask


def as_bias(mask: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    """Any mask as an additive ``(B, heads, queries, keys)`` float, each side 1 where it does not vary."""
    if mask.dtype == torch.bool:
        mask = torch.zeros_like(mask, dtype=q.dtype).masked_fill(~mask, -torch.finfo(q.dtype).max)
    while mask.ndim < 4:  # (L, S) and (B, L, S), as the host's attention functions read them
        mask = mask.unsqueeze(0 if mask.ndim == 2 else 1)
    return mask.to(q)
