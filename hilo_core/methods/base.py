"""Method: which tokens each step and each layer computes, and what attention sees.

One interface for HiLo and for the systems it is compared with. Canvas, context, families and schedule are shared. A
method knows no family and no host: the host asks it before every model call, every attention call and every layer.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, replace

import torch

from ..canvas import Canvas
from ..contexts import AttentionCall, ContextRun, Forward
from ..contexts.base import KeysValuesMask, as_bias
from ..grid import Grid
from ..plan import GridPlan, TokenPlan


@dataclass(frozen=True)
class Layer:
    """One block of the model that is about to run.

    Attributes:
        index: its place among the model's blocks.
        count: how many blocks there are.
        rows: ``(B, K, D)`` features of the canvas tokens.
    """

    index: int
    count: int
    rows: torch.Tensor


@dataclass(frozen=True, eq=False)
class Cut:
    """What one layer computes in place of all canvas tokens.

    Attributes:
        index: ``(M,)`` long, the canvas slot at whose position each computed row stands.
        weight: ``(M,)`` float, log of the number of tokens that each row stands for; ``None`` where each is one.
    """

    index: torch.Tensor
    weight: torch.Tensor | None

    def reduce(self, rows: torch.Tensor) -> torch.Tensor:
        """What the layer is given, ``(B, M, D)``, of all canvas rows ``(B, K, D)``; never a view of them, because
        blocks add to their input in place."""
        return rows.index_select(1, self.index)

    def restore(self, rows: torch.Tensor, reduced: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        """All canvas rows after the layer.

        Args:
            rows: ``(B, K, D)`` before it.
            reduced: ``(B, M, D)`` what ``reduce`` made of them.
            out: ``(B, M, D)`` what the layer made of that.
        """
        raise NotImplementedError


class MethodRun:
    """A method at work in one sampling run; this base leaves everything to the context.

    Attributes:
        canvas: what a compressed call computes, or begins with.
        rows, all_rows: tokens that the layers computed so far, and would have without cuts.
    """

    def __init__(self, method: Method, plan: GridPlan, context: ContextRun, steps: int) -> None:
        self.method, self.plan, self.context, self.steps = method, plan, context, steps
        self.rows = self.all_rows = 0

    @property
    def canvas(self) -> Canvas:
        return self.context.canvas

    @property
    def note(self) -> str:
        """What the log says about the method when the run ends."""
        return f"its layers computed {self.rows / self.all_rows:.0%} of these" if self.all_rows else ""

    def forward(self, step: int, conds: Hashable) -> Forward:
        """What the next model call computes, see ``ContextRun.forward``."""
        return self.context.forward(step, conds)

    def cut(self, forward: Forward, layer: Layer) -> Cut | None:
        """What a layer computes; ``None`` for all canvas tokens."""
        return None

    def computed(self, forward: Forward, layer: Layer, out: torch.Tensor, cut: Cut | None) -> None:
        """A layer has returned ``out``, all canvas rows restored."""
        count = layer.rows.shape[1]
        self.rows += count if cut is None else len(cut.index)
        self.all_rows += count

    def attend(self, forward: Forward, call: AttentionCall, cut: Cut | None = None) -> KeysValuesMask:
        """Keys, values and mask that one attention call gets; ``cut`` is what its layer computes."""
        return self.context.attend(forward, call)

    def done(self, forward: Forward) -> None:
        """The model call has returned."""
        self.context.done(forward)


@dataclass(frozen=True)
class Method:
    """A method; this base computes the planned tokens in every layer.

    The class attributes say what a method asks of the host:
        uses_context: the artist's choice of context counts; else nothing is left out that could be shown.
        needs_attention: it cannot work on a model whose attention calls cannot be overridden.
        cuts_layers: it needs a model whose blocks can be replaced.
        whole: its canvas is the whole picture.
    """

    uses_context = True
    needs_attention = False
    cuts_layers = False
    whole = False

    def on_grid(self, plan: TokenPlan, grid: Grid, keep_low: bool) -> GridPlan:
        """Put the plan on a token grid, see ``TokenPlan.on_grid``."""
        return plan.on_grid(grid, keep_low)

    def idle(self, plan: GridPlan) -> bool:
        """True when every token would be computed and seen: the model can be left alone."""
        return plan.dense

    def start(self, plan: GridPlan, context: ContextRun, steps: int) -> MethodRun:
        """The method at work.

        Args:
            plan: from ``on_grid``.
            context: at work on that plan.
            steps: of the schedule.
        """
        return MethodRun(self, plan, context, steps)


class WholeRun(MethodRun):
    """A method that computes the whole picture, only cheaper: the canvas is the picture's own grid.

    It is a compressed call like any other, so positions, packing and writing back are the canvas's usual ones.
    """

    def __init__(self, method: Method, plan: GridPlan, context: ContextRun, steps: int) -> None:
        super().__init__(method, plan, context, steps)
        self.whole = Canvas.whole(plan.grid.rows, plan.grid.cols)
        self.step = 0

    @property
    def canvas(self) -> Canvas:
        return self.whole

    def forward(self, step: int, conds: Hashable) -> Forward:
        self.step = step
        if self.context.schedule.dense(step, self.steps):
            return self.context.dense(step, conds)
        return Forward(self.whole, attends=self.method.needs_attention, conds=conds)

    def attend(self, forward: Forward, call: AttentionCall, cut: Cut | None = None) -> KeysValuesMask:
        return call.k, call.v, call.mask

    def done(self, forward: Forward) -> None:
        """Nothing is kept from call to call."""

    @property
    def progress(self) -> float:
        """How far the schedule is, 0 at its first step and 1 at its last."""
        return self.step / max(1, self.steps - 1)


@dataclass(frozen=True)
class Whole(Method):
    """A method that computes the whole picture, only cheaper."""

    uses_context = False
    whole = True

    def on_grid(self, plan: TokenPlan, grid: Grid, keep_low: bool) -> GridPlan:
        planned = plan.on_grid(grid, keep_low=False)
        everything = torch.arange(grid.count)
        return replace(planned, kept=everything, high=grid.count - int(planned.edit.sum()), low=None)

    def idle(self, plan: GridPlan) -> bool:
        return bool(plan.edit.all())


def add_bias(mask: torch.Tensor | None, q: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """A mask with a bias ``(keys,)`` added to the logits of every key; ``(B, heads, queries, keys)`` float, each side 1
    where it does not vary."""
    columns = bias.to(q)[None, None, None]
    return columns if mask is None else as_bias(mask, q) + columns


__all__ = ["Cut", "Layer", "Method", "MethodRun", "Whole", "WholeRun", "add_bias"]
