"""Whole runs of a cached context on a real model's shape: what its calls of each sort cost, and so the run.

A run has few dense steps among many cached ones, and all calls of one sort cost the same; so they are measured in the
shortest run that has all sorts, and the run of 20 steps is their sum, as the context itself says which they are.
Writes cached.json and cached.md. Few blocks of the model, random weights."""

from __future__ import annotations

import argparse
import inspect
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from lab.bench import record
from lab.bench.calls import SORTS, Call, calls, shortest
from lab.bench.clock import MIB, Clock
from lab.bench.cost import KERNELS
from lab.bench.host import pack
from lab.bench.paper import DIT_SPEEDUP
from lab.bench.results import Bench, Content, Entry, Scene, common, host_model, in_order
from lab.bench.rows import ROWS
from lab.bench.shapes import SHAPES, HostModel

STEPS = 20
EDIT_REGION = "edit region alone"


@dataclass(frozen=True)
class Choice:
    """One of `--context`.

    Attributes:
        rows: of the quality bench, by their name in the report. They differ in nothing that changes what a call costs.
        preset: name of their plan's settings, "" for `--preset`.
    """

    rows: dict[str, str]
    preset: str = ""


CHOICES = {
    "cache": Choice({f"every {every}": f"cache_{every}_linear" for every in (5, 7, 9)}, EDIT_REGION),
    "rolling": Choice({"5 % a step": "rolling_5_ends"}, EDIT_REGION),
    "auto": Choice({"auto": "context_auto"}),
}


class ReusingModel(HostModel):
    """A timed model whose runs may share keys and values.

    Attributes:
        reuse: what they share, `None` for nothing.
        facts: of the last run.
    """

    reuse: Any = None
    facts: dict[str, Any]

    def patched(self, plan: Any, context: Any) -> Any:
        family = self.core().find_family(self.transformer)
        return pack("nodes.host").HiLoPatch(plan, family, context, reuse=self.reuse).apply(self.patcher)

    def run(self, size: int, calls: int, plan: Any = None, context: Any = None) -> list[float]:
        kind = pack("hilo_core.run").Run
        facts = kind.facts

        def kept(run: Any) -> dict[str, Any]:
            self.facts = facts(run)
            return self.facts

        with mock.patch.object(kind, "facts", kept):
            return super().run(size, calls, plan, context)


def within_the_nodes_limit(model: HostModel, context: str, **options: Any) -> Any:
    """A context with HiLo Patch Model's default limit of memory, cut to the share of the real model's blocks that are
    there: so keys and values live where the real model's would, in 8 bit or in CPU memory too."""
    limit = inspect.signature(pack("nodes.patch").HiLoPatchModel.execute).parameters["memory_limit"].default
    return model.core().make_context(context, **{"memory_limit": limit * model.share, **options})


class OperationsClock(Clock):
    """Tells floating-point operations in place of seconds."""

    def __init__(self, device: torch.device) -> None:
        super().__init__(device)
        self.counter = FlopCounterMode(display=False, custom_mapping=KERNELS)

    def now(self) -> float:
        return float(self.counter.get_total_flops())


@contextmanager
def counting(model: HostModel) -> Iterator[None]:
    """Inside the `with`, `model.run` returns operations."""
    clock = OperationsClock(model.clock.device)
    with mock.patch.object(model, "clock", clock), clock.counter:
        yield


