"""HiLo-Token on diffusers' transformer: the lab's twin of what nodes/host.py does in ComfyUI.

The plan, the canvas, the context and the run are hilo_core's own; only the last step differs, because diffusers takes
the positions of tokens as an argument and needs no override."""

from __future__ import annotations

import torch
from diffusers import FluxTransformer2DModel
from torch import Tensor

from hilo_core import Context, Grid, GridPlan, Run, TokenPlan, Window
from lab import sampling
from lab.dit import CONTEXT_TOKENS


def grid_of(plan: TokenPlan) -> Grid:
    """The lab model's token grid over a plan's picture: latent cells of 8 pixels, tokens of 2 x 2 cells."""
    return Grid.of_picture(plan.size, sampling.DOWNSCALE, sampling.PATCH)


class Compressed:
    """Runs `lab.sampling.inpaint` on the planned tokens; pass `begin` as its `prepare`.

    Args:
        plan: from `hilo_core.make_plan`.
        context: how left out tokens stay visible.
        window: noise levels that are compressed; the others run dense.
        low: (B, 16, h, w) the encoded low-frequency picture in sampling space, else low tokens are averaged.

    Attributes:
        run: state and counters of the last run.
    """

    def __init__(
        self, plan: TokenPlan, context: Context, window: Window | None = None, low: Tensor | None = None
    ) -> None:
        self.grid_plan: GridPlan = plan.on_grid(grid_of(plan), context.uses_low)
        self.context = context
        self.window = window or Window()
        self.low = low
        self.run: Run | None = None

    def begin(self, source: Tensor, noise: Tensor) -> sampling.Denoise:
        """Start a run from its source latent and noise, both (B, 16, h, w)."""
        if self.grid_plan.dense:
            return sampling.denoise
        self.run = Run(self.grid_plan, self.context, self.window, source, noise, self.low)
        return self._denoise

    def _denoise(self, dit: FluxTransformer2DModel, tokens: Tensor, ids: Tensor, sigma: Tensor) -> Tensor:
        run = self.run
        assert run is not None
        if not run.window.active(float(sigma.max())):
            run.dense_calls += 1
            return sampling.denoise(dit, tokens, ids, sigma)
        run.calls += 1
        rows, columns = run.plan.grid.rows, run.plan.grid.cols
        whole = sampling.unpack(tokens, rows, columns)
        x, condition = whole[:, :16], whole[:, 16:]
        canvas = run.pack(x, sigma, _noised)
        packed = sampling.pack(torch.cat([canvas, run.pack_condition(condition)], 1))
        position = run.canvas.position.to(ids)
        canvas_ids = torch.cat([torch.zeros_like(position[:, :1]), position], 1)
        bias = run.context.mask(None, packed, CONTEXT_TOKENS + run.canvas.tokens, CONTEXT_TOKENS, run.canvas)
        velocity = sampling.denoise(dit, packed, canvas_ids, sigma, bias)
        level = sigma[:, None, None, None]
        denoised = canvas - level * sampling.unpack(velocity, run.canvas.rows, run.canvas.cols)
        return sampling.pack((x - run.unpack(denoised)) / level)


def _noised(sigma: Tensor, noise: Tensor, clean: Tensor) -> Tensor:
    """Flow matching's x_t = (1 - sigma) x_0 + sigma noise."""
    return torch.lerp(clean, noise, sigma[:, None, None, None])
