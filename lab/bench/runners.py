"""Runs rows on the lab's model through diffusers."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np
import torch
from torch import Tensor

from hilo_core import GridPlan, TokenPlan, make_context, make_method, make_plan
from hilo_core.lowres import low_blocks, low_picture
from hilo_core.tuned import Tuned
from lab import sampling
from lab.autoencoder import encode
from lab.bench.cases import TOKEN, Case
from lab.bench.clock import Clock
from lab.bench.cost import Meter
from lab.bench.ranks import RANKS, SOBEL
from lab.bench.reused import HandingOn
from lab.bench.rows import Kind, Row
from lab.dit import CONTEXT_TOKENS, WEIGHTS, wear
from lab.hilo import Compressed, grid_of

OTHER_SEED = 1_000_003  # far from every case's own
CROP_CONTEXT = 1.2  # the default context factor of Inpaint Crop and Stitch


@dataclass(frozen=True)
class Outcome:
    """One painted mask and its price.

    Attributes:
        raw: (H, W, 3) float32 in 0..1, decoded, nothing pasted back.
        tokens: computed by the transformer, the mean of its calls relative to the whole picture's.
        flops: of all calls of the transformer.
        seconds: spent in sampling, the autoencoder left out.
    """

    raw: np.ndarray
    tokens: float
    flops: float
    seconds: float


class Runner(Protocol):
    """Paints a case as a row says; `done` holds the rows of the same case that ran before."""

    def run(self, row: Row, case: Case, steps: int, done: dict[str, Outcome]) -> Outcome: ...


class Remembering:
    """An autoencoder that keeps its last decoded pictures, and encodes the same pictures once.

    Every row of a case encodes the same two pictures; and `inpaint` returns its result pasted back, whereas the bench
    looks at what was decoded.
    """

    def __init__(self, vae: Any) -> None:
        self.vae = vae
        self.decoded: Tensor | None = None
        self._seen: dict[bytes, Any] = {}

    def encode(self, pictures: Tensor) -> Any:
        key = hashlib.blake2b(pictures.float().cpu().numpy().tobytes() + bytes(str(pictures.shape), "ascii")).digest()
        if key not in self._seen:
            self._seen = dict(list(self._seen.items())[-8:])  # a few: a case has four pictures at most
            self._seen[key] = self.vae.encode(pictures)
        return self._seen[key]

    def decode(self, latents: Tensor) -> Any:
        result = self.vae.decode(latents)
        self.decoded = result.sample.float().add(1).div(2).clamp(0, 1)
        return result


class LabRunner:
    """Runs rows with diffusers' transformer.

    Args:
        dit, vae: from `lab.dit.load_dit` and `lab.autoencoder.load_autoencoder`, both on `device`.
        clock: of the device where they are.
        dtype: of the arithmetic.
        folder: where files of the model tuned for a method are.
    """

    def __init__(self, dit: Any, vae: Any, clock: Clock, dtype: torch.dtype, folder: Path = WEIGHTS.parent) -> None:
        self.dit, self.vae, self.clock, self.dtype = dit, Remembering(vae), clock, dtype
        self.folder, self.tuned = folder, dict[str, tuple[LabRunner, dict[str, Any]]]()
        self.device = clock.device
        self.meter = Meter(dit, CONTEXT_TOKENS)
        with self._arithmetic():
            self.meter.calibrate(self._call)

    @contextmanager
    def _arithmetic(self) -> Iterator[None]:
        with torch.inference_mode(), torch.autocast(self.device.type, self.dtype, self.dtype != torch.float32):
            yield

    def _call(self, tokens: int) -> None:
        shape = torch.zeros(1, tokens, self.dit.config.in_channels, device=self.device)
        sampling.denoise(self.dit, shape, torch.zeros(tokens, 3, device=self.device), torch.ones(1, device=self.device))

    def run(self, row: Row, case: Case, steps: int, done: dict[str, Outcome]) -> Outcome:
        """See `Runner`."""
        if row.tuned:
            runner, parts = self._tuned(row.tuned)
            return runner.run(replace(row, tuned="", options={**row.options, **parts}), case, steps, done)
        with self._arithmetic():
            if row.kind is Kind.TELEA:
                return telea(case, self.clock)
            if row.kind is Kind.CROP:
                return self._crop(row, case, steps, done)
            if row.kind is Kind.HILO:
                planned = compressed(row, case, steps, self.vae, self.device)
                return (
                    self._paint_again(case, steps, planned) if row.reused else self._paint(case, steps, planned.begin)
                )
            share = done[row.equal_to].flops / done["dense"].flops if row.equal_to else row.steps
            steps = max(1, round(steps * share))
            seeds = [case.seed + OTHER_SEED * number for number in range(row.other_seed, row.other_seed + row.samples)]
            painted = [self._paint(case, steps, None, seed) for seed in seeds]
            return replace(painted[0], raw=np.mean([one.raw for one in painted], 0)) if row.samples > 1 else painted[0]

    def _tuned(self, name: str) -> tuple[LabRunner, dict[str, Any]]:
        """A runner of the model with a file's LoRA in its weights, and what the file brings for the method."""
        if name not in self.tuned:
            tuned, dit = Tuned.load(self.folder / name), deepcopy(self.dit)
            wear(dit, tuned)
            dit.fuse_lora()
            dit.unload_lora()
            self.tuned[name] = LabRunner(dit, self.vae.vae, self.clock, self.dtype), tuned.parts
        return self.tuned[name]

    def _paint(self, case: Case, steps: int, prepare: Any = None, seed: int | None = None) -> Outcome:
        """Sample and decode one case, timed from the first call of the transformer to the last."""
        ticks: list[float] = []

        def tick(*_: int) -> None:
            ticks.append(self.clock.now())

        def begin(source: Tensor, noise: Tensor) -> sampling.Denoise:
            tick()
            return prepare(source, noise) if prepare else sampling.denoise

        image = torch.from_numpy(case.image).permute(2, 0, 1)[None].to(self.device)
        mask = torch.from_numpy(case.mask)[None, None].float().to(self.device)
        self.meter.start()
        with self.meter.watching():
            seed = case.seed if seed is None else seed
            sampling.inpaint(self.dit, self.vae, image, mask, steps, seed, begin, tick)  # type: ignore[arg-type]
        assert self.vae.decoded is not None
        raw = self.vae.decoded[0].permute(1, 2, 0).cpu().numpy()
        whole = case.mask.size / TOKEN**2
        return Outcome(raw, float(np.mean(self.meter.tokens)) / whole, self.meter.flops, ticks[-1] - ticks[0])

    def _paint_again(self, case: Case, steps: int, planned: Compressed) -> Outcome:
        """The second of two runs, with the case's own seed; the first one's is another."""
        runs = HandingOn(planned, self.dit)
        self._paint(case, steps, runs.begin, case.seed + OTHER_SEED)
        return self._paint(case, steps, runs.begin)

    def _crop(self, row: Row, case: Case, steps: int, done: dict[str, Outcome]) -> Outcome:
        box = crop_box(case.mask)
        if not row.equal_to:
            return self._paint(case, steps, Cropped(box, case.mask.shape).begin)
        budget = math.floor(self.meter.tokens_for(done[row.equal_to].flops / steps) + 1e-6)
        if box.tokens <= budget:
            return self._paint(case, steps, Cropped(box.grown(budget, case.mask.shape), case.mask.shape).begin)
        small = shrunk(case, box, budget)
        outcome = self._paint(small, steps)
        raw = case.image.copy()
        height, width = raw[box.pixels].shape[:2]
        raw[box.pixels] = cv2.resize(outcome.raw, (width, height), interpolation=cv2.INTER_CUBIC).clip(0, 1)
        return replace(outcome, raw=raw, tokens=outcome.tokens * small.mask.size / case.mask.size)