class Trial:
    """A context on one plan: a run with nothing kept from before, and one after it.

    Args:
        model: that runs it.
        size: pixels a side.
        plan: a `TokenPlan`.
        contexts: by the name of their run; measured is the one that shows all sorts of calls first.

    Attributes:
        contexts: as given.
        grid: the plan on the model's grid.
        seconds, flops: of each sort of call.
        cache_mib, cache_place: keys and values that a run keeps at most, and where.
    """

    def __init__(self, model: ReusingModel, size: int, plan: Any, contexts: dict[str, Any]) -> None:
        self.model, self.size, self.plan, self.contexts = model, size, plan, contexts
        self.grid = plan.on_grid(model.core().Grid.of_picture((size, size)), False)
        if self.grid.dense:
            raise ValueError(f"at {size} px the tokens of this mask cover the picture; give --sizes a larger one")
        self.context, self.steps = shortest(tuple(contexts.values()), self.grid, STEPS)
        self.calls = calls(self.context, self.grid, self.steps)
        self.reuse = pack("hilo_core.contexts.reuse").Reuse()
        self.seconds: dict[str, list[float]] = defaultdict(list)
        self.flops: dict[str, list[float]] = defaultdict(list)
        with counting(model):
            self._run(self.calls.first, self.flops, self.reuse)
            self.cache_mib, self.cache_place = model.facts["cache_bytes"] / MIB, model.facts["cache_place"]
            self._run(self.calls.again, self.flops, self.reuse)

    def time(self) -> None:
        """One more round."""
        self._run(self.calls.first, self.seconds, None)
        self._run(self.calls.again, self.seconds, self.reuse)

    def _run(self, expected: list[Call], found: dict[str, list[float]], reuse: Any) -> None:
        self.model.reuse = reuse
        costs = self.model.run(self.size, self.steps, self.plan, self.context)
        facts, sorts = self.model.facts, [call.sort for call in expected]
        told = facts["dense_calls"], facts["reused_calls"]
        if told != (sorts.count("capture") + sorts.count("last"), sorts.count("reused")):
            raise RuntimeError(f"the run had {told} dense and reused calls; foreseen were {', '.join(sorts)}")
        for sort, cost in zip(sorts, costs, strict=True):
            found[sort].append(cost)

    def costs(self) -> dict[str, dict[str, float]]:
        """Tokens, and medians of seconds and operations, of each sort of call."""
        tokens = dict((*self.calls.again, *self.calls.first))
        return {
            sort: {
                "tokens": tokens[sort],
                "seconds": statistics.median(self.seconds[sort]),
                "flops": statistics.median(self.flops[sort]),
            }
            for sort in SORTS
            if sort in tokens
        }

    def runs(self, dense_seconds: float, dense_flops: float) -> list[Entry]:
        """The runs of `STEPS` steps, summed."""
        costs, found = self.costs(), []
        for title, context in self.contexts.items():
            whole = calls(context, self.grid, STEPS)
            for reused, own in ((False, whole.first), (True, whole.again)):
                counts = Counter(call.sort for call in own)
                seconds, flops = (
                    sum(count * costs[sort][unit] for sort, count in counts.items()) for unit in ("seconds", "flops")
                )
                found.append(
                    {
                        "title": title,
                        "reused": reused,
                        "calls": {sort: counts[sort] for sort in SORTS if sort in counts},
                        "measured_speedup": STEPS * dense_seconds / seconds,
                        "ideal_speedup": STEPS * dense_flops / flops,
                    }
                )
        return found


def measure(name: str, model: ReusingModel, args: argparse.Namespace, scene: Scene) -> list[Entry]:
    """The paper's three shares of a mask at the largest of `--sizes`."""
    size, core, choice = max(args.sizes), model.core(), CHOICES[args.context]
    contexts = {
        title: within_the_nodes_limit(model, ROWS[row].context, **ROWS[row].options)
        for title, row in choice.rows.items()
    }
    settings = core.PRESETS[args.preset]
    if choice.preset:
        settings = core.PlanSettings(**vars(ROWS[next(iter(choice.rows.values()))].settings))
    dense: list[float] = []
    with counting(model):
        dense_flops = model.run(size, 1)[0]
    trials = {
        ratio: Trial(model, size, core.make_plan(*scene(size, ratio), settings), contexts) for ratio in DIT_SPEEDUP
    }
    for _ in tqdm(range(args.rounds), desc=f"{model.title}, {args.context}", unit="round"):
        dense += model.run(size, 2)[1:]
        for trial in trials.values():
            trial.time()
    seconds = statistics.median(dense)
    return [
        {
            **common(model, args, size, ratio, preset=choice.preset),
            "tokens": trial.grid.grid.count,
            "edit_tokens": int(trial.grid.edit.sum()),
            "steps": STEPS,
            "dense_seconds": seconds,
            "dense_flops": dense_flops,
            "calls": trial.costs(),
            "runs": trial.runs(seconds, dense_flops),
            "cache_mib": trial.cache_mib,
            "cache_gb": trial.cache_mib * MIB / 1e9 / model.share,
            "cache_place": trial.cache_place,
            "paper_speedup": DIT_SPEEDUP[ratio],
        }
        for ratio, trial in trials.items()
    ]


