"""speed.md and the plot."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import matplotlib

from lab.bench import record
from lab.bench.results import Content, Entry

matplotlib.use("Agg")
import matplotlib.pyplot as plt

GOAL = 0.95  # measured speedup over ideal
PLANNER_GOAL, PATCHING_GOAL = 0.060, 1.02


def write(path: Path, content: Content) -> None:
    """Write the report, and the plot beside it."""
    path.write_text(markdown(content), encoding="utf-8")
    if content.get("steps"):
        plot(content["steps"], path.with_suffix(".png"))


def panels(steps: list[Entry]) -> dict[tuple, list[Entry]]:
    """Entries by model, device, dtype and context, each sorted by size and mask."""
    found = defaultdict(list)
    for entry in sorted(steps, key=lambda entry: (entry["size"], entry["mask"])):
        found[entry["model"], entry["device"], entry["dtype"], entry["context"], entry["preset"]].append(entry)
    return found


def markdown(content: Content) -> str:
    """The whole report."""
    lines = [
        "# Speed bench\n",
        *record.provenance(content),
        "\nOne step of the transformer, dense and compressed in turn in one process, medians. *ideal*: counted "
        "operations of the dense step over the compressed one's, text tokens included. *efficiency*: measured over "
        f"ideal, the goal is {GOAL}; it is above 1 where an operation of attention takes longer than another, as on a "
        "CPU at many tokens, for the compressed step has less of it. Few blocks of each model, random weights: what "
        "HiLo adds a step is spread over fewer blocks than in the real model. Masks are scattered, grown by the "
        "preset's dilation.\n",
        "![Speedup](speed.png)\n",
    ]
    for (model, device, dtype, context, preset), entries in panels(content.get("steps", [])).items():
        lines += [
            f"\n## {model}, {device}, {dtype}, {preset}, context {context}\n\n{blocks(entries)}; "
            f"{entries[0]['text_tokens']} text tokens\n",
            record.table(
                ["px", "mask", "tokens", "dense s", "HiLo s", "ideal", "measured", "efficiency", "planner ms",
                 "peak MiB dense", "HiLo", "pack ms", "override", "model", "unpack", "rest"],
                [line(entry) for entry in entries],
            ),
        ]  # fmt: skip
    if content.get("overhead"):
        lines += ["\n## What HiLo costs where it saves nothing\n", overhead_lines(content["overhead"])]
    return "\n".join(lines) + "\n"


def blocks(entries: list[Entry]) -> str:
    """How much of the model was timed, at which sizes."""
    sizes = defaultdict(list)
    for entry in entries:
        if str(entry["size"]) not in sizes[entry["blocks"]]:
            sizes[entry["blocks"]].append(str(entry["size"]))
    return "; ".join(f"blocks at {', '.join(at)} px: {some}" for some, at in sizes.items())


def line(entry: Entry) -> list[str]:
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


def overhead_line(entry: Entry) -> str:
    """The overhead of one device as a list item."""
    low, high = entry["patched_over_dense_quartiles"]
    return (
        f"- {entry['device']}: planner at {entry['planner_size']} px {entry['planner_seconds'] * 1e3:.0f} ms, "
        f"with preview {entry['planner_with_preview_seconds'] * 1e3:.0f} ms (goal {PLANNER_GOAL * 1e3:.0f}); "
        f"patching a run of {entry['model']} that keeps everything at {entry['patched_size']} px: "
        f"{entry['patched_over_dense'] - 1:+.1%} (quartiles {low - 1:+.1%} to {high - 1:+.1%}, "
        f"{entry['rounds']} pairs, goal {PATCHING_GOAL - 1:+.0%})"
    )


def short(steps: list[Entry]) -> str:
    """What the terminal shows of steps."""
    return "\n".join(
        f"{entry['model']:24} {entry['size']:5} px {entry['mask']:6.1%}  "
        f"kept {entry['kept']:6,} of {entry['tokens']:6,}  ideal {entry['ideal_speedup']:5.2f}  "
        f"measured {entry['measured_speedup']:5.2f}  efficiency {entry['efficiency']:.2f}"
        for entry in steps
    )


def overhead_lines(overhead: list[Entry]) -> str:
    """The overhead of every device as a list."""
    return "\n".join(map(overhead_line, overhead))


def plot(steps: list[Entry], path: Path) -> None:
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
