"""Context: how the tokens that are left out stay visible to the ones that are computed.

One interface for every choice. A context decides what each model call computes and what attention sees; it knows no
family and no host."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import ClassVar

import torch

from ..canvas import Canvas
from ..plan import GridPlan


@dataclass(frozen=True)
class Forward:
    """What one model call computes.

    Attributes:
        canvas: the tokens; for a dense call all of them in raster order.
        dense: the model gets the whole latent instead of a canvas.
        attends: attention must pass through ``ContextRun.attend``.
        conds: identifies the conditionings of this call.
    """

    canvas: Canvas
    dense: bool = False
    attends: bool = False
    conds: Hashable = ()


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
    """

    layer: int
    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    mask: torch.Tensor | None
    start: int
    dim: int


class ContextRun:
    """A context at work in one sampling run; this base computes the same canvas in every call.

    Attributes:
        canvas: what a compressed call computes, or begins with.
    """

    def __init__(self, context: Context, plan: GridPlan) -> None:
        self.context = context
        self.canvas = Canvas.of_plan(plan)

    def forward(self, step: int, conds: Hashable) -> Forward:
        """What the next model call computes.

        Args:
            step: index of the schedule's step; samplers may ask several times a step.
            conds: identifies the conditionings of the call: with CFG, two calls a step or one for both.
        """
        return Forward(self.canvas, attends=self.context.changes_attention(self.canvas), conds=conds)

    def attend(self, forward: Forward, call: AttentionCall) -> KeysValuesMask:
        """Keys, values and mask that one attention call of ``forward`` gets."""
        mask = self.context.mask(call.mask, call.q, call.k.shape[call.dim], call.start, forward.canvas)
        return call.k, call.v, mask

    def done(self, forward: Forward) -> None:
        """The call has returned."""

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
    """

    name: ClassVar[str] = "none"
    uses_low: bool = False

    @property
    def needs_attention(self) -> bool:
        """It cannot work on a model whose attention calls cannot be overridden."""
        return False

    def start(self, plan: GridPlan) -> ContextRun:
        """The context at work on a plan."""
        return ContextRun(self, plan)

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
