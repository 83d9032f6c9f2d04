"""The quality bench: does computing fewer tokens change what an artist gets? `python -m lab.quality`

Every row paints the same held-out pictures, under the same masks, from the same noise (but for a crop whose pixels
shrink: another size is other noise). Writes quality.json, quality.md and plots into lab/results (quality_images and
quality_host with those options), PASS or FAIL a row by the rule of `lab.bench.verdict`.
"""

from __future__ import annotations

import argparse
import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from lab.bench import quality_report, record, summary
from lab.bench.cases import folder_cases, held_out_case, kind_of
from lab.bench.rows import ROWS, chosen
from lab.bench.worker import Job, Part, measurements
from lab.comfyui.find import find_hosts, stated_version
from lab.dit import WEIGHTS
from lab.masks import GROUPS

RESULTS = Path(__file__).parent / "results"


# What an artist's picture is like, 2,304 tokens and 20 steps; then every row where it is cheap.
DEFAULT = (Part(768, 20, only="wide"), Part(256, 8, every=3))
FULL = (Part(256, 8), Part(256, 20), Part(512, 8), Part(512, 20), Part(768, 20, only="wide"))
MARKS = ("core", "wide", "study", "preset", "system")  # of `lab.bench.rows.Row`
ENTRANCE_CASES = 60  # six of each kind of picture
# Times as many of photographs, which differ more from one another than drawn ones: a clear sky, into which the model
# paints something, is 11 dB below OpenCV, and one of them among 24 decides alone what the mean is.
MORE_PHOTOS, MORE_PHOTOS_IN_FULL = 4, 16


def jobs(args: argparse.Namespace) -> Iterator[Job]:
    """All cases in the order they run: groups and parts in turn, so that stopping early stops them all alike."""
    if args.images:
        for case in folder_cases(args.images, args.masks, args.parts[0].size):
            yield from ((part, case) for part in args.parts)
        return
    if not (args.host or args.only or args.first):
        part = Part(min(256, args.parts[0].size), args.steps or 8, only="entrance", entrance=True)
        group, cases = summary.ENTRANCE_GROUP, min(ENTRANCE_CASES, 5 * args.pictures)
        for number in range((MORE_PHOTOS_IN_FULL if args.full else MORE_PHOTOS) * cases):
            if number < cases or kind_of(group, number) == "photo":
                yield part, partial(held_out_case, group, number, part.size)
    for number in range(args.first, args.pictures):
        for part in args.parts:
            if number % part.every == 0:
                yield from ((part, partial(held_out_case, group, number // part.every, part.size)) for group in GROUPS)


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line, checked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--full", action="store_true", help="the published tables: 108 pictures a group, 8 and 20 steps"
    )
    parser.add_argument("--pictures", type=int, help="pictures a group of masks; default 24, with --full 108")
    parser.add_argument("--first", type=int, default=0, help="begin with this picture of each group")
    parser.add_argument("--minutes", type=float, help="stop after this long; default 18, with --full never")
    parser.add_argument("--size", type=int, help="only this size in pixels, a multiple of 16")
    parser.add_argument("--steps", type=int, help="only this many steps")
    parser.add_argument("--rows", nargs="+", metavar="ROW", help=f"only these: {', '.join(ROWS)}")
    parser.add_argument("--only", choices=MARKS, help="only rows with this mark; no entrance test")
    parser.add_argument("--images", type=Path, metavar="DIR", help="a folder of your own pictures")
    parser.add_argument("--masks", type=Path, metavar="DIR", help="their masks, of the same names")
    parser.add_argument("--host", action="store_true", help="through a real ComfyUI; only the rows that exist as nodes")
    parser.add_argument("--weights", type=Path, default=WEIGHTS.parent, metavar="DIR", help="default: lab/weights")
    parser.add_argument("--device", type=torch.device, default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=("auto", "bfloat16", "float32"), default="auto")
    parser.add_argument(
        "--busy", action="store_true", help="one thread, timed by its own seconds: for a shared machine"
    )
    parser.add_argument("--workers", type=int, help="processes; default one a core, on CUDA and with --host one")
    parser.add_argument("--out", type=Path, default=RESULTS, metavar="DIR", help="default: lab/results")
    args = parser.parse_args(argv)
    if args.first < 0:
        parser.error(f"--first is {args.first}; it must be 0 or more")
    if bool(args.images) != bool(args.masks):
        parser.error("--images and --masks belong together; give both folders")
    if args.size is not None and (args.size < 64 or args.size % 16):
        parser.error(f"--size is {args.size}; it must be a multiple of 16, 64 or more")
    for name in ("pictures", "steps", "minutes", "workers"):
        value = getattr(args, name)
        if value is not None and value <= 0:
            parser.error(f"--{name} is {value}; it must be more than 0")
    parts = FULL if args.full else DEFAULT
    if args.size or args.steps or args.only or args.images:
        parts = (Part(args.size or 256, args.steps or 8, only=args.only or ""),)
    args.parts = parts
    args.pictures = args.pictures or (108 if args.full else 24)
    args.minutes = args.minutes or (float("inf") if args.full else 18.0)
    args.dtype = record.fast_dtype(args.device) if args.dtype == "auto" else getattr(torch, args.dtype)
    alone = args.host or args.device.type != "cpu"
    args.workers = args.workers or (1 if alone else os.cpu_count() or 1)
    if args.busy:
        torch.set_num_threads(1)
    try:
        chosen(args.rows)
    except ValueError as error:
        parser.error(str(error))
    return args


def main(argv: list[str] | None = None) -> int:
    """Run the bench and write its files; 0 unless something is wrong with the input."""
    args = arguments(argv)
    started = time.time()
    args.deadline = started + args.minutes * 60
    files = {path.name: record.fingerprint(path) for path in sorted(args.weights.glob("*.safetensors"))}
    tuned = {row.tuned for row in ROWS.values()}
    results: list[dict[str, Any]] = []
    try:
        todo = list(jobs(args))
        with tqdm(total=len(todo), unit="picture", desc="quality") as bar:
            for measured in measurements(args, todo, args.workers):
                results += measured or []
                bar.update(measured is not None)
            if bar.n < len(todo):
                bar.write(f"stopped after {args.minutes:g} minutes; --minutes and --full run longer")
    except (FileNotFoundError, ValueError) as error:
        print(error)
        return 2
    except BrokenProcessPool:
        print("a worker could not start, see above; --workers 1 shows why")
        return 2
    except KeyboardInterrupt:
        print("stopped; what was measured is written")
    if not results:
        return 1
    environment = record.environment(
        args.device,
        args.dtype,
        weights={name: digest for name, digest in files.items() if name not in tuned},
        tuned={name: digest for name, digest in files.items() if name in tuned},
        host=stated_version(find_hosts()[0]) if args.host else "",
        clock="busy" if args.busy else "wall",
        workers=args.workers,
        minutes=(time.time() - started) / 60,
    )
    name = "quality" + "_images" * bool(args.images) + "_host" * args.host
    measured = args.out / f"{name}_pictures.json.gz"
    before = {} if args.images else summary.still_valid(record.read_json(measured), environment)
    pictures = record.merge(before, environment, "pictures", summary.KEY, results)
    record.write_json(measured, pictures)
    content = summary.summarise(pictures)
    quality_report.write(args.out, content, name)
    print(quality_report.short(content))
    print(f"written to {args.out}")
    return 0


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # killed, it writes and ends its workers, as after Ctrl+C
    raise SystemExit(main())