def telea(case: Case, clock: Clock) -> Outcome:
    """OpenCV's classic inpainting (Telea 2004): what a model must beat by far to be worth judging with."""
    started = clock.now()
    eight_bit = (case.image * 255).round().astype(np.uint8)
    painted = cv2.inpaint(eight_bit, case.mask.astype(np.uint8), 5, cv2.INPAINT_TELEA)
    return Outcome(painted.astype(np.float32) / 255, 0.0, 0.0, clock.now() - started)


def compressed(row: Row, case: Case, steps: int, vae: Any, device: torch.device) -> Compressed:
    """The planned run of a HiLo row."""
    plan = make_plan(torch.from_numpy(case.image)[None], torch.from_numpy(case.mask)[None].float(), row.settings)
    grid = grid_of(plan)
    if row.rank != SOBEL:
        plan = replace(plan, energy=RANKS[row.rank](plan, grid, case.seed))
    context = make_context(row.context, **row.options)
    low = None
    if context.uses_low and row.encoded:
        small = low_picture(plan.image, plan.edit_region, grid, row.settings.low_factor)
        low = encode(vae, small.movedim(-1, 1).to(device))
    run = Compressed(plan, context, low=low, steps=steps, method=make_method(row.method, **row.options))
    if row.exact:
        run.grid_plan = exactly(run.grid_plan, plan, context.uses_low)
    return run


