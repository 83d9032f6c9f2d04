"""Whole runs of a cached context on a real model's shape: what its dense, first and cached calls cost, and so the run.

A run has few dense steps among many cached ones, and all of one sort cost the same; so a few calls of each are measured
and the run is their sum. Writes cached.json and cached.md. Few blocks of the model, random weights."""

from __future__ import annotations

import argparse
import statistics
from typing import Any

from tqdm import tqdm

from lab.bench import record
from lab.bench.host import pack
from lab.bench.paper import DIT_SPEEDUP
from lab.bench.shapes import SHAPES, HostModel

STEPS = 20
CAPTURE = 0.1  # of the run is over before the first dense step, as on the node
REFRESH = (5, 7, 9)
CALLS = 5  # measured in one run: one before the capture, the dense one, and cached ones


def measure(name: str, size: int, args: argparse.Namespace, scene: Any) -> list[dict[str, Any]]:
    """The paper's three shares of a mask on one model of `SHAPES`; every token outside the edit region is cached.

    Args:
        name: its key.
        size: side in pixels.
        args: of `lab.speed`.
        scene: (size, ratio) -> picture and mask.
    """
    model = HostModel(SHAPES[name], args.clock, args.dtype)
    core = model.core()
    capture = pack("hilo_core.schedule").Schedule(capture=1 / CALLS)
    context = core.make_context("cache", refresh=0, forecast="linear", schedule=capture)
    settings = core.PlanSettings(detail=0.0, threshold=0.0)
    plans = {ratio: core.make_plan(*scene(size, ratio), settings) for ratio in DIT_SPEEDUP}
    dense: list[float] = []
    seconds: dict[float, dict[str, list[float]]] = {
        ratio: {"before": [], "capture": [], "cached": []} for ratio in DIT_SPEEDUP
    }
    for _ in tqdm(range(args.rounds), desc=model.title, unit="round"):
        dense += model.run(size, 2)[1:]
        for ratio, plan in plans.items():
            before, captured, *cached = model.run(size, CALLS, plan, context)
            for part, found in (("before", [before]), ("capture", [captured]), ("cached", cached)):
                seconds[ratio][part] += found
    entries = []
    for ratio, parts in seconds.items():
        cost = {part: statistics.median(found) for part, found in parts.items()}
        first = round(CAPTURE * STEPS)
        whole = statistics.median(dense)
        runs = {}
        for refresh in REFRESH:
            captures = -(-(STEPS - first) // refresh)
            total = first * cost["before"] + captures * cost["capture"] + (STEPS - first - captures) * cost["cached"]
            runs[str(refresh)] = {"dense_steps": captures, "speedup": STEPS * whole / total}
        entries.append(
            {
                "model": model.title,
                "blocks": model.blocks,
                "size": size,
                "mask": ratio,
                "edit_tokens": int(plans[ratio].on_grid(core.Grid.of_picture((size, size)), False).edit.sum()),
                "dense_seconds": whole,
                **{f"{part}_seconds": value for part, value in cost.items()},
                "steps": STEPS,
                "runs": runs,
                "paper_speedup": DIT_SPEEDUP[ratio],
            }
        )
    return entries


def bench(args: argparse.Namespace, scene: Any, environment: dict[str, Any]) -> int:
    """Measure `--models` (Flux.1 by default) at the largest of `--sizes`, and write."""
    entries = [entry for name in args.models or ["flux"] for entry in measure(name, max(args.sizes), args, scene)]
    record.write_json(args.out / "cached.json", {"environment": environment, "entries": entries})
    head = ["model", "px", "mask", "edit tokens", "dense s", "dense, kept", "low tokens", "cached"]
    head += [f"every {refresh}" for refresh in REFRESH] + ["paper, one step"]
    rows = [
        [
            entry["model"],
            str(entry["size"]),
            f"{entry['mask']:.2%}",
            f"{entry['edit_tokens']:,}",
            *(f"{entry[f'{part}_seconds']:.2f}" for part in ("dense", "capture", "before", "cached")),
            *(f"{run['speedup']:.2f}× ({run['dense_steps']} dense)" for run in entry["runs"].values()),
            f"{entry['paper_speedup']:.2f}×",
        ]
        for entry in entries
    ]
    clock = "process" if args.busy else "wall"
    text = f"""# Runs of {STEPS} steps with cached keys and values

{environment["time"]}, commit {environment["commit"]}, {environment["device"]} ({environment["processor"]},
{environment["threads"]} threads), {environment["dtype"]}, seconds of the {clock}.

Seconds of a call: dense; dense with its keys and values kept; with low tokens, before {CAPTURE:.0%} of the run; and
with cached keys and values. *every n*: the run of {STEPS} steps with a dense step every n, summed from these, over
{STEPS} dense steps. Few blocks, random weights.

"""
    (args.out / "cached.md").write_text(text + record.table(head, rows) + "\n", encoding="utf-8")
    print(record.table(head, rows))
    return 0
