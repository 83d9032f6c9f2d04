"""Runs that hand on keys and values: the lab's twin of HiLo Patch Model's widget `reuse`."""

from __future__ import annotations

import torch
from diffusers import FluxTransformer2DModel
from torch import Tensor

from hilo_core.contexts.reuse import Reuse
from lab import sampling
from lab.hilo import Compressed


class HandingOn:
    """Runs of one planned picture, of which the later take their dense steps' keys and values from the first.

    Args:
        compressed: the planned run, with a context that caches.
        dit: whose keys and values they are.
    """

    def __init__(self, compressed: Compressed, dit: FluxTransformer2DModel) -> None:
        self.compressed, self.dit, self.reuse = compressed, dit, Reuse()

    def begin(self, source: Tensor, noise: Tensor) -> sampling.Denoise:
        """The `prepare` of `lab.sampling.inpaint`, for each run."""
        denoise, run = self.compressed.begin(source, noise), self.compressed.run
        if run is None:  # everything is computed anyway
            return denoise
        # One picture, plan, schedule and prompt: nothing but the source need tell these runs from others.
        shared = self.reuse.of_run(self.dit, source)
        shared.conds[()] = ()  # `Compressed` names no conditionings; there is one, and it is always the same
        run.share(shared)
        grid = run.plan.grid

        def noised(sigma: Tensor, noise: Tensor, clean: Tensor) -> Tensor:
            return torch.lerp(clean, noise, sigma[:, None, None, None])

        def with_shared_noise(dit: FluxTransformer2DModel, tokens: Tensor, ids: Tensor, sigma: Tensor) -> Tensor:
            latent, condition = sampling.unpack(tokens, grid.rows, grid.cols).split([16, tokens.shape[-1] // 4 - 16], 1)
            latent = run.with_fixed_noise(latent, sigma, noised)
            return denoise(dit, sampling.pack(torch.cat([latent, condition], 1)), ids, sigma)

        return with_shared_noise
