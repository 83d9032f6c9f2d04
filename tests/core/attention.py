"""A stand-in for a model's attention: keys and values of every token at every noise level, known exactly."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F

from core.pictures import painted, picture
from hilo_core import Grid, PlanSettings, make_plan
from hilo_core.contexts import AttentionCall, Context, ContextRun, Expected, Forward
from hilo_core.plan import GridPlan

TEXT, HEADS, WIDTH, LAYERS = 5, 2, 16, 3
SIDE = 256


def plan(low: int = 0, detail: float = 0.1) -> GridPlan:
    """256 tokens, of which a quarter is kept."""
    whole = make_plan(picture(SIDE, SIDE), painted(SIDE, SIDE, (60, 130, 80, 150)), PlanSettings(8, detail, 0.0, low))
    return whole.on_grid(Grid.of_picture((SIDE, SIDE)))


@dataclass
class Attention:
    """Drives a context as a model with ``LAYERS`` attention calls would.

    Keys and values are linear in sigma, as those of a known token nearly are: ``still + sigma * moving``.

    Attributes:
        run: the context at work.
        flat: heads are merged, ``(B, N, H * D)``, else ``(B, H, N, D)``.
        conds: name of the conditionings.
        batch: which of the two samples a call is for.
    """

    run: ContextRun
    flat: bool = False
    conds: Hashable = "conds"
    batch: slice = field(default_factory=lambda: slice(None))

    def __post_init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        grid = self.run.plan.grid
        self.still, self.moving = torch.randn(2, LAYERS, 2, 2, HEADS, TEXT + grid.count, WIDTH, generator=generator)

    def rows(self, layer: int, sigma: float) -> torch.Tensor:
        """``(2, B, H, TEXT + N, D)`` true keys and values."""
        return (self.still[layer] + sigma * self.moving[layer])[:, self.batch]

    def call(self, step: int, sigma: float, layers: int = LAYERS) -> tuple[Forward, list[torch.Tensor]]:
        """One model call: what it computed, and each layer's answer to the queries of the text.

        Low tokens get keys and values of zeros.
        """
        self.run.sigma = sigma
        forward = self.run.forward(step, self.conds)
        answers = []
        for layer in range(layers):
            rows = self.rows(layer, sigma)
            chosen = torch.cat([torch.arange(TEXT), forward.canvas.index + TEXT])
            k, v = F.pad(rows[..., chosen, :], (0, 0, 0, forward.canvas.low))
            q = rows[0][..., :TEXT, :]
            dim = 2
            if self.flat:
                q, k, v = (one.transpose(1, 2).flatten(2) for one in (q, k, v))
                dim = 1
            mask = None
            if forward.attends:
                call = AttentionCall(layer, q, k, v, None, TEXT, dim, HEADS)
                k, v, mask = self.run.attend(forward, call)
            if self.flat:
                q, k, v = (one.unflatten(2, (HEADS, WIDTH)).transpose(1, 2) for one in (q, k, v))
            answers.append(F.scaled_dot_product_attention(q, k, v, attn_mask=mask))
        self.run.done(forward)
        return forward, answers

    def dense(self, sigma: float, layer: int = 0) -> torch.Tensor:
        """What the text would see of everything."""
        k, v = self.rows(layer, sigma)
        return F.scaled_dot_product_attention(k[..., :TEXT, :], k, v)

    def error(self, sigma: float, answers: list[torch.Tensor]) -> float:
        """Largest deviation from ``dense``, over all layers."""
        return max(float((answer - self.dense(sigma, layer)).abs().max()) for layer, answer in enumerate(answers))


def attention(context: Context, flat: bool = False, steps: int = 8, **options: Any) -> Attention:
    """The context at work on ``plan``, with options of it."""
    run = context.start(plan(**options), steps)
    run.expect(Expected(LAYERS, HEADS * WIDTH, 4, batch=2, free=10**12))
    return Attention(run, flat)