def write(path: Path, content: Content) -> None:
    """The report."""
    lines = [
        f"# Runs of {STEPS} steps with cached keys and values\n",
        *record.provenance(content),
        f"\n{STEPS} dense steps over a run of {STEPS} steps, summed from its calls: *measured* in seconds, *counted* "
        "in operations. *reused*: the next run on the picture, which takes over the keys and values of the first one's "
        "dense calls. *cache*: the most that the context reports, times the real number of blocks, and where it lives "
        "under the nodes' default limit of memory. *paper*: of one step. Few blocks, random weights.\n",
        runs_table(in_order(content)),
        "Seconds of one call, the operations it spends of a dense one's in brackets:\n",
        *(f"- *{sort}*: {meaning}" for sort, meaning in SORTS.items()),
        "",
        calls_table(in_order(content)),
    ]
    path.write_text("\n".join(lines), encoding="utf-8")


def runs_table(entries: list[Entry]) -> str:
    """A line a run."""
    head = ["model", "on", "context, plan", "px", "mask", "run", "calls", "measured", "counted", "reused", "counted"]
    rows = []
    for entry in entries:
        again = {run["title"]: run for run in entry["runs"] if run["reused"]}
        for run in entry["runs"]:
            if run["reused"]:
                continue
            both = (run, again.get(run["title"], {}))
            rows.append(
                [
                    *_where(entry),
                    run["title"],
                    ", ".join(f"{count} {sort}" for sort, count in run["calls"].items()),
                    *(_number(one.get(f"{kind}_speedup"), "×") for one in both for kind in ("measured", "ideal")),
                    f"{entry['cache_gb']:.1f} GB, {entry['cache_place']}",
                    f"{entry['paper_speedup']:.2f}×",
                ]
            )
    return record.table([*head, "cache", "paper"], rows)


def calls_table(entries: list[Entry]) -> str:
    """A line an entry."""
    rows = []
    for entry in entries:
        cells = []
        for sort in SORTS:
            cost = entry["calls"].get(sort, {})
            share = cost["flops"] / entry["dense_flops"] if cost.get("flops") else None
            cells.append(_number(cost.get("seconds")) + (f" ({share:.0%})" if share else ""))
        rows.append([*_where(entry), f"{entry['edit_tokens']:,}", _number(entry["dense_seconds"]), *cells])
    return record.table(["model", "on", "context, plan", "px", "mask", "edit tokens", "dense", *SORTS], rows)


def _where(entry: Entry) -> list[str]:
    return [
        f"{entry['model']}, {entry['blocks']} blocks",
        f"{entry['device']}, {entry['dtype']}",
        f"{entry['context']}, {entry['preset']}",
        str(entry["size"]),
        f"{entry['mask']:.2%}",
    ]


def _number(value: float | None, unit: str = "") -> str:
    """A cell; a dash for what was not measured."""
    return "–" if value is None else f"{value:.2f}{unit}"


BENCH = Bench(
    "cached",
    tuple(SHAPES),
    measure,
    write,
    default=("flux",),
    make=partial(host_model, kind=ReusingModel),
    told=runs_table,
    contexts=tuple(CHOICES),
)
