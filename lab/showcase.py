"""What the demo does: one picture inpainted densely and with HiLo Token, measured, printed and shown."""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderTiny, FluxTransformer2DModel
from diffusers.utils import logging as diffusers_logging
from PIL import Image
from rich.console import Console
from rich.table import Table
from safetensors import SafetensorError
from torch import Tensor

from hilo_core import PRESETS, TokenPlan, composite, make_context, make_plan
from hilo_core.lowres import low_picture
from hilo_core.outlook import Outlook, outlook
from hilo_core.report import tint
from lab import autoencoder, dit, host_demo, sampling
from lab.compare import OnStep, Way, faster_dtype, psnr, race, timed
from lab.figure import Panel, outlined, side_by_side
from lab.hilo import Compressed, grid_of
from lab.inputs import InputError, Inputs, read_inputs

CONTEXT = "auto"  # the default of HiLo Patch Model
WORDS = {  # number of tokens, and how many of them a step renews or stand for them
    "edit": "edit region {:,}",
    "high": "high frequency {:,}",
    "computed": "computed {:,}",
    "low": "low frequency {1:,} for {0:,}",
    "cached": "cached {:,}",
    "pooled": "cached {:,} in {:,}",
    "renewed": "cached {:,}, {:,} renewed",
    "unseen": "left out {:,}",
}
FEATHER = 16  # and that of HiLo Unpack, in pixels


@dataclass(frozen=True)
class Report:
    """What the demo measured.

    Attributes:
        plan: in pixels.
        outlook: what a compressed step computes of it.
        dense, hilo: both ways with their times and pictures.
        planning: seconds, with encoding the low-frequency picture.
        dense_psnr, hilo_psnr: in the mask, against the source, in dB.
        between: PSNR in the mask of HiLo against dense, in dB.
    """

    plan: TokenPlan
    outlook: Outlook
    dense: Way
    hilo: Way
    planning: float
    dense_psnr: float
    hilo_psnr: float
    between: float


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
    console.print(_setting(options, inputs, device, dtype, gain))

    started = time.perf_counter()
    plan = make_plan(inputs.image.movedim(1, -1), inputs.mask[:, 0], PRESETS[options.preset])
    compressed = Compressed(plan, make_context(CONTEXT), low=_encoded_low(plan, models[1], device), steps=options.steps)
    planning = time.perf_counter() - started
    look = outlook(plan, grid_of(plan), compressed.context, compressed.method)
    dense = Way("dense", lambda source, noise: sampling.denoise, look.plan.grid.count)
    hilo = Way("HiLo", compressed.begin, look.tokens)
    console.print(f"\n{look.headline} with context {CONTEXT}\n")

    picture, mask = inputs.image.to(device), inputs.mask.to(device)

    def paint(way: Way, steps: int, on_step: OnStep | None) -> Tensor:
        with torch.autocast(device.type, dtype, enabled=dtype == torch.bfloat16):
            prepare = timed(way.prepare, way.steps, device)
            decoded = sampling.inpaint(*models, picture, mask, steps, options.seed, prepare, on_step, paste=False)
        return composite(plan, decoded.float().movedim(1, -1).cpu(), FEATHER).movedim(-1, 1)

    race((dense, hilo), options.steps, paint, console)
    report = Report(
        plan, look, dense, hilo, planning,
        dense_psnr=psnr(inputs.image, dense.picture, inputs.mask),
        hilo_psnr=psnr(inputs.image, hilo.picture, inputs.mask),
        between=psnr(dense.picture, hilo.picture, inputs.mask),
    )  # fmt: skip
    _print(console, report)
    _write(folder, inputs, report)
    if host:
        _run_host(console, host, inputs, options, folder)
    console.print(f"\nThe pictures are in {folder.resolve()}; side_by_side.png shows them all.")
    return report


