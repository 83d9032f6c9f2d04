"""What both trainings share: a clock, checkpoints to resume from, a loss file and its curve."""

from __future__ import annotations

import csv
import math
import time
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # the backend must be chosen first

RUNS = Path(__file__).parent / "runs"


class Run:
    """One training run in its own folder, limited by wall-clock minutes that add up over resumes.

    Args:
        name: folder below `lab/runs`.
        minutes: length of the whole run; the learning rate follows it from warm-up to zero.
        resume: go on from the folder's checkpoint when there is one; otherwise start afresh.
    """

    def __init__(self, name: str, minutes: float, resume: bool) -> None:
        self.folder = RUNS / name
        self.folder.mkdir(parents=True, exist_ok=True)
        self.name, self.seconds = name, minutes * 60
        self.step, self.elapsed = 0, 0.0
        self.checkpoint = self.folder / "checkpoint.pt"
        self._parts: dict[str, Any] = {}
        self._restored: dict[str, Any] = {}
        if resume and self.checkpoint.is_file():
            self._restored = torch.load(self.checkpoint, map_location="cpu", weights_only=True)
            self.step, self.elapsed = self._restored["step"], self._restored["elapsed"]
        else:
            for old in self.folder.glob("*.csv"):
                old.unlink()
        self._recent: list[dict[str, float]] = []
        self._tick = time.monotonic()
        self.bar = tqdm(total=round(self.seconds), initial=round(self.elapsed), unit="s", desc=name)

    @property
    def progress(self) -> float:
        """0 at the start, 1 when the time is used up."""
        return min(1.0, self.elapsed / self.seconds)

    def rate(self, warm_up: int = 200) -> float:
        """Factor on the learning rate: a linear warm-up in steps, then a cosine to 1 % over the run's time."""
        return min(1.0, (self.step + 1) / warm_up) * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * self.progress)))

    def advance(self) -> bool:
        """Count one step and its time; False when the run is over."""
        now = time.monotonic()
        self.elapsed += now - self._tick
        self._tick = now
        self.step += 1
        self.bar.update(min(round(self.elapsed), self.bar.total) - self.bar.n)
        return self.elapsed < self.seconds

    def log(self, **values: float) -> None:
        """Note this step's values; every 20 steps append their means to loss.csv and to the progress bar."""
        self._recent.append(values)
        if self.step % 20:
            return
        values = {key: float(np.mean([past[key] for past in self._recent])) for key in values}
        self._recent.clear()
        self.append("loss.csv", values)
        self.bar.set_postfix({k: f"{v:.4g}" for k, v in values.items()})

    def append(self, name: str, values: dict[str, float]) -> None:
        """Add one line of values, with step and minutes, to a table in the run's folder."""
        row = {"step": self.step, "minutes": round(self.elapsed / 60, 3), **{k: round(v, 6) for k, v in values.items()}}
        table = self.folder / name
        fresh = not table.exists()
        with table.open("a", newline="") as file:
            writer = csv.DictWriter(file, row)
            if fresh:
                writer.writeheader()
            writer.writerow(row)

    def keep(self, **parts: Any) -> None:
        """Name what `save` writes, each with `state_dict` and `load_state_dict`; a resumed run's go on from there."""
        for name, part in parts.items() if self._restored else ():
            part.load_state_dict(self._restored[name])
        self._parts, self._restored = parts, {}

    def save(self) -> None:
        """Write the checkpoint and the curves; an interruption leaves the previous checkpoint whole."""
        state = {name: part.state_dict() for name, part in self._parts.items()}
        unfinished = self.checkpoint.with_suffix(".part")
        torch.save({"step": self.step, "elapsed": self.elapsed, **state}, unfinished)
        unfinished.replace(self.checkpoint)
        plot_curves(self.folder)

    def sheet(self, rows: list[Tensor]) -> None:
        """Write sample.png: each row of pictures (B, 3, H, W) in 0..1 side by side, the rows below each other."""
        strips = [torch.cat(list(row.float().cpu().clamp(0, 1)), dim=-1) for row in rows]
        pixels = torch.cat(strips, dim=-2).permute(1, 2, 0).mul(255).round().numpy().astype(np.uint8)
        Image.fromarray(pixels).save(self.folder / "sample.png")


def plot_curves(folder: Path) -> None:
    """Draw every table of a run's folder against its minutes, one panel a table, into curves.png."""
    tables = {path.stem: list(csv.DictReader(path.open())) for path in sorted(folder.glob("*.csv"), reverse=True)}
    tables = {name: rows for name, rows in tables.items() if rows}
    if not tables:
        return
    figure, axes = plt.subplots(1, len(tables), figsize=(6 * len(tables), 4), squeeze=False, layout="constrained")
    for axis, (name, rows) in zip(axes[0], tables.items(), strict=True):
        for column in [column for column in rows[0] if column not in ("step", "minutes")]:
            axis.plot(
                [float(row["minutes"]) for row in rows], [float(row[column]) for row in rows], linewidth=1, label=column
            )
        axis.set(xlabel="minutes", title=f"{folder.name}: {name}", yscale="log" if name == "loss" else "linear")
        axis.grid(alpha=0.3)
        axis.legend(fontsize="small")
    figure.savefig(folder / "curves.png", dpi=80)
    plt.close(figure)
