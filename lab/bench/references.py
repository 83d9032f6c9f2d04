"""What packing the source picture's reference adds to an edit model: a step dense, with HiLo, and with HiLo on both.

Writes references.json and references.md. Few blocks of each model, random weights; all three in turn in one process."""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path
from typing import Any

from tqdm import tqdm

from lab.bench import record
from lab.bench.cost import count_flops
from lab.bench.results import Bench, Content, Entry, Scene, common, in_order
from lab.bench.shapes import EDITORS, HostModel

GOAL = 1.5  # what packed references must add to a run at small masks


def measure(name: str, model: HostModel, args: argparse.Namespace, scene: Scene) -> list[Entry]:
    """All sizes and ratios of one model of `EDITORS`."""
    core = model.core()
    context = core.make_context(args.context)
    calls = 1 if args.context in ("none", "low") else 8
    entries = []
    for size in args.sizes:
        plans = {ratio: core.make_plan(*scene(size, ratio), core.PRESETS[args.preset]) for ratio in args.ratios}
        runs: dict[Any, tuple[Any, Any, bool]] = {"dense": (None, None, False)}
        for ratio, plan in plans.items():
            runs[ratio, "whole"], runs[ratio, "packed"] = (plan, context, False), (plan, context, True)

        def run(key: Any, size: int = size, runs: dict[Any, Any] = runs) -> float:
            plan, chosen, model.compress_references = runs[key]
            return statistics.mean(model.run(size, calls, plan, chosen))

        flops = {key: count_flops(lambda key=key: run(key)) / calls for key in runs}
        seconds: dict[Any, list[float]] = {key: [] for key in runs}
        for _ in tqdm(range(args.rounds), desc=f"{model.title} {size} px", unit="round"):
            for key in runs:
                seconds[key].append(run(key))
        medians = {key: statistics.median(values) for key, values in seconds.items()}
        for ratio, plan in plans.items():
            grid = core.Grid.of_picture((size, size), model.shape.cell, 16 // model.shape.cell)
            whole, packed = (ratio, "whole"), (ratio, "packed")
            entries.append(
                {
                    **common(model, args, size, ratio),
                    "tokens": grid.count,
                    "kept": min(plan.on_grid(grid, context.uses_low).tokens, grid.count),
                    "dense_seconds": medians["dense"],
                    "whole_seconds": medians[whole],
                    "packed_seconds": medians[packed],
                    "ideal_gain": flops[whole] / flops[packed],
                    "gain": medians[whole] / medians[packed],
                    "ideal_speedup": flops["dense"] / flops[packed],
                    "speedup": medians["dense"] / medians[packed],
                }
            )
    return entries


def write(path: Path, content: Content) -> None:
    """The report."""
    lines = [
        "# References of edit models\n",
        *record.provenance(content),
        "\nEdit models see the source picture as a reference, so their sequence is twice as long. One step: dense, "
        "with HiLo on the picture and the reference whole, with HiLo on both (`references` compress). *gain*: what "
        f"packing the reference adds, whole over packed, the goal is {GOAL} at small masks. *speedup*: dense over "
        "packed. *counted*: the same by operations. Few blocks, random weights.\n",
    ]
    rows = [
        [
            f"{entry['model']}, {entry['blocks']} blocks",
            f"{entry['device']}, {entry['dtype']}",
            f"{entry['context']}, {entry['preset']}",
            str(entry["size"]),
            f"{entry['mask']:.2%}",
            f"{entry['kept']:,} of {entry['tokens']:,}",
            *(f"{entry[f'{kind}_seconds']:.2f}" for kind in ("dense", "whole", "packed")),
            f"{entry['gain']:.2f}",
            f"{entry['ideal_gain']:.2f}",
            f"{entry['speedup']:.2f}",
            f"{entry['ideal_speedup']:.2f}",
        ]
        for entry in in_order(content)
    ]
    head = ["model", "device", "context", "px", "mask", "tokens", "dense s", "whole s", "packed s", "gain", "counted"]
    lines.append(record.table([*head, "speedup", "counted"], rows))
    path.write_text("\n".join(lines) + "\n")


BENCH = Bench("references", tuple(EDITORS), measure, write)
