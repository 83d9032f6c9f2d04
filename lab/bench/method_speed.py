"""What the other systems of the papers save on shapes of real models: ToDo at 2048 px, SDTM and DiffCR on SD3's shapes.

`python -m lab.speed methods` writes methods.json and methods.md. Few blocks of each model, random weights."""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import torch
from torch.nn import functional as F
from tqdm import tqdm

from lab.bench import record
from lab.bench.clock import Clock
from lab.bench.host import pack
from lab.bench.results import Bench, Content, Entry, Scene, common, host_model
from lab.bench.rows import ROWS
from lab.bench.shapes import HostModel


@dataclass(frozen=True)
class Trial:
    """What is compared on one model.

    Attributes:
        rows: names in `lab.bench.rows.ROWS`, compared with dense.
        size: pixels a side.
        calls: model calls; a method that changes along the run needs several.
    """

    rows: tuple[str, ...]
    size: int
    calls: int


TRIALS: dict[str, Trial] = {
    "flux": Trial(("todo_paper", "todo_2", "todo_4"), 2048, 1),
    "sd35_medium": Trial(("sdtm_30", "sdtm_50", "sdtm_70", "diffcr_25", "diffcr_50", "diffcr_75"), 1024, 4),
}
PAPERS = {
    "todo": "ToDo: up to 4.5x at 2048 px, on a U-Net",
    "sdtm": "SDTM: 1.55x on SD3 and SD3.5",
    "diffcr": "DiffCR: up to 58 % fewer operations, trained",
}


class MethodModel(HostModel):
    """A timed model behind HiLo Patch Model with a method.

    Attributes:
        method: what is computed.
    """

    method: Any = None

    def patched(self, plan: Any, context: Any) -> Any:
        family = self.core().find_family(self.transformer)
        return pack("nodes.host").HiLoPatch(plan, family, context, method=self.method).apply(self.patcher)


@dataclass
class Attention:
    """Seconds in attention, and pairs of queries and keys, since it was made."""

    clock: Clock
    seconds: float = 0.0
    pairs: int = field(default=0)

    @contextmanager
    def watching(self) -> Iterator[Attention]:
        """Inside the `with` the kernel is timed."""
        original: Callable[..., Any] = F.scaled_dot_product_attention

        def timed(q: torch.Tensor, k: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
            started = self.clock.now()
            result = original(q, k, *args, **kwargs)
            self.seconds += self.clock.now() - started
            self.pairs += q.shape[:-1].numel() * k.shape[-2]
            return result

        with mock.patch.object(F, "scaled_dot_product_attention", timed):
            yield self


def method_of(row: str, core: ModuleType) -> Any:
    """The method of a row, with few blocks in mind: DiffCR passes by more tokens in some layers than in others, and the
    blocks that are timed are no fair sample of them, so each passes by what all layers do in the mean."""
    method = core.make_method(ROWS[row].method, **ROWS[row].options)
    if ROWS[row].method != "diffcr":
        return method

    class Even(type(method)):
        def at(self, depth: float, progress: float) -> float:
            return self.ratio

    return Even(method.ratio)


def measure(name: str, model: MethodModel, args: argparse.Namespace, scene: Scene) -> list[Entry]:
    """One model of `TRIALS` at the first of `--ratios`: dense and every row in turn."""
    trial, ratio, core = TRIALS[name], args.ratios[0], model.core()
    plan = core.make_plan(*scene(trial.size, ratio), core.PRESETS[args.preset])
    methods = {row: method_of(row, core) for row in trial.rows}

    def run(row: str, size: int = trial.size, plan: Any = plan) -> tuple[float, Attention]:
        model.method = methods.get(row)
        attention = Attention(args.clock)
        with attention.watching():
            known = (plan, core.Context()) if row in methods else (None, None)
            return statistics.mean(model.run(size, trial.calls, *known)), attention

    run("dense", 256)  # warms up
    steps: dict[str, list[float]] = {row: [] for row in ("dense", *trial.rows)}
    kernels: dict[str, list[Attention]] = {row: [] for row in steps}
    for _ in tqdm(range(args.rounds), desc=f"{model.title} {trial.size} px", unit="round"):
        for row in steps:
            seconds, attention = run(row)
            steps[row].append(seconds)
            kernels[row].append(attention)
    step = {row: statistics.median(values) for row, values in steps.items()}
    kernel = {row: statistics.median(one.seconds for one in values) / trial.calls for row, values in kernels.items()}
    return [
        {
            **common(model, args, trial.size, ratio, context="none"),
            "row": row,
            "title": ROWS[row].title,
            "calls": trial.calls,
            "dense_seconds": step["dense"],
            "seconds": step[row],
            "dense_attention_seconds": kernel["dense"],
            "attention_seconds": kernel[row],
            "pairs": kernels[row][0].pairs / kernels["dense"][0].pairs,
            "paper": PAPERS[ROWS[row].method],
        }
        for row in trial.rows
    ]


def write(path: Path, content: Content) -> None:
    """The report."""
    lines = [
        "# Speed of the other systems\n",
        *record.provenance(content),
        "\nOne model call through ComfyUI, dense and with the method in turn in one process, medians. *pairs*: queries "
        "times keys in attention, of the dense call's. A transformer spends a smaller part of its time in attention "
        "than the U-Net that ToDo was measured on, and its text tokens stay whole. DiffCR passes tokens by in some "
        "layers more than in others; these few blocks each pass by as many as all layers do in the mean, after a first "
        "call that computes everything. [All layers, by operations](quality_systems.md).\n",
    ]
    rows = [
        [
            f"{entry['model']}, blocks: {entry['blocks']}",
            f"{entry['device']}, {entry['dtype']}",
            entry["title"],
            str(entry["size"]),
            f"{entry['mask']:.2%}",
            f"{entry['pairs']:.2f}",
            f"{entry['dense_attention_seconds']:.2f}",
            f"{entry['attention_seconds']:.2f}",
            f"{entry['dense_attention_seconds'] / entry['attention_seconds']:.2f}",
            f"{entry['dense_seconds']:.2f}",
            f"{entry['seconds']:.2f}",
            f"{entry['dense_seconds'] / entry['seconds']:.2f}",
            str(entry["rounds"]),
            entry["paper"],
        ]
        for entry in content["entries"]
    ]
    header = ["model", "on", "method", "px", "mask", "pairs", "attention s, dense", "method", "speedup",
              "call s, dense", "method", "speedup", "rounds", "the paper"]  # fmt: skip
    path.write_text("\n".join([*lines, record.table(header, rows)]) + "\n")


BENCH = Bench(
    "methods",
    tuple(TRIALS),
    measure,
    write,
    make=partial(host_model, kind=MethodModel),
    key=("model", "device", "dtype", "row", "size", "mask"),
)
