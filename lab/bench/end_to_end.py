"""From picture to picture: VAE encode, plan, eight steps, decode, paste; dense against HiLo.

`python -m lab.speed end-to-end`. Each part is timed on its own in ComfyUI's real classes at the real models' widths,
random weights. The transformers have few of their blocks, so a step is scaled: the time of each kind of block times the
real number of them, plus the rest of the step as measured. A caching context's run has calls of several sorts, and its
next run on the picture (`reuse`) others; they are summed as `cached_speed` does. The text encoder is left out: its
result is kept between runs. Dense pays no planner and no paste. Writes end_to_end.json and end_to_end.md."""

from __future__ import annotations

import argparse
import gc
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch

from lab.bench import record
from lab.bench.cached_speed import ReusingModel, within_the_nodes_limit
from lab.bench.calls import calls, shortest
from lab.bench.clock import Clock
from lab.bench.host import pack
from lab.bench.paper import END_TO_END_SPEEDUP
from lab.bench.results import Bench, Content, Entry, Scene, common, host_model, in_order
from lab.bench.shapes import HostModel, randomise

STEPS = 8
NEXT = "{}, next seed"  # a run with the keys and values of an earlier one
TARGETS = dict(zip(END_TO_END_SPEEDUP, (2.4, 2.0, 1.5), strict=True))


def kl_autoencoder(clock: Clock, dtype: torch.dtype) -> Any:
    """The autoencoder of Flux.1 and SD3: 16 channels, 128 to 512 wide, 84 million weights."""
    import comfy.ldm.models.autoencoder
    import comfy.sd

    sizes = dict(
        double_z=True, z_channels=16, resolution=256, in_channels=3, out_ch=3, ch=128, ch_mult=[1, 2, 4, 4],
        num_res_blocks=2, attn_resolutions=[], dropout=0.0,
    )  # fmt: skip
    params = dict(ddconfig=sizes, embed_dim=16)
    module = comfy.ldm.models.autoencoder.AutoencoderKL(**params)
    randomise(module)
    vae = comfy.sd.VAE(sd=module.state_dict(), config={"params": params}, device=clock.device, dtype=dtype)
    vae.latent_channels = 16
    return vae


def wan_autoencoder(clock: Clock, dtype: torch.dtype) -> Any:
    """The autoencoder of Wan 2.1 and Qwen-Image, 96 to 384 wide, 127 million weights."""
    import comfy.ldm.wan.vae
    import comfy.sd

    sizes = dict(dim=96, z_dim=16, dim_mult=[1, 2, 4, 4], num_res_blocks=2, attn_scales=[], dropout=0.0)
    module = comfy.ldm.wan.vae.WanVAE(**sizes, temperal_downsample=[False, True, True])
    randomise(module)
    return comfy.sd.VAE(sd=module.state_dict(), device=clock.device, dtype=dtype)


AUTOENCODERS: dict[str, tuple[str, Callable[[Clock, torch.dtype], Any]]] = {
    "flux": ("KL, 128 to 512 wide", kl_autoencoder),
    "qwen_image": ("Wan 2.1, 96 to 384 wide", wan_autoencoder),
}


@contextmanager
def watched(transformer: torch.nn.Module, names: dict[str, int], clock: Clock) -> Iterator[dict[str, list[float]]]:
    """Seconds of every call of every block, by the name of its list."""
    seconds: dict[str, list[float]] = {name: [] for name in names}
    hooks: list[Any] = []
    for name in names:
        for block in getattr(transformer, name):
            started: list[float] = []

            def before(*_: Any, started: list[float] = started) -> None:
                started.append(clock.now())

            def after(*_: Any, name: str = name, started: list[float] = started) -> None:
                seconds[name].append(clock.now() - started.pop())

            hooks += [block.register_forward_pre_hook(before), block.register_forward_hook(after)]
    try:
        yield seconds
    finally:
        for hook in hooks:
            hook.remove()


def call_seconds(model: HostModel, names: dict[str, int], size: int, count: int, *run: Any) -> list[float]:
    """Seconds of each of `count` model calls, scaled to the real number of blocks."""
    with watched(model.transformer, names, model.clock) as blocks:
        seconds = model.run(size, count, *run)
    scaled = []
    for place, call in enumerate(seconds):
        whole = rest = call
        for name, number in names.items():
            held = len(getattr(model.transformer, name))
            taken = sum(blocks[name][place * held : (place + 1) * held])
            rest -= taken
            whole += taken * (number - held) / held
        if rest < 0:
            raise RuntimeError(f"the blocks of a step took longer than the step: {rest:.3f} s are left")
        scaled.append(whole)
    return scaled


def step_seconds(model: HostModel, names: dict[str, int], size: int, rounds: int, *run: Any) -> float:
    """Median seconds of a step of the real number of blocks; the first one does not count."""
    return statistics.median(call_seconds(model, names, size, rounds + 1, *run)[1:])


def run_seconds(
    model: ReusingModel, names: dict[str, int], size: int, rounds: int, plan: Any, context: Any
) -> list[float]:
    """Seconds of all steps of a run, and where the context keeps keys and values of a second one with those of the
    first; both of the real number of blocks."""
    grid = plan.on_grid(model.core().Grid.of_picture((size, size)), context.uses_low)
    if not context.needs_attention or grid.dense:  # nothing is cached: all steps cost the same
        return [STEPS * step_seconds(model, names, size, rounds, plan, context)]
    _, count = shortest((context,), grid, STEPS)
    short, whole = calls(context, grid, count), calls(context, grid, STEPS)
    seconds: dict[str, list[float]] = defaultdict(list)
    for _ in range(rounds):
        model.reuse = pack("hilo_core.contexts.reuse").Reuse()
        for expected in short:  # the first run, then again with what it has kept
            for call, took in zip(expected, call_seconds(model, names, size, count, plan, context), strict=True):
                seconds[call.sort].append(took)
    model.reuse = None
    cost = {sort: statistics.median(took) for sort, took in seconds.items()}
    return [sum(cost[call.sort] for call in run) for run in whole]


