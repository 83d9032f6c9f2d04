"""What packing the source picture's reference adds to an edit model: a step dense, with HiLo, and with HiLo on both.

Writes references.json and references.md. Few blocks of each model, random weights; all three in turn in one process."""

from __future__ import annotations

import argparse
import gc
import json
import statistics
from pathlib import Path
from typing import Any

from tqdm import tqdm

from lab.bench import record
from lab.bench.cost import count_flops
from lab.bench.shapes import EDITORS, HostModel
from lab.bench.speed_report import CLOCKS

GOAL = 1.5  # what packed references must add to a run at small masks


def measure(name: str, args: argparse.Namespace, scene: Any) -> list[dict[str, Any]]:
    """All sizes and ratios of one model of `EDITORS`.

    Args:
        name: its key.
        args: of `lab.speed`.
        scene: (size, ratio) -> picture and mask.
    """
    model = HostModel(EDITORS[name], args.clock, args.dtype)
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
                    "model": model.title,
                    "blocks": model.blocks,
                    "text_tokens": model.text,
                    "device": args.device.type,
                    "dtype": str(args.dtype).removeprefix("torch."),
                    "context": args.context,
                    "preset": args.preset,
                    "size": size,
                    "mask": ratio,
                    "tokens": grid.count,
                    "kept": min(plan.on_grid(grid, context.uses_low).tokens, grid.count),
                    "dense_seconds": medians["dense"],
                    "whole_seconds": medians[whole],
                    "packed_seconds": medians[packed],
                    "ideal_gain": flops[whole] / flops[packed],
                    "gain": medians[whole] / medians[packed],
                    "ideal_speedup": flops["dense"] / flops[packed],
                    "speedup": medians["dense"] / medians[packed],
                    "rounds": args.rounds,
                    "clock": "busy" if args.busy else "wall",
                }
            )
    return entries


def bench(args: argparse.Namespace, scene: Any, environment: dict[str, Any]) -> int:
    """Measure the models of `--models`, all by default, and write; entries measured before stay."""
    path = args.out / "references.json"
    content = json.loads(path.read_text()) if path.is_file() else {"environments": {}, "entries": []}
    known = {tuple(entry[part] for part in KEY): entry for entry in content["entries"]}
    for name in args.models or EDITORS:
        for entry in measure(name, args, scene):
            known[tuple(entry[part] for part in KEY)] = {**entry, "run": environment["time"]}
        gc.collect()
    used = {entry["run"] for entry in known.values()}
    environments = {**content["environments"], environment["time"]: environment}
    content = {
        "environments": {run: one for run, one in environments.items() if run in used},
        "entries": list(known.values()),
    }
    record.write_json(path, content)
    write(args.out / "references.md", content)
    print(f"written to {args.out}")
    return 0


KEY = ("model", "device", "dtype", "context", "preset", "size", "mask")


def write(path: Path, content: dict[str, Any]) -> None:
    """The report."""
    lines = [
        "# References of edit models\n",
        *(
            f"- {one['time']}: commit {one['commit']}, {one['device']} ({one['processor']}, {one['threads']} threads), "
            f"{CLOCKS[one['clock']]}"
            for one in content["environments"].values()
        ),
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
        for entry in sorted(content["entries"], key=lambda one: (one["model"], one["size"], one["mask"]))
    ]
    head = ["model", "device", "context", "px", "mask", "tokens", "dense s", "whole s", "packed s", "gain", "counted"]
    lines.append(record.table([*head, "speedup", "counted"], rows))
    path.write_text("\n".join(lines) + "\n")
