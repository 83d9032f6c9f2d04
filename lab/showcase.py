"""What the demo does: one picture inpainted densely and with HiLo Token, timed, measured and shown."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import numpy as np
import torch
from diffusers import AutoencoderTiny, FluxTransformer2DModel
from diffusers.utils import logging as diffusers_logging
from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from safetensors import SafetensorError
from skimage.metrics import peak_signal_noise_ratio
from torch import Tensor

from hilo_core import PRESETS, GridPlan, TokenPlan, make_context, make_plan
from hilo_core.lowres import low_picture
from hilo_core.report import NAMES, describe, overlay
from lab import autoencoder, dit, host_demo, sampling
from lab.figure import Panel, outlined, side_by_side
from lab.hilo import Compressed, grid_of
from lab.inputs import InputError, Inputs, read_inputs

ROUNDS = 2  # both ways run this often, in turn, and the median of all their steps counts
CONTEXT = "low"
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


@dataclass(frozen=True)
class Report:
    """What the demo measured.

    Attributes:
        plan, grid_plan: what was kept.
        dense, hilo: both ways with their times.
        planning: seconds, with encoding the low-frequency picture.
        quality: PSNR in the mask in dB, by "dense", "hilo" (against the source) and "hilo against dense".
    """

    plan: TokenPlan
    grid_plan: GridPlan
    dense: Way
    hilo: Way
    planning: float
    quality: dict[str, float]


def run(options: argparse.Namespace) -> Report:
    """Run the demo as `lab.demo.parse` has read its options, print the figures and write the pictures.

    Raises:
        InputError: a file or an option cannot be used, in one sentence.
    """
    console = Console(highlight=False, soft_wrap=True)
    host = host_demo.find_host() if options.host else None
    inputs = read_inputs(options.image, options.mask, options.size)
    folder = _folder(options.out)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype, gain = faster_dtype(device)
    models = _load(options.weights, device, dtype)
    _announce(console, options, inputs, device, dtype, gain)

    started = time.perf_counter()
    plan = make_plan(inputs.image.movedim(1, -1), inputs.mask[:, 0], PRESETS[options.preset])
    compressed = Compressed(plan, make_context(CONTEXT), low=_encoded_low(plan, models[1], device))
    planning = time.perf_counter() - started
    grid_plan = compressed.grid_plan
    dense = Way("dense", lambda source, noise: sampling.denoise, grid_plan.grid.count)
    hilo = Way("HiLo", compressed.begin, min(grid_plan.tokens, grid_plan.grid.count))
    console.print(f"\n{describe(plan, grid_plan)}\n")

    picture, mask = inputs.image.to(device), inputs.mask.to(device)

    def paint(way: Way, steps: int, on_step: OnStep | None) -> Tensor:
        with torch.autocast(device.type, dtype, enabled=dtype == torch.bfloat16):
            prepare = timed(way.prepare, way.steps, device)
            return sampling.inpaint(*models, picture, mask, steps, options.seed, prepare, on_step)

    race((dense, hilo), options.steps, paint, console)
    report = Report(plan, grid_plan, dense, hilo, planning, quality(inputs, dense.picture, hilo.picture))
    _print(console, report)
    _write(folder, inputs, report)
    if host:
        _run_host(console, host, inputs, options, folder)
    console.print(f"\nThe pictures are in {folder.resolve()}; side_by_side.png shows them all.")
    return report


def race(ways: Sequence[Way], steps: int, paint: Callable[[Way, int, OnStep | None], Tensor], console: Console) -> None:
    """Run the ways in turn, `ROUNDS` times, with a progress bar each; fills in their times and pictures.

    Args:
        ways: what to compare.
        steps: sampling steps.
        paint: runs a way for a number of steps and calls back after each; gives the picture (1, 3, H, W).
        console: where the bars are drawn.
    """
    columns = TextColumn("{task.description:>5}"), BarColumn(), MofNCompleteColumn(), TextColumn("steps")
    with Progress(*columns, TimeElapsedColumn(), console=console) as progress:
        bars = [progress.add_task(way.name, total=ROUNDS * steps, start=False) for way in ways]
        for way in ways:  # the first call pays for memory and kernels
            paint(way, 1, None)
            way.steps.clear()
        for _ in range(ROUNDS):
            for way, bar in zip(ways, bars, strict=True):
                progress.start_task(bar)
                begun = time.perf_counter()
                way.picture = paint(way, steps, lambda done, total, bar=bar: progress.advance(bar)).cpu()
                way.runs.append(time.perf_counter() - begun)


def faster_dtype(device: torch.device) -> tuple[torch.dtype, float]:
    """bfloat16 where it is the faster one, else float32, by timing a product of matrices of the model's size.

    A CPU without bfloat16 units is several times slower in it, one with them several times faster, and no flag of torch
    tells for every kind of CPU.

    Returns:
        The type and how many times faster than the other it is.
    """
    seconds = {}
    for dtype in (torch.float32, torch.bfloat16):
        left, right = (torch.ones(shape, device=device, dtype=dtype) for shape in ((1024, 256), (256, 1024)))
        times = []
        for _ in range(8):  # the first ones warm up; the best of them counts
            _wait(device)
            started = time.perf_counter()
            torch.mm(left, right)
            _wait(device)
            times.append(time.perf_counter() - started)
        seconds[dtype] = min(times)
    fast, slow = sorted(seconds, key=lambda dtype: seconds[dtype])
    return fast, seconds[slow] / seconds[fast]


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


def quality(inputs: Inputs, dense: Tensor, hilo: Tensor) -> dict[str, float]:
    """PSNR in dB over the masked pixels of pictures (1, 3, H, W) in 0..1; infinite where they are equal."""
    inside = inputs.mask[0, 0].bool()
    source, dense_pixels, hilo_pixels = (one[0][:, inside].numpy() for one in (inputs.image, dense, hilo))

    def psnr(true: np.ndarray, test: np.ndarray) -> float:
        return float("inf") if np.array_equal(true, test) else float(peak_signal_noise_ratio(true, test, data_range=1))

    return {
        "dense": psnr(source, dense_pixels),
        "hilo": psnr(source, hilo_pixels),
        "hilo against dense": psnr(dense_pixels, hilo_pixels),
    }


def _announce(
    console: Console, options: argparse.Namespace, inputs: Inputs, device: torch.device, dtype: torch.dtype, gain: float
) -> None:
    height, width = inputs.image.shape[2:]
    console.print(
        f"{options.image.name} at {width} x {height}, {inputs.share:.1%} of it masked; "
        f"{options.steps} steps, seed {options.seed}"
    )
    name = torch.cuda.get_device_name() if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    fast, slow = ("bfloat16", "float32") if dtype == torch.bfloat16 else ("float32", "bfloat16")
    console.print(f"{name}, {fast} ({gain:.1f} times as fast as {slow} here)")
    for note in inputs.notes:
        console.print(f"Note: {note}.")


def _folder(folder: Path) -> Path:
    """The folder for the pictures, made before any work is done."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--out {folder} cannot be made ({error.strerror}): name another folder") from None
    return folder


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def _load(folder: Path, device: torch.device, dtype: torch.dtype) -> tuple[FluxTransformer2DModel, AutoencoderTiny]:
    """The transformer in the type it computes in, and the autoencoder in float32."""
    diffusers_logging.set_verbosity_error()  # it warns about weights whose type load_dit changes on purpose
    try:
        transformer = dit.load_dit(folder / dit.WEIGHTS.name, dtype)
        vae = autoencoder.load_autoencoder(folder / autoencoder.WEIGHTS.name)
    except FileNotFoundError as error:
        raise InputError(f"--weights {folder}: {error}") from None
    except (SafetensorError, KeyError, RuntimeError) as error:
        raise InputError(f"--weights {folder} holds files of another model ({error}): name the lab's weights") from None
    for model in (transformer, vae):
        torch.nn.Module.to(model, device)
    return transformer, vae


