"""One sampling run: what the canvas carries, and how its result goes back over the source.

Made when sampling begins, gone when it ends; nothing is kept on the model or between runs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from .canvas import Canvas, from_tokens, pad_to_tokens, to_tokens
from .context import Context
from .lowres import LowBlocks, low_latent
from .plan import GridPlan
from .schedule import Window

# (sigma (B,), noise, clean latent) -> noisy latent of the same shape, as the model's own noise schedule has it.
Noiser = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass
class Run:
    """The state of one sampling run.

    Attributes:
        plan: the token plan on this latent's grid.
        context: how left out tokens stay visible.
        window: noise levels that are compressed.
        source: ``(B, C, h, w)`` the clean source latent, in the model's own scale.
        noise: ``(B, C, h, w)`` unit variance, the run's own noise.
        low_clean: ``(B, C, block rows * p, block cols * p)`` the encoded low picture in the model's scale; without it the
            low tokens are averaged from ``source``.
    """

    plan: GridPlan
    context: Context
    window: Window
    source: torch.Tensor
    noise: torch.Tensor
    low_clean: torch.Tensor | None = None
    canvas: Canvas = field(init=False)
    calls: int = field(init=False, default=0)
    dense_calls: int = field(init=False, default=0)
    said: set[str] = field(init=False, default_factory=set)

    def __post_init__(self) -> None:
        self.canvas = Canvas.of_plan(self.plan)
        self._edit = self.plan.edit.to(self.source.device)
        self._low_source: torch.Tensor | None = None
        self._low_noise: torch.Tensor | None = None
        low = self.plan.low
        if low is not None:
            patch = self.plan.grid.patch
            clean = self.low_clean
            if clean is None:
                clean = self._average(self.source, low)
            self._low_source = to_tokens(clean.to(self.source), patch)[:, low.index.to(self.source.device)]
            self._low_noise = to_tokens(self.noise, patch)[:, low.representative().to(self.source.device)]

    def fits(self, latent: torch.Tensor) -> bool:
        """Whether a latent ``(n * B, C, h, w)`` lies on this run's grid; area conditioning passes crops that do not."""
        return tuple(latent.shape[-2:]) == self.plan.grid.latent and latent.shape[0] % self.source.shape[0] == 0

    def pack(self, x: torch.Tensor, sigma: torch.Tensor, noiser: Noiser) -> torch.Tensor:
        """The noisy canvas.

        Args:
            x: ``(n * B, C, h, w)`` noisy latent of n conditionings.
            sigma: ``(n * B,)``.
            noiser: noises the clean low tokens to ``sigma``.
        """
        low = None
        if self._low_source is not None and self._low_noise is not None:
            copies = x.shape[0] // self.source.shape[0]
            count = self._low_source.shape[1]
            clean, noise = (
                from_tokens(tokens.repeat(copies, 1, 1, 1, 1), 1, count) for tokens in (self._low_source, self._low_noise)
            )
            low = to_tokens(noiser(sigma, noise, clean), self.plan.grid.patch)
        return self.canvas.pack(to_tokens(x, self.plan.grid.patch), low)

    def pack_condition(self, condition: torch.Tensor) -> torch.Tensor:
        """A picture-like conditioning ``(n * B, C, h, w)``, such as Flux Fill's concatenated latent, on the canvas; its low
        part is averaged over left out tokens, which are known and unmasked."""
        low = None
        if self.plan.low is not None:
            index = self.plan.low.index.to(condition.device)
            low = to_tokens(self._average(condition, self.plan.low), self.plan.grid.patch)[:, index]
        return self.canvas.pack(to_tokens(condition, self.plan.grid.patch), low)

    def pack_rows(self, rows: torch.Tensor) -> torch.Tensor:
        """Token features ``(n * B, N, D)``, such as ControlNet residuals, in canvas order ``(n * B, K + L, D)``."""
        chosen = rows[:, self.canvas.index.to(rows.device)]
        return chosen if self.plan.low is None else torch.cat([chosen, self.plan.low.pool(rows)], dim=1)

    def unpack(self, denoised: torch.Tensor) -> torch.Tensor:
        """Write a denoised canvas ``(n * B, C, rows * p, cols * p)`` over the source, in the edit region alone: what was
        left out, and what was computed only to be seen, is known."""
        patch = self.plan.grid.patch
        source = to_tokens(self.source.to(denoised), patch).repeat(denoised.shape[0] // self.source.shape[0], 1, 1, 1, 1)
        index = self.canvas.index.to(denoised.device)
        edited = self._edit[index]
        source[:, index[edited]] = self.canvas.unpack(denoised, patch)[:, edited]
        return from_tokens(source, self.plan.grid.rows, self.plan.grid.cols, self.plan.grid.latent)

    def pin(self, denoised: torch.Tensor) -> torch.Tensor:
        """A dense result ``(n * B, C, h, w)`` with everything outside the edit region put back to the source."""
        patch = self.plan.grid.patch
        source = to_tokens(self.source.to(denoised), patch).repeat(denoised.shape[0] // self.source.shape[0], 1, 1, 1, 1)
        edit = self._edit[None, :, None, None, None]
        tokens = torch.where(edit, to_tokens(denoised, patch), source)
        return from_tokens(tokens, self.plan.grid.rows, self.plan.grid.cols, self.plan.grid.latent)

    def _average(self, latent: torch.Tensor, low: LowBlocks) -> torch.Tensor:
        dropped = self.plan.dropped.to(latent.device)
        return low_latent(pad_to_tokens(latent, self.plan.grid.patch), dropped, self.plan.grid, low.factor)

    def summary(self) -> str:
        """One line for the log when the run ends."""
        total = self.plan.grid.count
        return (
            f"{self.calls} of {self.calls + self.dense_calls} model calls ran on {self.canvas.tokens:,} of {total:,} tokens"
            f" ({self.plan.high:,} high-frequency, {self.canvas.low:,} low-frequency)"
        )