def exactly(rounded: GridPlan, plan: TokenPlan, keep_low: bool) -> GridPlan:
    """The plan with no token more than edit region and share ask for; the nodes fill up to whole canvas rows of 32."""
    edit = int(rounded.edit.sum())
    high = round(plan.settings.detail * (rounded.grid.count - edit))
    kept = rounded.order[: edit + high].sort().values
    factor = plan.settings.low_factor if keep_low else 0
    low = low_blocks(kept, rounded.grid.rows, rounded.grid.cols, factor) if factor else None
    return replace(rounded, kept=kept, high=high, low=low if low is not None and len(low) else None)


@dataclass(frozen=True)
class Box:
    """A rectangle in tokens, the ends not included."""

    top: int
    left: int
    bottom: int
    right: int

    @property
    def tokens(self) -> int:
        return (self.bottom - self.top) * (self.right - self.left)

    @property
    def pixels(self) -> tuple[slice, slice]:
        return slice(self.top * TOKEN, self.bottom * TOKEN), slice(self.left * TOKEN, self.right * TOKEN)

    def grown(self, budget: int, size: tuple[int, ...]) -> Box:
        """The largest box of at most `budget` tokens got by moving out all four sides in turn, inside the picture."""
        box, (rows, cols) = self, (size[0] // TOKEN, size[1] // TOKEN)
        grew = True
        while grew:
            grew = False
            for side, step, limit in (("top", -1, 0), ("left", -1, 0), ("bottom", 1, rows), ("right", 1, cols)):
                if getattr(box, side) == limit:
                    continue
                larger = replace(box, **{side: getattr(box, side) + step})
                if larger.tokens <= budget:
                    box, grew = larger, True
        return box


def crop_box(mask: np.ndarray, context: float = CROP_CONTEXT) -> Box:
    """The bounding box of a mask (H, W), `context` times as long on both sides, outwards to whole tokens."""
    left, top, width, height = cv2.boundingRect(mask.astype(np.uint8))
    grow_x, grow_y = width * (context - 1) / 2, height * (context - 1) / 2
    return Box(
        max(0, math.floor((top - grow_y) / TOKEN)),
        max(0, math.floor((left - grow_x) / TOKEN)),
        min(mask.shape[0] // TOKEN, math.ceil((top + height + grow_y) / TOKEN)),
        min(mask.shape[1] // TOKEN, math.ceil((left + width + grow_x) / TOKEN)),
    )


def shrunk(case: Case, box: Box, budget: int) -> Case:
    """The crop as a case of its own, its pixels shrunk to at most `budget` tokens, as cropping nodes resize."""
    rows, cols = box.bottom - box.top, box.right - box.left
    scale = math.sqrt(budget / box.tokens)
    exact = [max(1.0, side * scale) for side in (rows, cols)]
    rounded = product(*((math.floor(side), math.ceil(side)) for side in exact))
    fitting = [sides for sides in rounded if math.prod(sides) <= max(budget, *map(math.floor, exact))]
    height, width = (side * TOKEN for side in max(fitting, key=math.prod))
    image = cv2.resize(case.image[box.pixels], (width, height), interpolation=cv2.INTER_AREA)
    share = cv2.resize(case.mask[box.pixels].astype(np.float32), (width, height), interpolation=cv2.INTER_AREA)
    return replace(case, image=image, mask=share > 0)


class Cropped:
    """A dense run on a rectangle of the picture alone, at native resolution, placed as if it were the whole picture.

    In tokens, so that it sees the same noise and the same latent as every other row; a node that cuts pixels also loses
    what the autoencoder would see beyond the cut.
    """

    def __init__(self, box: Box, size: tuple[int, ...]) -> None:
        rows, cols = torch.arange(box.top, box.bottom), torch.arange(box.left, box.right)
        self.index = (rows[:, None] * (size[1] // TOKEN) + cols[None]).flatten()

    def begin(self, source: Tensor, noise: Tensor) -> sampling.Denoise:
        """The `prepare` of `lab.sampling.inpaint`."""
        return self._denoise

    def _denoise(self, dit: Any, tokens: Tensor, ids: Tensor, sigma: Tensor) -> Tensor:
        index = self.index.to(tokens.device)
        inside = sampling.denoise(dit, tokens[:, index], ids[index] - ids[index[0]], sigma)
        velocity = inside.new_zeros(*tokens.shape[:2], inside.shape[-1])
        velocity[:, index] = inside
        return velocity
