"""Runs rows through a real ComfyUI: its loaders, its sampler, this pack's nodes."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lab.bench.cases import TOKEN, Case
from lab.bench.clock import Clock
from lab.bench.cost import Meter
from lab.bench.host import import_comfy, pack
from lab.bench.rows import Kind, Row
from lab.bench.runners import OTHER_SEED, Outcome
from lab.dit import CONTEXT_TOKENS, CONTEXT_WIDTH, POOLED_WIDTH


class HostRunner:
    """Runs the rows that exist as nodes: InpaintModelConditioning, the three HiLo nodes, KSampler (euler, simple).

    Args:
        dit, vae: the exported weights.
        clock: of the device.

    Raises:
        FileNotFoundError: there is no ComfyUI, or no weights.
    """

    def __init__(self, dit: Path, vae: Path, clock: Clock) -> None:
        if import_comfy(clock.device) is None:
            raise FileNotFoundError("--host needs a ComfyUI: clone it to ~/ComfyUI, or set COMFYUI_PATH to its folder")
        for path in (dit, vae):
            if not path.is_file():
                raise FileNotFoundError(f"no weights at {path}; train them with: python -m lab.train")
        import comfy.sd
        import comfy.utils

        self.clock = clock
        self.nodes: Any = importlib.import_module("nodes")  # the host's, not this repository's folder of that name
        self.model = comfy.sd.load_diffusion_model(str(dit))
        self.vae = comfy.sd.VAE(sd=comfy.utils.load_torch_file(str(vae)))
        self.meter = Meter(self.model.model.diffusion_model, CONTEXT_TOKENS)
        comfy.utils.PROGRESS_BAR_ENABLED = False  # a bar for every picture would bury the bench's own
        with torch.inference_mode():
            self.meter.calibrate(self._call)

    def _prompt(self) -> list[list[Any]]:
        """The CONDITIONING the lab's model was trained with: nothing."""
        return [[torch.zeros(1, CONTEXT_TOKENS, CONTEXT_WIDTH), {"pooled_output": torch.zeros(1, POOLED_WIDTH)}]]

    def _call(self, tokens: int) -> None:
        """One step on a picture of so many tokens, a multiple of 4."""
        latent = {"samples": torch.randn(1, 16, 8, tokens // 2, generator=torch.Generator().manual_seed(0))}
        prompt = self._prompt()
        self.nodes.common_ksampler(self.model, 0, 1, 1.0, "euler", "simple", prompt, prompt, latent)

    def run(self, row: Row, case: Case, steps: int, done: dict[str, Outcome]) -> Outcome:
        """See `runners.Runner`; `seconds` is the whole sampling run."""
        # As ComfyUI's own executor calls its nodes.
        with torch.inference_mode():
            return self._run(row, case, steps, done)

    def _run(self, row: Row, case: Case, steps: int, done: dict[str, Outcome]) -> Outcome:
        if row.equal_to:
            steps = max(1, round(steps * done[row.equal_to].flops / done["dense"].flops))
        image, mask = torch.from_numpy(case.image)[None], torch.from_numpy(case.mask)[None].float()
        model = self._patched(row, image, mask) if row.kind is Kind.HILO else self.model
        prompt = self._prompt()
        positive, negative, latent = self.nodes.InpaintModelConditioning().encode(prompt, prompt, image, self.vae, mask)
        seed = case.seed + OTHER_SEED * row.other_seed
        self.meter.start()
        with self.meter.watching():
            started = self.clock.now()
            sampled = self.nodes.common_ksampler(
                model, seed, steps, 1.0, "euler", "simple", positive, negative, latent
            )[0]  # fmt: skip
            seconds = self.clock.now() - started
        raw = self.vae.decode(sampled["samples"])[0].float().cpu().numpy()
        whole = case.mask.size / TOKEN**2
        return Outcome(raw, float(np.mean(self.meter.tokens)) / whole, self.meter.flops, seconds)

    def _patched(self, row: Row, image: torch.Tensor, mask: torch.Tensor) -> Any:
        """The model behind HiLo Token Planner and HiLo Patch Model."""
        settings = row.settings
        core = pack("hilo_core")
        plan = core.make_plan(image, mask, core.PlanSettings(**vars(settings)))
        vae = self.vae if row.encoded else None
        patch = pack("nodes.patch").HiLoPatchModel
        widgets = {"vae": vae, "method": row.method, **row.options}
        return patch.execute(self.model, plan, row.context, 0.0, 1.0, "error", **widgets)[0]