def _encoded_low(plan: TokenPlan, vae: AutoencoderTiny, device: torch.device) -> Tensor | None:
    """The plan's low-frequency picture as a latent (1, 16, h, w), or None where the plan has no low tokens."""
    if not plan.settings.low_factor:
        return None
    small = low_picture(plan.image, plan.edit_region, grid_of(plan), plan.settings.low_factor)
    return autoencoder.encode(vae, small.movedim(-1, 1).to(device))


def _duration(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.2f} s"


def _decibel(value: float) -> str:
    return "identical" if value == float("inf") else f"{value:.2f} dB"


def _print(console: Console, report: Report) -> None:
    dense, hilo = report.dense, report.hilo
    table = Table("", "tokens", "a step", "encode, decode", "whole run", "PSNR in the mask", box=None, pad_edge=False)
    for column in table.columns[1:]:
        column.justify = "right"
    for way, psnr in ((dense, report.quality["dense"]), (hilo, report.quality["hilo"])):
        times = (_duration(seconds) for seconds in (way.step, way.around, way.run))
        table.add_row(way.name, f"{way.tokens:,}", *times, _decibel(psnr))
    table.add_row(
        "speedup", f"{dense.tokens / hilo.tokens:.2f}", f"{dense.step / hilo.step:.2f}", "",
        f"{dense.run / hilo.run:.2f}", "", style="bold",
    )  # fmt: skip
    console.print(table)
    console.print(
        f"\nPlanning took {_duration(report.planning)}. HiLo against dense, in the mask: "
        f"{_decibel(report.quality['hilo against dense'])}. PSNR is against the source picture."
    )


