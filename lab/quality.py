"""The quality bench: does computing fewer tokens change what an artist gets? `python -m lab.quality`

Every row paints the same held-out pictures, under the same masks, from the same noise. Writes quality.json, quality.md
and two plots into lab/results, PASS or FAIL a row by the rule of `lab.bench.verdict`.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from lab import autoencoder, dit
from lab.bench import quality_report, record, summary
from lab.bench.cases import Case, folder_cases, held_out_case
from lab.bench.clock import Clock
from lab.bench.metrics import measure
from lab.bench.rows import ROWS, Row, chosen, running_order
from lab.bench.runners import LabRunner, Outcome, Runner
from lab.masks import GROUPS

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Part:
    """One size and number of steps.

    Attributes:
        size: side in pixels.
        steps: of the sampler.
        every: uses one case in so many.
        core: runs the core rows alone.
    """

    size: int
    steps: int
    every: int = 1
    core: bool = False


# Everything at the size that is cheap; then a look at four times the tokens, and at more steps.
DEFAULT = (Part(256, 8), Part(512, 8, every=4, core=True), Part(256, 20, every=4, core=True))
FULL = (Part(256, 8), Part(256, 20), Part(512, 8), Part(512, 20))


def run_case(runner: Runner, rows: dict[str, Row], case: Case, steps: int) -> list[dict[str, Any]]:
    """Paint one case by every row and measure the results against the truth and against dense."""
    done: dict[str, Outcome] = {}
    for name in running_order(rows):
        done[name] = runner.run(rows[name], case, steps, done)
    return [
        {
            "row": name,
            "case": case.name,
            "kind": case.kind,
            "group": case.group,
            "share": float(case.mask.mean()),
            "size": max(case.mask.shape),
            "steps": steps,
            "tokens": done[name].tokens,
            "flops": done[name].flops,
            "seconds": done[name].seconds,
            **measure(done[name].raw, case.image, done["dense"].raw, case.mask),
        }
        for name in rows
    ]


def jobs(args: argparse.Namespace) -> Iterator[tuple[Part, Case]]:
    """All cases in the order they run: groups and parts in turn, so that stopping early stops them all alike."""
    if args.images:
        for case in folder_cases(args.images, args.masks, args.parts[0].size):
            yield from ((part, case) for part in args.parts)
        return
    for number in range(args.pictures):
        for part in args.parts:
            if number % part.every == 0:
                yield from ((part, held_out_case(group, number // part.every, part.size)) for group in GROUPS)


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line, checked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--full", action="store_true", help="the published tables: 108 pictures a group, 8 and 20 steps"
    )
    parser.add_argument("--pictures", type=int, help="pictures a group of masks; default 24, with --full 108")
    parser.add_argument("--minutes", type=float, help="stop after this long; default 18, with --full never")
    parser.add_argument("--size", type=int, help="only this size in pixels, a multiple of 16")
    parser.add_argument("--steps", type=int, help="only this many steps")
    parser.add_argument("--rows", nargs="+", metavar="ROW", help=f"only these: {', '.join(ROWS)}")
    parser.add_argument("--images", type=Path, metavar="DIR", help="a folder of your own pictures")
    parser.add_argument("--masks", type=Path, metavar="DIR", help="their masks, of the same names")
    parser.add_argument("--host", action="store_true", help="through a real ComfyUI; only the rows that exist as nodes")
    parser.add_argument("--weights", type=Path, default=dit.WEIGHTS.parent, metavar="DIR", help="default: lab/weights")
    parser.add_argument("--device", type=torch.device, default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=("auto", "bfloat16", "float32"), default="auto")
    parser.add_argument(
        "--busy", action="store_true", help="one thread, timed by its own seconds: for a shared machine"
    )
    parser.add_argument("--out", type=Path, default=RESULTS, metavar="DIR", help="default: lab/results")
    args = parser.parse_args(argv)
    if bool(args.images) != bool(args.masks):
        parser.error("--images and --masks belong together; give both folders")
    if args.size is not None and (args.size < 64 or args.size % 16):
        parser.error(f"--size is {args.size}; it must be a multiple of 16, 64 or more")
    for name in ("pictures", "steps", "minutes"):
        value = getattr(args, name)
        if value is not None and value <= 0:
            parser.error(f"--{name} is {value}; it must be more than 0")
    parts = FULL if args.full else DEFAULT
    if args.size or args.steps or args.images:
        parts = (Part(args.size or 256, args.steps or 8),)
    args.parts = parts
    args.pictures = args.pictures or (108 if args.full else 24)
    args.minutes = args.minutes or (float("inf") if args.full else 18.0)
    args.dtype = record.fast_dtype(args.device) if args.dtype == "auto" else getattr(torch, args.dtype)
    if args.busy:
        torch.set_num_threads(1)
    try:
        chosen(args.rows)
    except ValueError as error:
        parser.error(str(error))
    return args


def make_runner(args: argparse.Namespace) -> Runner:
    """The lab's own runner, or with --host the one that goes through ComfyUI."""
    paths = args.weights / dit.WEIGHTS.name, args.weights / autoencoder.WEIGHTS.name
    if args.host:
        from lab.bench.host_runner import HostRunner

        return HostRunner(*paths, Clock(args.device, args.busy))
    model = dit.load_dit(paths[0], args.dtype).to(args.device)
    vae = autoencoder.load_autoencoder(paths[1], args.dtype).to(args.device, memory_format=torch.channels_last)
    return LabRunner(model, vae, Clock(args.device, args.busy), args.dtype)


def rows_of(args: argparse.Namespace, part: Part) -> dict[str, Row]:
    """The rows one part runs."""
    rows = chosen(args.rows, part.core)
    return {name: row for name, row in rows.items() if row.node} if args.host else rows


def main(argv: list[str] | None = None) -> int:
    """Run the bench and write its files; 0 unless something is wrong with the input."""
    args = arguments(argv)
    started = time.monotonic()
    weights = {path.name: record.fingerprint(path) for path in sorted(args.weights.glob("*.safetensors"))}
    try:
        runner = make_runner(args)
        todo = list(jobs(args))
    except (FileNotFoundError, ValueError) as error:
        print(error)
        return 2
    environment = record.environment(
        args.device,
        args.dtype,
        weights=weights,
        host=getattr(runner, "host", ""),
        clock="busy" if args.busy else "wall",
    )
    case = held_out_case("medium", 0, todo[0][0].size)
    run_case(runner, chosen(["dense"]), case, 2)  # warm up: the first calls of a process are slow
    results: list[dict[str, Any]] = []
    bar = tqdm(todo, unit="picture", desc="quality")
    for part, case in bar:
        if time.monotonic() - started > args.minutes * 60:
            bar.write(f"stopped after {args.minutes:g} minutes; --minutes or --full runs longer")
            break
        bar.set_postfix_str(case.name)
        results += run_case(runner, rows_of(args, part), case, part.steps)
    bar.close()
    environment["minutes"] = (time.monotonic() - started) / 60
    content = summary.summarise(results, environment)
    quality_report.write(args.out, content, "quality_host" if args.host else "quality")
    print(quality_report.short(content))
    print(f"written to {args.out}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
