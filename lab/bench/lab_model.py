"""Flux.1 Fill's shape through diffusers, for machines without a ComfyUI."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch

import hilo_core
from lab import sampling
from lab.bench.clock import Clock
from lab.bench.shapes import randomise
from lab.dit import CONTEXT_TOKENS, build_dit
from lab.hilo import Compressed


class LabModel:
    """diffusers' Flux class, one block of each kind, evaluated as `lab.sampling.inpaint` does. See `shapes.TimedModel`.

    Args:
        heads: of 128 channels each; Flux.1 has 24.
    """

    def __init__(self, clock: Clock, dtype: torch.dtype, heads: int = 24) -> None:
        self.title, self.blocks, self.text = "Flux.1 Fill (diffusers)", "1 of 19 double, 1 of 38 single", CONTEXT_TOKENS
        with torch.device(clock.device):
            self.transformer = build_dit(1, 1, heads).eval().requires_grad_(False)
        torch.nn.Module.to(self.transformer, dtype)  # diffusers' own `to` warns of precisions this model has none of
        randomise(self.transformer)
        self.device, self.dtype, self.clock = clock.device, dtype, clock

    def core(self) -> ModuleType:
        """See `shapes.TimedModel`."""
        return hilo_core

    @torch.inference_mode()
    def run(self, size: int, calls: int, plan: Any = None, context: Any = None) -> list[float]:
        """See `shapes.TimedModel`."""
        rows = size // 16
        generator = torch.Generator().manual_seed(0)
        latents = torch.randn(2, 1, 16, size // 8, size // 8, generator=generator).to(self.device)
        tokens = torch.randn(1, rows * rows, 384, generator=generator).to(self.device)
        ids = sampling.grid_ids(rows, rows).to(self.device)
        predict = (
            sampling.denoise if plan is None else Compressed(plan, context, steps=calls).begin(latents[0], latents[1])
        )
        seconds = []
        for sigma in sampling.schedule(calls)[:-1].to(self.device):
            with torch.autocast(self.device.type, self.dtype, self.dtype != torch.float32):
                started = self.clock.now()
                predict(self.transformer, tokens, ids, sigma.expand(1))
                seconds.append(self.clock.now() - started)
        return seconds

    def places(self) -> list[tuple[str, Any, str]]:
        """See `shapes.TimedModel`."""
        run = hilo_core.Run
        return [("pack", run, "pack"), ("pack", run, "pack_condition"), ("unpack", run, "unpack")]
