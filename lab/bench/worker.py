"""One process's share of the quality bench: it holds a runner, takes cases and gives measurements."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Any

import torch

from lab import autoencoder, dit
from lab.bench.cases import Case, held_out_case
from lab.bench.clock import Clock
from lab.bench.metrics import measure
from lab.bench.rows import Row, chosen, running_order
from lab.bench.runners import LabRunner, Outcome, Runner


@dataclass(frozen=True)
class Part:
    """One size and number of steps.

    Attributes:
        size: side in pixels.
        steps: of the sampler.
        every: uses one case in so many.
        only: runs the rows with this mark alone, see `rows.chosen`.
        entrance: it tests the model and not the rows.
    """

    size: int
    steps: int
    every: int = 1
    only: str = ""
    entrance: bool = False


Job = tuple[Part, Case | Callable[[], Case]]  # drawn ones are drawn where they are painted
Results = list[dict[str, Any]]


class Worker:
    """Measures cases by all rows until the deadline of the run.

    Args:
        args: of the bench: `weights`, `host`, `device`, `dtype`, `busy`, `rows`, and `deadline`, a time of the day.

    Raises:
        FileNotFoundError: no weights, or no ComfyUI with `host`.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.runner = make_runner(args)
        # Warm up: the first calls of a process are slow.
        run_case(self.runner, chosen(["dense"]), held_out_case("medium", 0, args.parts[0].size), 2)

    def __call__(self, job: Job) -> Results | None:
        """Measurements of one case; None when the time is up."""
        if time.time() > self.args.deadline:
            return None
        part, case = job
        case = case() if callable(case) else case
        rows = chosen(None if part.entrance else self.args.rows, part.only)
        rows = {name: row for name, row in rows.items() if not row.tuned or (self.args.weights / row.tuned).is_file()}
        if self.args.host:
            rows = {name: row for name, row in rows.items() if row.node}
        return [{**result, "entrance": part.entrance} for result in run_case(self.runner, rows, case, part.steps)]


def make_runner(args: argparse.Namespace) -> Runner:
    """The lab's own runner, or with --host the one that goes through ComfyUI."""
    paths = args.weights / dit.WEIGHTS.name, args.weights / autoencoder.WEIGHTS.name
    clock = Clock(args.device, args.busy)
    if args.host:
        from lab.bench.host_runner import HostRunner

        return HostRunner(*paths, clock)
    model = dit.load_dit(paths[0], args.dtype).to(args.device)
    vae = autoencoder.load_autoencoder(paths[1], args.dtype).to(args.device, memory_format=torch.channels_last)
    return LabRunner(model, vae, clock, args.dtype, args.weights)


def run_case(runner: Runner, rows: dict[str, Row], case: Case, steps: int) -> Results:
    """Paint one case by every row and measure the results against the truth and against dense."""
    done: dict[str, Outcome] = {}
    for name in running_order(rows):
        done[name] = runner.run(rows[name], case, steps, done)
    return [
        {
            "row": name,
            "case": case.name,
            "kind": case.kind,
            "group": case.group,
            "share": float(case.mask.mean()),
            "size": max(case.mask.shape),
            "steps": steps,
            "tokens": done[name].tokens,
            "flops": done[name].flops,
            "seconds": done[name].seconds,
            **measure(done[name].raw, case.image, done["dense"].raw, case.mask),
        }
        for name in rows
    ]


def measurements(args: argparse.Namespace, jobs: Iterable[Job], workers: int) -> Iterator[Results | None]:
    """The measurements of all jobs in their order, shared out to processes of one thread each.

    A small model at a batch of one is bound by Python, so two processes do twice what two threads do.
    """
    if workers == 1:
        yield from map(Worker(args), jobs)
        return
    pool = ProcessPoolExecutor(workers, get_context("spawn"), _begin, (args,))
    try:
        yield from pool.map(_work, jobs)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


_worker: Worker | None = None


def _begin(args: argparse.Namespace) -> None:
    global _worker
    torch.set_num_threads(1)
    _worker = Worker(args)


def _work(job: Job) -> Results | None:
    assert _worker is not None
    return _worker(job)
