"""HiLo-Token on diffusers' transformer: the lab's twin of what nodes/host.py does in ComfyUI.

The plan, the canvas, the context and the run are hilo_core's own; only the last step differs, because diffusers takes
the positions of tokens as an argument and needs no override."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from typing import Any

import torch
from diffusers import FluxTransformer2DModel
from diffusers.models.transformers import transformer_flux
from torch import Tensor

from hilo_core import Context, Grid, GridPlan, Method, Run, TokenPlan, Window
from hilo_core.contexts import AttentionCall, Forward
from hilo_core.families.base import replaced
from hilo_core.methods import HiLo
from lab import sampling
from lab.dit import CONTEXT_TOKENS
from lab.layers import Running, cutting, embedding_low


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
        steps: of the schedule, for contexts that act by step.
        method: which of the tokens each step and layer computes, `hilo` by default.

    Attributes:
        run: state and counters of the last run.
    """

    def __init__(
        self,
        plan: TokenPlan,
        context: Context,
        window: Window | None = None,
        low: Tensor | None = None,
        steps: int = 8,
        method: Method | None = None,
    ) -> None:
        self.method = method or HiLo()
        self.grid_plan: GridPlan = self.method.on_grid(plan, grid_of(plan), context.uses_low)
        self.context = context
        self.window = window or Window()
        self.low = low
        self.sigmas = sampling.schedule(steps)
        self.run: Run | None = None

    def begin(self, source: Tensor, noise: Tensor) -> sampling.Denoise:
        """Start a run from its source latent and noise, both (B, 16, h, w)."""
        if self.method.idle(self.grid_plan):
            return sampling.denoise
        self.run = Run(self.grid_plan, self.context, self.window, source, noise, self.low, self.sigmas, self.method)
        return self._denoise

    def _denoise(self, dit: FluxTransformer2DModel, tokens: Tensor, ids: Tensor, sigma: Tensor) -> Tensor:
        run = self.run
        assert run is not None
        level = float(sigma.max())
        if not run.window.active(level):
            run.dense_calls += 1
            return sampling.denoise(dit, tokens, ids, sigma)
        forward = run.forward(level)
        canvas = forward.canvas
        with (
            embedding_low(dit, run, forward),
            cutting(dit, run, forward) as running,
            attending(run, forward, running),
        ):
            if forward.dense:
                velocity = sampling.denoise(dit, tokens, ids, sigma)
                run.done(forward)
                return velocity
            whole = sampling.unpack(tokens, run.plan.grid.rows, run.plan.grid.cols)
            x, condition = whole[:, :16], whole[:, 16:]
            noisy = run.pack(x, sigma, _noised, canvas)
            packed = sampling.pack(torch.cat([noisy, run.pack_condition(condition, canvas)], 1))
            position = canvas.position.to(ids)
            canvas_ids = torch.cat([torch.zeros_like(position[:, :1]), position], 1)
            velocity = sampling.denoise(dit, packed, canvas_ids, sigma)
        run.done(forward)
        step = sigma[:, None, None, None]
        denoised = noisy - step * sampling.unpack(velocity, canvas.rows, canvas.cols)
        return sampling.pack((x - run.unpack(denoised, canvas)) / step)


@contextmanager
def attending(run: Run, forward: Forward, running: Running) -> Iterator[None]:
    """Let the run's context see every attention call of one forward.

    diffusers has no hook between its projections and its kernel, so the kernel's entry point in the module of its Flux
    model is replaced for the time of the call.
    """
    if not forward.attends:
        yield
        return
    kernel, layers = transformer_flux.dispatch_attention_fn, count()

    def attention(q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None, **kwargs: Any) -> Tensor:
        call = AttentionCall(next(layers), q, k, v, attn_mask, CONTEXT_TOKENS, dim=1)
        k, v, mask = run.work.attend(forward, call, running.cut)
        return kernel(q, k, v, attn_mask=mask, **kwargs)

    with replaced(transformer_flux, "dispatch_attention_fn", attention):
        yield


def _noised(sigma: Tensor, noise: Tensor, clean: Tensor) -> Tensor:
    """Flow matching's x_t = (1 - sigma) x_0 + sigma noise."""
    return torch.lerp(clean, noise, sigma[:, None, None, None])