def _write(folder: Path, inputs: Inputs, report: Report) -> None:
    dense, hilo = report.dense, report.hilo
    source, dense_pixels, hilo_pixels = (_pixels(one) for one in (inputs.image, dense.picture, hilo.picture))
    plan = _pixels(overlay(report.plan, report.grid_plan).movedim(-1, 1))
    legend = _legend(report.grid_plan)
    kept = f"{hilo.tokens:,} of {dense.tokens:,} tokens"
    faster = f"{_duration(hilo.step)} a step, {dense.step / hilo.step:.2f} times as fast"
    panels = [
        Panel(outlined(source, inputs.mask[0, 0].bool().numpy()), "Source", f"{inputs.share:.1%} masked"),
        Panel(plan[: source.shape[0]], "Plan", kept, legend=legend),
        Panel(dense_pixels, "Dense", f"{_duration(dense.step)} a step", (_against_source(report.quality["dense"]),)),
        Panel(hilo_pixels, "HiLo", faster, (_against_source(report.quality["hilo"]), _against_dense(report))),
    ]
    try:
        Image.fromarray(plan).save(folder / "plan.png")
        Image.fromarray(dense_pixels).save(folder / "dense.png")
        Image.fromarray(hilo_pixels).save(folder / "hilo.png")
        side_by_side(panels).save(folder / "side_by_side.png")
    except OSError as error:
        raise InputError(f"--out {folder} cannot be written to ({error.strerror}): name another folder") from None


def _legend(plan: GridPlan) -> dict[int, str]:
    """A text for each class of token that occurs, see `hilo_core.report`."""
    counts = np.bincount(plan.classes().ravel(), minlength=4)
    texts = {kind: f"{NAMES[kind]} {counts[kind]:,}" for kind in (3, 2, 1, 0) if counts[kind]}
    if plan.low:
        texts[1] = f"{NAMES[1]} {len(plan.low):,} for {counts[1]:,}"
    return texts


def _run_host(console: Console, host: Path, inputs: Inputs, options: argparse.Namespace, folder: Path) -> None:
    console.print(f"\nThe same through ComfyUI at {host}, {host_demo.WORKFLOW.name} ...")
    found = host_demo.run(host, inputs, options.weights, options.steps, options.seed, options.preset)
    Image.fromarray(found.picture).save(folder / "host.png")
    console.print(
        f"The graph took {_duration(found.dense)} with HiLo Patch Model bypassed and {_duration(found.hilo)} with it "
        f"({found.dense / found.hilo:.2f} times as fast, decoding included); the picture is host.png."
    )


def _against_source(psnr: float) -> str:
    return f"in the mask, against the source: {_decibel(psnr)}"


def _against_dense(report: Report) -> str:
    return f"in the mask, against dense: {_decibel(report.quality['hilo against dense'])}"


def _pixels(picture: Tensor) -> np.ndarray:
    """(1, 3, H, W) in 0..1 to (H, W, 3) uint8."""
    return picture[0].permute(1, 2, 0).mul(255).round().clamp(0, 255).to(torch.uint8).numpy()
