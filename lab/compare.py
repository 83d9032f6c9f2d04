"""Ways of running the same model compared fairly: in turn, after a warm-up, timed step by step."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import median

import numpy as np
import torch
from diffusers import FluxTransformer2DModel
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from skimage.metrics import peak_signal_noise_ratio
from torch import Tensor

from lab import sampling

ROUNDS = 2  # every way runs this often, in turn, and the median of all its steps counts
OnStep = Callable[[int, int], None]


@dataclass
class Way:
    """One way of running the model, and what it took.

    Attributes:
        name: shown to people.
        prepare: for `sampling.inpaint`.
        tokens: computed at a step.
        steps: seconds of each model call.
        runs: seconds of each whole run, autoencoder included.
        picture: (1, 3, H, W) in 0..1, the result.
    """

    name: str
    prepare: sampling.Prepare
    tokens: int
    steps: list[float] = field(default_factory=list)
    runs: list[float] = field(default_factory=list)
    picture: Tensor = field(default_factory=lambda: torch.empty(0))

    @property
    def step(self) -> float:
        """Median seconds of a step."""
        return median(self.steps)

    @property
    def run(self) -> float:
        """Median seconds of a whole run."""
        return median(self.runs)

    @property
    def around(self) -> float:
        """Median seconds of a run that no step took: encoding the source, decoding the result."""
        count = len(self.steps) // len(self.runs)
        return median(run - sum(self.steps[i * count : (i + 1) * count]) for i, run in enumerate(self.runs))


def race(ways: Sequence[Way], steps: int, paint: Callable[[Way, int, OnStep | None], Tensor], console: Console) -> None:
    """Run the ways in turn, `ROUNDS` times, with a progress bar each; fills in their times and pictures.

    Args:
        ways: what to compare.
        steps: sampling steps.
        paint: runs a way for a number of steps and calls back after each; gives the picture (1, 3, H, W).
        console: where the bars are drawn.
    """
    columns = TextColumn("{task.description:>7}"), BarColumn(), MofNCompleteColumn(), TextColumn("steps")
    with Progress(*columns, TimeElapsedColumn(), console=console) as progress:
        warm_up = progress.add_task("warm-up", total=len(ways))
        bars = [progress.add_task(way.name, total=ROUNDS * steps, start=False) for way in ways]
        for way in ways:  # the first call pays for memory and kernels
            paint(way, 1, None)
            way.steps.clear()
            progress.advance(warm_up)
        for _ in range(ROUNDS):
            for way, bar in zip(ways, bars, strict=True):
                progress.start_task(bar)
                begun = time.perf_counter()
                way.picture = paint(way, steps, lambda done, total, bar=bar: progress.advance(bar)).cpu()
                way.runs.append(time.perf_counter() - begun)


def timed(prepare: sampling.Prepare, seconds: list[float], device: torch.device) -> sampling.Prepare:
    """The same `prepare`, with the time of every model call appended to `seconds`."""

    def begin(source: Tensor, noise: Tensor) -> sampling.Denoise:
        predict = prepare(source, noise)

        def clocked(model: FluxTransformer2DModel, tokens: Tensor, ids: Tensor, sigma: Tensor) -> Tensor:
            _wait(device)
            started = time.perf_counter()
            result = predict(model, tokens, ids, sigma)
            _wait(device)
            seconds.append(time.perf_counter() - started)
            return result

        return clocked

    return begin


def faster_dtype(device: torch.device) -> tuple[torch.dtype, float]:
    """bfloat16 where it is the faster one, else float32, by timing a product of matrices of the model's size.

    A CPU without bfloat16 units is several times slower in it, one with them several times faster, and no flag of torch
    tells for every kind of CPU.

    Returns:
        The type and how many times faster than the other it is.
    """
    matrices = {
        dtype: [torch.ones(shape, device=device, dtype=dtype) for shape in ((1024, 256), (256, 1024))]
        for dtype in (torch.float32, torch.bfloat16)
    }
    seconds = dict.fromkeys(matrices, float("inf"))
    for _ in range(8):  # the first ones warm up; the best of them counts
        for dtype, (left, right) in matrices.items():
            _wait(device)
            started = time.perf_counter()
            torch.mm(left, right)
            _wait(device)
            seconds[dtype] = min(seconds[dtype], time.perf_counter() - started)
    fast, slow = sorted(seconds, key=lambda dtype: seconds[dtype])
    return fast, seconds[slow] / seconds[fast]


def psnr(true: Tensor, test: Tensor, mask: Tensor) -> float:
    """PSNR in dB over the masked pixels; infinite where they are equal.

    Args:
        true, test: (1, 3, H, W) in 0..1.
        mask: (1, 1, H, W), 1 where to compare.
    """
    inside = mask[0, 0].bool()
    one, other = (picture[0][:, inside].numpy() for picture in (true, test))
    return float("inf") if np.array_equal(one, other) else float(peak_signal_noise_ratio(one, other, data_range=1))


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()