def timed_with_peak(clock: Clock, function: Callable[[], Any]) -> tuple[float, float]:
    """Seconds of one call, and the MiB it needs at its peak."""
    seconds: list[float] = []
    peak = clock.peak_mib(lambda: seconds.append(clock.seconds(function)))
    return seconds[0], peak


def measure(name: str, model: ReusingModel, args: argparse.Namespace, scene: Scene) -> list[Entry]:
    """One model with its autoencoder at all sizes and ratios."""
    clock, names = args.clock, model.shape.real
    core, decode = model.core(), pack("nodes.decode")
    context, preset = within_the_nodes_limit(model, args.context), core.PRESETS[args.preset]
    title, make = AUTOENCODERS[name]
    entries = []
    for size in args.sizes:
        scenes = {ratio: scene(size, ratio) for ratio in args.ratios}
        plans = {ratio: core.make_plan(*scenes[ratio], preset) for ratio in args.ratios}
        dense = step_seconds(model, names, size, args.rounds)
        runs = {ratio: run_seconds(model, names, size, args.rounds, plans[ratio], context) for ratio in plans}
        vae = make(clock, args.dtype)
        with torch.inference_mode():
            picture = scenes[args.ratios[0]][0]
            vae.encode(picture[:, :64, :64])  # the first call loads the weights
            encode = clock.seconds(partial(vae.encode, picture))
            latent = torch.randn(1, 16, *(1,) * model.shape.frames, size // 8, size // 8)
            full = partial(decode.decode_full, vae, latent)
            decode_full, full_peak = timed_with_peak(clock, full)
            cuts = decode.measure(vae, latent[..., :8, :44], 8).margin is not None
            if cuts:  # a decoder is measured once a session
                decode.decode_region(vae, latent, plans[args.ratios[0]])
            decoded = torch.rand(1, size, size, 3)
            for ratio, plan in plans.items():
                seconds, peak = decode_full, full_peak
                if cuts:  # else it is the full decode again
                    seconds, peak = timed_with_peak(clock, partial(decode.decode_region, vae, latent, plan))
                planning = clock.median(partial(core.make_plan, *scenes[ratio], preset), 3)
                paste = clock.median(partial(core.composite, plan, decoded, 16), 3)
                whole = encode + STEPS * dense + decode_full
                for run, steps in zip((args.context, NEXT.format(args.context)), runs[ratio], strict=False):
                    parts = {"encode": encode, "plan": planning, "steps": steps, "decode": seconds, "paste": paste}
                    entries.append(
                        {
                            **common(model, args, size, ratio, context=run),
                            "autoencoder": title,
                            "dense_step": dense,
                            "dense_decode": decode_full,
                            "dense_decode_peak_mib": full_peak,
                            "decode_peak_mib": peak,
                            "dense_seconds": whole,
                            "parts": parts,
                            "hilo_seconds": sum(parts.values()),
                            "speedup": whole / sum(parts.values()),
                        }
                    )
                    print(f"{model.title}, {run}, {size} px, {ratio:.2%}: {entries[-1]['speedup']:.2f} x", flush=True)
        del vae
        gc.collect()
    return entries


def write(path: Path, content: Content) -> None:
    """The report."""
    lines = [
        "# End to end\n",
        *record.provenance(content),
        f"\nVAE encode, plan, {STEPS} steps, decode (`region`), paste; against encode, {STEPS} dense steps and a full "
        "decode. Real widths, random weights. A step is scaled to the real model: the time of each kind of block times "
        "their real number, and the rest as measured. No text encoder. *next seed*: with the keys and values of an "
        "earlier run (`reuse`). *decode*: full / region, seconds and MiB at the peak; a decoder that normalises over "
        "the whole picture (KL) decodes in full. Paper: its own 2 B model on an A100, with a refiner.\n",
    ]
    rows = [
        [
            f"{entry['model']}, {entry['autoencoder']}",
            f"{entry['device']}, {entry['dtype']}, {entry['context']}, {entry['preset']}",
            str(entry["size"]),
            f"{entry['mask']:.2%}",
            f"{entry['parts']['encode']:.1f}",
            f"{1000 * entry['parts']['plan']:.0f} ms",
            f"{STEPS * entry['dense_step']:.0f} / {entry['parts']['steps']:.0f}",
            f"{entry['dense_decode']:.1f} / {entry['parts']['decode']:.1f}",
            f"{entry['dense_decode_peak_mib']:.0f} / {entry['decode_peak_mib']:.0f}",
            f"{1000 * entry['parts']['paste']:.0f} ms",
            f"{STEPS * entry['dense_step'] / entry['parts']['steps']:.2f}",
            f"**{entry['speedup']:.2f}**",
            str(TARGETS.get(entry["mask"], "–")),
            str(END_TO_END_SPEEDUP.get(entry["mask"], "–")),
        ]
        for entry in in_order(content)
    ]
    head = ["model, autoencoder", "device", "px", "mask", "encode s", "plan", "steps s", "decode s", "decode MiB"]
    lines.append(record.table([*head, "paste", "all steps", "end to end", "target", "paper"], rows))
    path.write_text("\n".join(lines) + "\n")


BENCH = Bench(
    "end_to_end",
    tuple(AUTOENCODERS),
    measure,
    write,
    make=partial(host_model, kind=ReusingModel),
    contexts=("auto", "low"),
)
