"""The speed bench: how much of the saved work becomes saved time? `python -m lab.speed [what]`

Dense and compressed steps of real model shapes, interleaved in one process, through everything a user's run goes
through. Writes speed.json, speed.md and a plot into lab/results; entries measured before stay, measured again they are
replaced. `cached` adds up runs with cached keys and values; `overhead` times the planner and what patching adds to a
run that computes everything; `references` what packing the source picture's reference adds to edit models; `methods`
the other systems of the papers; `end-to-end` goes from picture to picture, with a real-size autoencoder.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from tqdm import tqdm

from lab.bench import cached_speed, end_to_end, method_speed, record, references, speed_report
from lab.bench.clock import Clock, Parts
from lab.bench.cost import count_flops
from lab.bench.paper import PAPER
from lab.bench.results import Bench, Entry, Scene, common, host_model, on_machine
from lab.bench.shapes import EDITORS, SHAPES, TimedModel
from lab.masks import skeleton
from lab.pictures import photograph

RESULTS = Path(__file__).parent / "results"
RATIOS = (0.02, *(group.share for group in PAPER.values()), 0.60)  # the ends, and the paper's three groups
SIZES = (512, 1024, 1536, 2048)
CPU_SIZES = (512, 1024)
SEED = 0


def scene(size: int, ratio: float, shape: str = "scattered") -> tuple[torch.Tensor, torch.Tensor]:
    """A real photograph and a mask of exactly this share, of the shape more than half of users paint.

    Returns:
        (1, size, size, 3) float in 0..1 and (1, size, size) float.
    """
    picture = cv2.resize(photograph("coffee")[:400, :400], (size, size), interpolation=cv2.INTER_CUBIC)
    points = skeleton(np.random.default_rng(SEED), size, shape)
    distance = cv2.distanceTransform(points, cv2.DIST_L2, 5)
    mask = np.zeros(size * size, np.float32)
    mask[np.argsort(distance, axis=None, kind="stable")[: round(ratio * size * size)]] = 1
    return torch.from_numpy(picture)[None].float() / 255, torch.from_numpy(mask).view(1, size, size)


def time_steps(name: str, model: TimedModel, args: argparse.Namespace, scene: Scene) -> list[Entry]:
    """Steps of one model at all sizes and ratios."""
    rounds = args.rounds * (len(args.ratios) + 1)
    with tqdm(total=rounds * len(args.sizes), desc=model.title, unit="run") as bar:
        return [entry for size in args.sizes for entry in time_size(model, size, args, scene, bar)]


def time_size(model: TimedModel, size: int, args: argparse.Namespace, scene: Scene, bar: tqdm) -> list[Entry]:
    """All ratios at one size: counted work, then interleaved times, then memory and parts."""
    core, clock = model.core(), args.clock
    context = core.make_context(args.context)
    calls = 1 if args.context in ("none", "low") else 8  # the others have dense steps among compressed ones
    plans = {ratio: core.make_plan(*scene(size, ratio), core.PRESETS[args.preset]) for ratio in args.ratios}
    grid = core.Grid.of_picture((size, size))
    runs = {None: (None, None)} | {ratio: (plan, context) for ratio, plan in plans.items()}
    # Counting is slow, so it warms up as well.
    flops = {ratio: count_flops(lambda run=run: model.run(size, calls, *run)) / calls for ratio, run in runs.items()}
    seconds: dict[float | None, list[float]] = {ratio: [] for ratio in runs}
    for _ in range(args.rounds):
        for ratio, run in runs.items():
            seconds[ratio].append(statistics.mean(model.run(size, calls, *run)))
            bar.update()
    memory = {ratio: clock.peak_mib(lambda run=run: model.run(size, calls, *run)) for ratio, run in runs.items()}
    dense = statistics.median(seconds[None])
    entries = []
    for ratio, plan in plans.items():
        on_grid = plan.on_grid(grid, context.uses_low)
        parts = Parts(clock)
        with parts.watching(model.transformer, model.places()):
            total = sum(model.run(size, calls, plan, context))
        compressed = statistics.median(seconds[ratio])
        ideal, measured = flops[None] / flops[ratio], dense / compressed
        entries.append(
            {
                **common(model, args, size, ratio),
                "tokens": grid.count,
                "kept": min(on_grid.tokens, grid.count),
                "dense_flops": flops[None],
                "hilo_flops": flops[ratio],
                "dense_seconds": dense,
                "hilo_seconds": compressed,
                "ideal_speedup": ideal,
                "measured_speedup": measured,
                "efficiency": measured / ideal,
                "planner_seconds": clock.median(lambda r=ratio: planned(core, size, r, args.preset), 3),
                "dense_peak_mib": memory[None],
                "hilo_peak_mib": memory[ratio],
                "parts": split(parts.seconds, total, calls),
            }
        )
    return entries


def split(seconds: dict[str, float], total: float, calls: int) -> dict[str, float]:
    """Seconds a step of each part; the override happens inside the model's forward, `rest` is the host's own."""
    found = {part: seconds.get(part, 0.0) / calls for part in ("pack", "override", "model", "unpack")}
    found["model"] -= found["override"]
    return {**found, "rest": total / calls - sum(found.values())}


_SCENES: dict[tuple[int, float], tuple[torch.Tensor, torch.Tensor]] = {}


def planned(core: Any, size: int, ratio: float, preset: str) -> tuple[Any, Any]:
    """What the planner does: picture and mask to a plan on the token grid."""
    if (size, ratio) not in _SCENES:
        _SCENES[size, ratio] = scene(size, ratio)
    plan = core.make_plan(*_SCENES[size, ratio], core.PRESETS[preset])
    return plan, plan.on_grid(core.Grid.of_picture(plan.size))


def overhead(name: str, model: TimedModel, args: argparse.Namespace, scene: Scene) -> list[Entry]:
    """What HiLo costs where it saves nothing: the planner at 1024 px, and patching a run that keeps everything.

    Whole sampling runs of four steps, so that what patching does before the first step counts as well.
    """
    import hilo_core
    from hilo_core.report import describe, overlay

    clock = args.clock
    ratio, size, calls = PAPER["medium"].share, 512, 4

    def with_preview() -> None:
        made = planned(hilo_core, 1024, ratio, args.preset)
        describe(*made)
        overlay(*made)

    core = model.core()
    everything = core.make_plan(scene(size, 0.5)[0], torch.ones(1, size, size))
    context = core.make_context(args.context)
    if not everything.on_grid(core.Grid.of_picture((size, size))).dense:
        raise RuntimeError("a full mask must keep every token")
    runs = {"dense": (None, None), "patched": (everything, context)}
    for run in runs.values():
        model.run(size, calls, *run)
    pairs = []
    for number in tqdm(range(args.rounds), desc="patching", unit="pair"):
        order = list(runs)[:: 1 if number % 2 else -1]  # whoever comes second finds warmer caches
        took = {name: clock.seconds(lambda name=name: model.run(size, calls, *runs[name])) for name in order}
        pairs.append(took["patched"] / took["dense"])
    entry = {
        "model": model.title,
        **on_machine(args),
        "planner_size": 1024,
        "planner_seconds": clock.median(lambda: planned(hilo_core, 1024, ratio, args.preset), 15),
        "planner_with_preview_seconds": clock.median(with_preview, 15),
        "patched_size": size,
        "patched_over_dense": statistics.median(pairs),
        "patched_over_dense_quartiles": statistics.quantiles(pairs, n=4)[::2],
    }
    return [entry]


def make_model(name: str, args: argparse.Namespace) -> TimedModel:
    """A model of `--models`, see `host_model`."""
    if name == "lab":
        from lab.bench.lab_model import LabModel

        return LabModel(args.clock, args.dtype, args.heads)
    return host_model(name, args)


MODELS = ("lab", *SHAPES, *EDITORS)
BENCHES = {
    "steps": Bench(
        "speed", MODELS, time_steps, speed_report.write, default=tuple(SHAPES), fallback="lab", make=make_model,
        told=speed_report.short, entries="steps",
    ),
    "overhead": Bench(
        "speed", MODELS, overhead, speed_report.write, default=("flux",), fallback="lab", make=make_model,
        told=speed_report.overhead_lines, entries="overhead", key=("model", "device", "dtype"),
    ),
    "references": references.BENCH,
    "methods": method_speed.BENCH,
    "end-to-end": end_to_end.BENCH,
    "cached": cached_speed.BENCH,
}  # fmt: skip


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line, checked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", choices=BENCHES, default="steps")
    parser.add_argument("--models", nargs="+", choices=MODELS, help="default: all; without a ComfyUI, lab")
    parser.add_argument("--sizes", nargs="+", type=int, help="pixels; default 512 1024, on CUDA 1536 2048 too")
    parser.add_argument("--ratios", nargs="+", type=float, default=list(RATIOS), help="share of the picture masked")
    parser.add_argument("--rounds", type=int, default=5, help="of dense and every ratio in turn; the median counts")
    parser.add_argument("--context", help=f"default low; cached measures {', '.join(cached_speed.CHOICES)}")
    parser.add_argument("--preset", default="balanced")
    parser.add_argument("--device", type=torch.device, default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=("auto", "bfloat16", "float32"), default="auto")
    parser.add_argument(
        "--busy",
        action="store_true",
        help="one thread, and its own seconds instead of the wall's: for a shared machine",
    )
    parser.add_argument("--times", type=int, default=1, help="so many times the few blocks that a shape has")
    parser.add_argument("--heads", type=int, default=24, help="width of the model `lab`, in heads of 128 channels")
    parser.add_argument("--out", type=Path, default=RESULTS, metavar="DIR", help="default: lab/results")
    args = parser.parse_args(argv)
    args.sizes = args.sizes or (CPU_SIZES if args.device.type == "cpu" else SIZES)
    if any(size < 64 or size % 16 for size in args.sizes):
        parser.error(f"--sizes are {args.sizes}; each must be a multiple of 16, 64 or more")
    if any(not 0 < ratio < 1 for ratio in args.ratios):
        parser.error(f"--ratios are {args.ratios}; each must lie between 0 and 1")
    bench = BENCHES[args.what]
    if not set(args.models or ()) <= set(bench.models):
        parser.error(f"--models are {', '.join(args.models)}; {args.what} measures {', '.join(bench.models)}")
    args.context = args.context or next(iter(bench.contexts), "low")
    if bench.contexts and args.context not in bench.contexts:
        parser.error(f"--context is {args.context}; {args.what} measures {', '.join(bench.contexts)}")
    if args.times < 1:
        parser.error(f"--times is {args.times}; it must be 1 or more")
    if args.rounds < 2:
        parser.error(f"--rounds is {args.rounds}; a median needs 2 or more")
    args.dtype = record.fast_dtype(args.device) if args.dtype == "auto" else getattr(torch, args.dtype)
    args.clock = Clock(args.device, args.busy)
    if args.busy:
        torch.set_num_threads(1)
    return args


def main(argv: list[str] | None = None) -> int:
    """Measure and write; 0 when something was measured."""
    args = arguments(argv)
    environment = record.environment(args.device, args.dtype, seed=SEED, clock="busy" if args.busy else "wall")
    return BENCHES[args.what].run(args, scene, environment)


if __name__ == "__main__":
    raise SystemExit(main())