def _folder(folder: Path) -> Path:
    """The folder for the pictures, made before any work is done."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--out {folder} cannot be made ({error.strerror}): name another folder") from None
    return folder


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


def _setting(options: argparse.Namespace, inputs: Inputs, device: torch.device, dtype: torch.dtype, gain: float) -> str:
    """What runs on what, in words."""
    height, width = inputs.image.shape[2:]
    threads = torch.get_num_threads()
    name = torch.cuda.get_device_name() if device.type == "cuda" else f"CPU, {threads} thread{'s'[: threads > 1]}"
    fast, slow = ("bfloat16", "float32") if dtype == torch.bfloat16 else ("float32", "bfloat16")
    lines = [
        f"{options.image.name} at {width} x {height}, {inputs.share:.1%} of it masked; "
        f"{options.steps} steps, seed {options.seed}",
        f"{name}, {fast} ({gain:.1f} times as fast as {slow} here)",
        *(f"Note: {note}" for note in inputs.notes),
    ]
    return "\n".join(lines)


def _print(console: Console, report: Report) -> None:
    dense, hilo = report.dense, report.hilo
    table = Table("", "tokens", "a step", "encode, decode", "whole run", "PSNR in the mask", box=None, pad_edge=False)
    for column in table.columns[1:]:
        column.justify = "right"
    for way, against_source in ((dense, report.dense_psnr), (hilo, report.hilo_psnr)):
        times = (_duration(seconds) for seconds in (way.step, way.around, way.run))
        table.add_row(way.name, f"{way.tokens:,}", *times, _decibel(against_source))
    gains = dense.tokens / hilo.tokens, dense.step / hilo.step, dense.run / hilo.run
    fewer, faster_step, faster_run = (f"{gain:.2f} x" for gain in gains)
    table.add_row("speedup", fewer, faster_step, "", faster_run, style="bold")
    console.print()
    console.print(table)
    console.print(
        f"\nTimes are medians of interleaved runs after a warm-up; PSNR is against the source picture.\n"
        f"HiLo against dense, in the mask: {_decibel(report.between)}. Planning took {_duration(report.planning)}."
    )


def _write(folder: Path, inputs: Inputs, report: Report) -> None:
    dense, hilo = report.dense, report.hilo
    source, dense_pixels, hilo_pixels = (_pixels(one) for one in (inputs.image, dense.picture, hilo.picture))
    plan = tint(report.plan, report.outlook.plan.grid, report.outlook.classes())
    kept = f"{hilo.tokens:,} of {dense.tokens:,} tokens"
    faster = f"{_duration(hilo.step)} a step, {dense.step / hilo.step:.2f} times as fast"
    dense_lines, hilo_lines = (
        f"in the mask, against the source: {_decibel(one)}" for one in (report.dense_psnr, report.hilo_psnr)
    )
    panels = [
        Panel(outlined(source, inputs.mask[0, 0].bool().numpy()), "Source", f"{inputs.share:.1%} masked"),
        Panel(plan, "Plan", kept, legend=_legend(report.outlook)),
        Panel(dense_pixels, "Dense", f"{_duration(dense.step)} a step", (dense_lines,)),
        Panel(hilo_pixels, "HiLo", faster, (hilo_lines, f"in the mask, against dense: {_decibel(report.between)}")),
    ]
    try:
        Image.fromarray(plan).save(folder / "plan.png")
        Image.fromarray(dense_pixels).save(folder / "dense.png")
        Image.fromarray(hilo_pixels).save(folder / "hilo.png")
        side_by_side(panels).save(folder / "side_by_side.png")
    except OSError as error:
        raise InputError(f"--out {folder} cannot be written to ({error.strerror}): name another folder") from None


def _run_host(console: Console, host: Path, inputs: Inputs, options: argparse.Namespace, folder: Path) -> None:
    console.print(f"\nThe same through ComfyUI at {host}, {host_demo.WORKFLOW.name} ...")
    found = host_demo.run(host, inputs, options.weights, options.steps, options.seed, options.preset)
    Image.fromarray(found.picture).save(folder / "host.png")
    console.print(
        f"The graph took {_duration(found.dense)} with HiLo Patch Model bypassed and {_duration(found.hilo)} with it "
        f"({found.dense / found.hilo:.2f} times as fast, decoding included; one run each). The picture is host.png."
    )


def _legend(look: Outlook) -> dict[int, str]:
    """A text for each class of token that occurs, see `Outlook.legend`."""
    return {kind: WORDS[name].format(count, part) for kind, name, count, part in look.legend()}


def _duration(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.2f} s"


def _decibel(value: float) -> str:
    return "identical" if value == float("inf") else f"{value:.2f} dB"


def _pixels(picture: Tensor) -> np.ndarray:
    """(1, 3, H, W) in 0..1 to (H, W, 3) uint8."""
    return picture[0].permute(1, 2, 0).mul(255).round().clamp(0, 255).to(torch.uint8).numpy()
