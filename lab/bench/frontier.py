"""The frontier plot: quality over measured speed, every row, and the lines to beat."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

import matplotlib

from lab.bench.paper import PAPER
from lab.bench.rows import ROWS, Kind, Row
from lab.bench.verdict import LOWEST_DELTA_PSNR

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # the backend must be chosen first

Entry = dict[str, Any]

# One colour and marker for each thing a row shows the model of what it leaves out (Okabe and Ito's colours).
STYLES = {
    "dense, fewer steps": ("#000000", "o"),
    "crop": ("#999999", "s"),
    "edit region only": ("#56B4E9", "v"),
    "more tokens": ("#0072B2", "^"),
    "low tokens": ("#009E73", "D"),
    "cache": ("#E69F00", "P"),
    "rolling": ("#D55E00", "*"),
    "another method": ("#CC79A7", "X"),
}
RIVALS = ("dense, fewer steps", "crop")


def series(row: Row) -> str:
    """Which of `STYLES` a row belongs to."""
    if row.kind is Kind.DENSE:
        return "dense, fewer steps"
    if row.kind is Kind.CROP:
        return "crop"
    if getattr(row, "method", "hilo") not in ("hilo", "lazy"):
        return "another method"
    if row.context == "auto":
        return "rolling"
    for name in ("cache", "rolling", "low"):
        if name in row.context:
            return "low tokens" if name == "low" else name
    return "more tokens" if row.settings.detail else "edit region only"


def draw(rows: list[Entry], path: Path) -> None:
    """A panel for each size, number of steps and group of masks.

    Right is faster, measured in seconds of sampling; up is better. Bars are 95 % intervals, the green band is what
    passes, filled marks passed. The dotted line is the paper's speed with a model trained for it.
    """
    panels: dict[tuple[int, int, str], list[Entry]] = defaultdict(list)
    for row in rows:
        if row["row"] not in ("telea", "dense_other_seed") and row["row"] in ROWS:
            panels[row["size"], row["steps"], row["group"]].append(row)
    columns = min(3, len(panels))
    lines = -(-len(panels) // columns)
    figure, axes = plt.subplots(
        lines, columns, figsize=(5.2 * columns, 4.2 * lines), squeeze=False, layout="constrained"
    )
    for axis in axes.flat[len(panels) :]:
        axis.axis("off")
    for axis, ((size, steps, group), entries) in zip(axes.flat, panels.items(), strict=False):
        _panel(axis, entries)
        if group in PAPER:
            axis.axvline(PAPER[group].dit, color="black", linewidth=0.8, linestyle=":")
        axis.set_title(
            f"{size} px, {steps} steps, {group} masks ({entries[0]['share']:.1%}, n = {entries[0]['pictures']})"
        )
    found = {series(ROWS[row["row"]]) for entries in panels.values() for row in entries}
    handles = [
        plt.Line2D([], [], color=colour, marker=marker, linestyle="-" if name in RIVALS else "", label=name)
        for name, (colour, marker) in STYLES.items()
        if name in found
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=4, fontsize=9)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _panel(axis: Any, entries: list[Entry]) -> None:
    axis.axhspan(LOWEST_DELTA_PSNR, 100, color="#009E73", alpha=0.08)
    axis.axhline(0, color="black", linewidth=0.8)
    points: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for row in entries:
        name = series(ROWS[row["row"]])
        colour, marker = STYLES[name]
        speed = 1 / row["seconds_share"]
        points[name].append((speed, row["delta_psnr"]))
        axis.errorbar(
            speed, row["delta_psnr"], [[row["delta_psnr"] - row["low"]], [row["high"] - row["delta_psnr"]]],
            fmt=marker, color=colour, markerfacecolor=colour if row["passed"] or row["row"] == "dense" else "white",
            markersize=7, elinewidth=0.8, capsize=2,
        )  # fmt: skip
    for name in RIVALS:
        axis.plot(*zip(*sorted(points[name]), strict=True), color=STYLES[name][0], linewidth=1) if points[
            name
        ] else None
    lowest = min(row["low"] for row in entries)
    axis.set(
        xlabel="speed of sampling, measured, × dense", ylabel="PSNR in the mask over dense, dB",
        xscale="log", ylim=(max(lowest, -5) - 0.3, 0.9),
    )  # fmt: skip
    right = max(1 / row["seconds_share"] for row in entries)
    ticks = [tick for tick in (1, 1.5, 2, 3, 4, 6, 8, 12, 16) if tick <= right * 1.3]
    axis.set_xticks(ticks, [f"{tick:g}×" for tick in ticks])
    axis.minorticks_off()
    axis.grid(alpha=0.25)
