"""Whole runs of a cached context on a real model's shape: what its dense, first and cached calls cost, and so the run.

A run has few dense steps among many cached ones, and all of one sort cost the same; so a few calls of each are measured
and the run is their sum. Writes cached.json and cached.md. Few blocks of the model, random weights."""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path

from tqdm import tqdm

from lab.bench import record
from lab.bench.host import pack
from lab.bench.paper import DIT_SPEEDUP
from lab.bench.results import Bench, Content, Entry, Scene, common, in_order, provenance
from lab.bench.shapes import SHAPES, HostModel

STEPS = 20
CAPTURE = 0.1  # of the run is over before the first dense step, as on the node
REFRESH = (5, 7, 9)
CALLS = 5  # measured in one run: one before the capture, the dense one, and cached ones


def measure(name: str, model: HostModel, args: argparse.Namespace, scene: Scene) -> list[Entry]:
    """The paper's three shares of a mask at the largest of `--sizes`; all tokens outside the edit region are cached."""
    size, core = max(args.sizes), model.core()
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
                **common(model, args, size, ratio, context="cache", preset="edit region alone"),
                "edit_tokens": int(plans[ratio].on_grid(core.Grid.of_picture((size, size)), False).edit.sum()),
                "dense_seconds": whole,
                **{f"{part}_seconds": value for part, value in cost.items()},
                "steps": STEPS,
                "runs": runs,
                "paper_speedup": DIT_SPEEDUP[ratio],
            }
        )
    return entries


def write(path: Path, content: Content) -> None:
    """The report."""
    lines = [
        f"# Runs of {STEPS} steps with cached keys and values\n",
        *provenance(content),
        "\nSeconds of a call: dense; dense with its keys and values kept; with low tokens, before "
        f"{CAPTURE:.0%} of the run; and with cached keys and values. *every n*: the run of {STEPS} steps with a dense "
        f"step every n, summed from these, over {STEPS} dense steps. Few blocks, random weights.\n",
        table(in_order(content)),
    ]
    path.write_text("\n".join(lines), encoding="utf-8")


def table(entries: list[Entry]) -> str:
    """All entries."""
    head = ["model", "on", "px", "mask", "edit tokens", "dense s", "dense, kept", "low tokens", "cached"]
    head += [f"every {refresh}" for refresh in REFRESH] + ["paper, one step"]
    rows = [
        [
            f"{entry['model']}, {entry['blocks']} blocks",
            f"{entry['device']}, {entry['dtype']}",
            str(entry["size"]),
            f"{entry['mask']:.2%}",
            f"{entry['edit_tokens']:,}",
            *(f"{entry[f'{part}_seconds']:.2f}" for part in ("dense", "capture", "before", "cached")),
            *(f"{run['speedup']:.2f}× ({run['dense_steps']} dense)" for run in entry["runs"].values()),
            f"{entry['paper_speedup']:.2f}×",
        ]
        for entry in entries
    ]
    return record.table(head, rows)


BENCH = Bench("cached", tuple(SHAPES), measure, write, default=("flux",), told=table)
