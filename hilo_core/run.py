"""One sampling run: what the canvas carries, and how its result goes back over the source.

Made when sampling begins, gone when it ends; nothing is kept on the model or between runs.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import torch

from .canvas import Canvas, from_tokens, pad_to_tokens, to_tokens
from .contexts import Context, ContextRun, Forward
from .contexts.cache import CachingRun
from .contexts.reuse import ReuseOfRun
from .lowres import LowBlocks, low_latent
from .methods import HiLo, Method, MethodRun
from .placed import Placed
from .plan import GridPlan
from .references import References
from .schedule import Window
from .stopwatch import Stopwatch

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
        low_clean: ``(B, C, block rows * p, block cols * p)`` the encoded low picture in the model's scale; without it
            the low tokens are averaged from ``source``.
        sigmas: ``(S + 1,)`` the schedule, for contexts that act by step.
        method: which of the tokens each step and layer computes, and what attention sees.
        masked: the latent carries a noise mask: the sampler itself puts the noisy source outside of it.
        state: the context at work.
        references: reference latents that show the source.
        work: the method at work, around the context.
        calls, dense_calls: model calls so far, compressed and dense.
        computed: tokens that the compressed calls computed together.
        said: what the artist has been told.
        fixed_noise: ``(B, C, h, w)`` on what is outside the edit region, see ``with_fixed_noise``.
        stopwatch: times of the model's calls, see ``timed``.
        given_up: why the rest of the run is dense, "" where it is not.
        spans: see ``families.base.Sequence``.
    """

    plan: GridPlan
    context: Context
    window: Window
    source: torch.Tensor
    noise: torch.Tensor
    low_clean: torch.Tensor | None = None
    sigmas: torch.Tensor | None = None
    method: Method = field(default_factory=HiLo)
    masked: bool = True
    state: ContextRun = field(init=False)
    references: References = field(init=False)
    work: MethodRun = field(init=False)
    calls: int = field(init=False, default=0)
    dense_calls: int = field(init=False, default=0)
    computed: int = field(init=False, default=0)
    said: set[str] = field(init=False, default_factory=set)
    fixed_noise: torch.Tensor | None = field(init=False, default=None)
    stopwatch: Stopwatch = field(init=False, default_factory=Stopwatch)
    given_up: str = field(init=False, default="")
    spans: dict[tuple[int, ...], int | None] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        steps = 1 if self.sigmas is None else len(self.sigmas) - 1
        self.state = self.context.start(self.plan, steps)
        self.fixed_noise = self.noise if isinstance(self.state, CachingRun) else None
        self.work = self.method.start(self.plan, self.state, steps)
        self._edit = Placed(self.plan.edit)  # the host may spread the calls of a run over several GPUs
        self._low_of: tuple[Canvas, torch.Tensor, torch.Tensor] | None = None
        self.references = References(self.source, self.plan.grid.patch, self.canvas, self.context)
        if isinstance(self.state, CachingRun):
            self.references.memory = self.state.memory

    @property
    def canvas(self) -> Canvas:
        """What a compressed call computes, or begins with."""
        return self.work.canvas

    def fits(self, latent: torch.Tensor) -> bool:
        """Whether a latent ``(n * B, C, h, w)`` lies on this run's grid; area conditioning passes crops that do not."""
        return tuple(latent.shape[-2:]) == self.plan.grid.latent and latent.shape[0] % self.source.shape[0] == 0

    def forward(self, sigma: float, conds: Hashable = ()) -> Forward:
        """What the next model call computes, see ``ContextRun.forward``."""
        # The last sigma ends the last step and begins none.
        step = 0 if self.sigmas is None else int((self.sigmas - sigma).abs()[: max(1, len(self.sigmas) - 1)].argmin())
        self.state.sigma = sigma
        forward = self.work.forward(step, conds)
        if isinstance(self.state, CachingRun):
            self.references.keep_only(self.state.asked)
        return forward

    def done(self, forward: Forward) -> None:
        """The model call has returned."""
        self.work.done(forward)
        if forward.dense:
            self.dense_calls += 1
        else:
            self.calls += 1
            self.computed += forward.canvas.tokens

    def release(self) -> None:
        """Let go of what the context keeps, where the rest of the run is dense."""
        if isinstance(self.state, CachingRun):
            self.state.release()
            self.references.keep_only(())

    def timed(self, dense: bool, device: torch.device) -> AbstractContextManager[None]:
        """Time one model call on its device; the clock stops when the block ends."""
        return self.stopwatch.time("dense" if dense else "compressed", device)

    def share(self, reuse: ReuseOfRun) -> None:
        """Take from earlier runs and give to later ones; only for a context that caches, and before the first call."""
        assert isinstance(self.state, CachingRun)
        self.state.reuse = reuse
        self.noise = self.fixed_noise = reuse.noise(self.noise)

    def with_fixed_noise(self, x: torch.Tensor, sigma: torch.Tensor, noiser: Noiser) -> torch.Tensor:
        """A noisy latent ``(n * B, C, h, w)`` with the source under the same noise in every call in place of what is
        outside the edit region, as the sampler has it where the latent carries a mask. Keys and values of two calls
        must not differ by their noise: with other noise in the second run PSNR against dense fell by 20 dB on the lab's
        model. Without a cache ``x`` itself."""
        if self.fixed_noise is None:
            return x
        copies = x.shape[0] // self.source.shape[0]
        noise, source = (latent.to(x).repeat(copies, 1, 1, 1) for latent in (self.fixed_noise, self.source))
        edit = self._edit.on(x.device)[None, :, None, None, None]
        patch, grid = self.plan.grid.patch, self.plan.grid
        tokens = torch.where(edit, to_tokens(x, patch), to_tokens(noiser(sigma, noise, source), patch))
        return from_tokens(tokens, grid.rows, grid.cols, grid.latent)

    def pack(self, x: torch.Tensor, sigma: torch.Tensor, noiser: Noiser, canvas: Canvas | None = None) -> torch.Tensor:
        """The noisy canvas.

        Args:
            x: ``(n * B, C, h, w)`` noisy latent of n conditionings.
            sigma: ``(n * B,)``.
            noiser: noises the clean low tokens to ``sigma``.
            canvas: of this call, ``self.canvas`` by default.
        """
        canvas = canvas or self.canvas
        low = None
        if canvas.blocks is not None:
            copies = x.shape[0] // self.source.shape[0]
            clean, noise = (
                from_tokens(tokens.to(x.device).repeat(copies, 1, 1, 1, 1), 1, canvas.low)
                for tokens in self._low(canvas, canvas.blocks)
            )
            low = to_tokens(noiser(sigma, noise, clean), self.plan.grid.patch)
        return canvas.pack(to_tokens(x, self.plan.grid.patch), low)

    def pack_condition(self, condition: torch.Tensor, canvas: Canvas | None = None) -> torch.Tensor:
        """A picture-like conditioning ``(n * B, C, h, w)``, such as Flux Fill's concatenated latent, on the canvas; its
        low part is averaged over left out tokens, which are known and unmasked."""
        canvas = canvas or self.canvas
        low = None if canvas.blocks is None else self._average(condition, canvas.blocks)
        return canvas.pack(to_tokens(condition, self.plan.grid.patch), low)

    def pack_clean(self, latent: torch.Tensor) -> torch.Tensor:
        """A clean latent ``(n * B, C, h, w)`` that shows the source, on the canvas with the run's own low tokens."""
        canvas, low = self.canvas, None
        if canvas.blocks is not None:
            copies = latent.shape[0] // self.source.shape[0]
            low = self._low(canvas, canvas.blocks)[0].to(latent.device).repeat(copies, 1, 1, 1, 1)
        return canvas.pack(to_tokens(latent, self.plan.grid.patch), low)

    def pack_rows(self, rows: torch.Tensor, canvas: Canvas | None = None) -> torch.Tensor:
        """Token features ``(n * B, N, D)``, such as ControlNet residuals, in canvas order ``(n * B, K + L, D)``."""
        canvas = canvas or self.canvas
        chosen = rows[:, canvas.index.to(rows.device)]
        return chosen if canvas.blocks is None else torch.cat([chosen, canvas.blocks.pool(rows)], dim=1)

    def unpack(self, denoised: torch.Tensor, canvas: Canvas | None = None) -> torch.Tensor:
        """Write a denoised canvas ``(n * B, C, rows * p, cols * p)`` over the source, in the edit region alone: what
        was left out, and what was computed only to be seen, is known."""
        canvas = canvas or self.canvas
        source = self._source_tokens(denoised)
        index = canvas.index.to(denoised.device)
        edited = self._edit.on(index.device)[index]
        source[:, index[edited]] = canvas.unpack(denoised, self.plan.grid.patch)[:, edited]
        return from_tokens(source, self.plan.grid.rows, self.plan.grid.cols, self.plan.grid.latent)

    def pin(self, denoised: torch.Tensor) -> torch.Tensor:
        """A dense result ``(n * B, C, h, w)`` with everything outside the edit region put back to the source."""
        edit = self._edit.on(denoised.device)[None, :, None, None, None]
        tokens = torch.where(edit, to_tokens(denoised, self.plan.grid.patch), self._source_tokens(denoised))
        return from_tokens(tokens, self.plan.grid.rows, self.plan.grid.cols, self.plan.grid.latent)

    def facts(self) -> dict[str, Any]:
        """What the run did, for the node and the log.

        Returns:
            ``tokens``, ``all_tokens``: of a compressed call (mean) and of a dense one; ``compressed_calls``,
            ``dense_calls``; ``reused_calls``: dense ones that an earlier run has spared; ``context``: its name, ""
            under a method that has no use for one; ``note``: what the method says of its work;
            ``cache_bytes``, ``cache_place``: what the context keeps and where, "" where it keeps nothing;
            ``dense_seconds``, ``compressed_seconds``: medians a call, ``None`` where there
            was none; ``said``: what the artist has been told.
        """
        return {
            "tokens": round(self.computed / self.calls) if self.calls else self.plan.grid.count,
            "all_tokens": self.plan.grid.count,
            "compressed_calls": self.calls,
            "dense_calls": self.dense_calls,
            "context": self.context.name if self.method.uses_context else "",
            "note": self.work.note,
            "cache_bytes": self.state.cache_bytes,
            "cache_place": self.state.cache_place,
            "reused_calls": self.state.reused_calls,
            "dense_seconds": self.stopwatch.median("dense"),
            "compressed_seconds": self.stopwatch.median("compressed"),
            "said": sorted(self.said),
        }

    def summary(self) -> str:
        """One line for the log when the run ends."""
        facts = self.facts()
        calls = self.calls + self.dense_calls
        if not self.calls:
            return f"all {calls} model calls ran dense"
        parts = [f"{self.calls} of {calls} model calls ran on {facts['tokens']:,} of {facts['all_tokens']:,} tokens"]
        if self.work.note:
            parts.append(self.work.note)
        if self.references.packed:
            parts[0] += f", and on {self.canvas.tokens:,} of a reference's"
        if facts["dense_seconds"] and facts["compressed_seconds"]:
            parts.append(f"{facts['dense_seconds'] / facts['compressed_seconds']:.1f} times as fast as a dense call")
        if facts["cache_bytes"]:
            parts.append(
                f"context {facts['context']} kept {facts['cache_bytes'] / 1e9:.2f} GB ({facts['cache_place']})"
            )
        if facts["reused_calls"]:
            parts.append(f"{facts['reused_calls']} dense calls spared by an earlier run")
        return "; ".join(parts)

    def _source_tokens(self, like: torch.Tensor) -> torch.Tensor:
        """``(n * B, N, C, p, p)`` a copy of the source for as many conditionings as ``like`` has."""
        tokens = to_tokens(self.source.to(like), self.plan.grid.patch)
        return tokens.repeat(like.shape[0] // self.source.shape[0], 1, 1, 1, 1)

    def _low(self, canvas: Canvas, blocks: LowBlocks) -> tuple[torch.Tensor, torch.Tensor]:
        """Clean low tokens and their noise, both ``(B, L, C, p, p)``, made once a canvas."""
        made = self._low_of
        if made is None or made[0] is not canvas:
            device = self.source.device
            if self.low_clean is None:
                clean = self._average(self.source, blocks)
            else:
                clean = to_tokens(self.low_clean.to(self.source), self.plan.grid.patch)[:, blocks.index.to(device)]
            noise = to_tokens(self.noise, self.plan.grid.patch)[:, blocks.representative().to(device)]
            made = self._low_of = canvas, clean, noise
        return made[1], made[2]

    def _average(self, latent: torch.Tensor, blocks: LowBlocks) -> torch.Tensor:
        """``(B, L, C, p, p)`` the low tokens of a latent, averaged over the left out tokens of each block."""
        grid = self.plan.grid
        dropped = (blocks.block >= 0).to(latent.device)
        low = low_latent(pad_to_tokens(latent, grid.patch), dropped, grid, blocks.factor)
        return to_tokens(low, grid.patch)[:, blocks.index.to(latent.device)]
