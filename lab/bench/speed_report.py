"""speed.json, speed.md and the plot."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import matplotlib

from lab.bench import record

matplotlib.use("Agg")
import matplotlib.pyplot as plt

Entries = list[dict[str, Any]]

# What makes two entries the same measurement.
STEP_KEY = ("model", "device", "dtype", "context", "preset", "size", "mask")
OVERHEAD_KEY = ("model", "device", "dtype")
CLOCKS = {"wall": "seconds on the wall", "busy": "seconds of the process, on a machine shared with other work"}
GOAL = 0.95  # measured speedup over ideal
PLANNER_GOAL, PATCHING_GOAL = 0.060, 1.02


def merge(path: Path, environment: dict[str, Any], steps: Entries, overhead: Entries) -> dict[str, Any]:
    """The file's content with new entries in place of the ones they repeat; each keeps where it was measured.

    A bench of minutes can so be measured in pieces, a model or a device at a time.
    """
    old = json.loads(path.read_text()) if path.is_file() else {"environments": {}, "steps": [], "overhead": []}
    run = environment["time"]
    content: dict[str, Any] = {"environments": {**old["environments"], run: environment}}
    for name, key, new in (("steps", STEP_KEY, steps), ("overhead", OVERHEAD_KEY, overhead)):
        known = {tuple(entry[part] for part in key): entry for entry in old[name]}
        known |= {tuple(entry[part] for part in key): {**entry, "run": run} for entry in new}
        content[name] = list(known.values())
    used = {entry["run"] for name in ("steps", "overhead") for entry in content[name]}
    content["environments"] = {run: entry for run, entry in content["environments"].items() if run in used}
    return content


def write(folder: Path, content: dict[str, Any]) -> None:
    """Write speed.json, speed.md and speed.png into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    record.write_json(folder / "speed.json", content)
    (folder / "speed.md").write_text(markdown(content))
    if content["steps"]:
        plot(content["steps"], folder / "speed.png")


def panels(steps: Entries) -> dict[tuple, Entries]:
    """Entries by model, device, dtype and context, each sorted by size and mask."""
    found = defaultdict(list)
    for entry in sorted(steps, key=lambda entry: (entry["size"], entry["mask"])):
        found[entry["model"], entry["device"], entry["dtype"], entry["context"], entry["preset"]].append(entry)
    return found


def markdown(content: dict[str, Any]) -> str:
    """The whole report."""
    lines = ["# Speed bench\n"]
    for environment in content["environments"].values():
        lines.append(
            f"- {environment['time']}: commit {environment['commit']}, {environment['device']} "
            f"({environment['processor']}, {environment['threads']} threads), torch "
            f"{environment['versions'].get('torch', '?')}, {CLOCKS[environment['clock']]}"
        )
    lines += [
        "\nOne step of the transformer, dense and compressed in turn in one process, medians. *ideal*: counted "
        "operations of the dense step over the compressed one's, text tokens included. *efficiency*: measured over "
        f"ideal, the goal is {GOAL}. Few blocks of each model, random weights: what HiLo adds a step is spread over "
        "fewer blocks than in the real model. Masks are scattered, grown by the preset's dilation.\n",
        "![Speedup](speed.png)\n",
    ]
    for (model, device, dtype, context, preset), entries in panels(content["steps"]).items():
        lines += [
            f"\n## {model}, {device}, {dtype}, {preset}, context {context}\n\n{entries[0]['blocks']} blocks, "
            f"{entries[0]['text_tokens']} text tokens\n",
            record.table(
                ["px", "mask", "tokens", "dense s", "HiLo s", "ideal", "measured", "efficiency", "planner ms",
                 "peak MiB dense", "HiLo", "pack ms", "override", "model", "unpack", "rest"],
                [line(entry) for entry in entries],
            ),
        ]  # fmt: skip
    if content["overhead"]:
        lines += ["\n## What HiLo costs where it saves nothing\n", *(overhead_line(e) for e in content["overhead"])]
    return "\n".join(lines) + "\n"


def line(entry: dict[str, Any]) -> list[str]:
    """One row of a table."""
    return [
        str(entry["size"]),
        f"{entry['mask']:.2%}",
        f"{entry['kept']:,} of {entry['tokens']:,}",
        f"{entry['dense_seconds']:.3f}",
        f"{entry['hilo_seconds']:.3f}",
        f"{entry['ideal_speedup']:.2f}",
        f"{entry['measured_speedup']:.2f}",
        f"{entry['efficiency']:.2f}",
        f"{entry['planner_seconds'] * 1e3:.0f}",
        f"{entry['dense_peak_mib']:.0f}",
        f"{entry['hilo_peak_mib']:.0f}",
        *(f"{entry['parts'][part] * 1e3:.1f}" for part in ("pack", "override", "model", "unpack", "rest")),
    ]


def overhead_line(entry: dict[str, Any]) -> str:
    """The overhead of one device as a list item."""
    low, high = entry["patched_over_dense_quartiles"]
    return (
        f"- {entry['device']}: planner at {entry['planner_size']} px {entry['planner_seconds'] * 1e3:.0f} ms, "
        f"with preview {entry['planner_with_preview_seconds'] * 1e3:.0f} ms (goal {PLANNER_GOAL * 1e3:.0f}); "
        f"patching a run of {entry['model']} that keeps everything at {entry['patched_size']} px: "
        f"{entry['patched_over_dense'] - 1:+.1%} (quartiles {low - 1:+.1%} to {high - 1:+.1%}, "
        f"{entry['rounds']} pairs, goal {PATCHING_GOAL - 1:+.0%})"
    )


def short(steps: Entries, overhead: Entries) -> str:
    """What the terminal shows."""
    shown = [
        f"{entry['model']:24} {entry['size']:5} px {entry['mask']:6.1%}  "
        f"kept {entry['kept']:6,} of {entry['tokens']:6,}  ideal {entry['ideal_speedup']:5.2f}  "
        f"measured {entry['measured_speedup']:5.2f}  efficiency {entry['efficiency']:.2f}"
        for entry in steps
    ]
    return "\n".join([*shown, *map(overhead_line, overhead)])


def plot(steps: Entries, path: Path) -> None:
    """Measured and ideal speedup over the masked share, a panel a model."""
    found = panels(steps)
    columns = min(4, len(found))
    lines = -(-len(found) // columns)
    figure, axes = plt.subplots(lines, columns, figsize=(4 * columns, 3.6 * lines), squeeze=False, layout="constrained")
    for axis in axes.flat[len(found) :]:
        axis.axis("off")
    for axis, ((model, device, dtype, context, preset), entries) in zip(axes.flat, found.items(), strict=False):
        for place, size in enumerate(sorted({entry["size"] for entry in entries})):
            own = [entry for entry in entries if entry["size"] == size]
            masks = [entry["mask"] * 100 for entry in own]
            colour = f"C{place}"
            axis.plot(masks, [entry["ideal_speedup"] for entry in own], "--", color=colour, linewidth=1)
            axis.plot(masks, [entry["measured_speedup"] for entry in own], "o-", color=colour, label=f"{size} px")
        axis.axhline(1, color="black", linewidth=0.8)
        axis.set(title=f"{model}\n{device}, {dtype}, {preset}, {context}", xlabel="masked, %", ylabel="speedup a step")
        axis.legend(title="dashed: ideal", fontsize=8)
        axis.grid(alpha=0.25)
    figure.savefig(path, dpi=110)
    plt.close(figure)
