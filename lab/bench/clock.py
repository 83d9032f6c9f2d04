"""Time and memory of single calls."""

from __future__ import annotations

import ctypes
import statistics
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any
from unittest import mock

import torch

MIB = 2**20


class Clock:
    """Reads the time when a device has finished its work.

    Args:
        device: where the work is.
        busy: count the seconds this process computes, over all its threads, instead of those on the wall: on a machine
            shared with other work that is the steadier measure of cost.
    """

    def __init__(self, device: torch.device, busy: bool = False) -> None:
        self.device, self.busy = device, busy

    def now(self) -> float:
        """Seconds from an arbitrary start."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.process_time() if self.busy else time.perf_counter()

    def seconds(self, function: Callable[[], Any]) -> float:
        """How long one call takes."""
        started = self.now()
        function()
        return self.now() - started

    def median(self, function: Callable[[], Any], repeats: int) -> float:
        """Median seconds of so many calls, after one that does not count."""
        function()
        return statistics.median(self.seconds(function) for _ in range(repeats))

    def peak_mib(self, function: Callable[[], Any]) -> float:
        """Memory in MiB that one call needs at its peak above what was in use before.

        On CUDA the allocator's own count; on a CPU the resident set, watched every few milliseconds, which misses what
        lives shorter and what the allocator had kept.
        """
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            before = torch.cuda.memory_allocated(self.device)
            function()
            return (torch.cuda.max_memory_allocated(self.device) - before) / MIB
        with suppress(OSError, AttributeError):  # give back what is free, so that it is counted when used again
            ctypes.CDLL("libc.so.6").malloc_trim(0)
        before = peak = resident()
        done = threading.Event()

        def watch() -> None:
            nonlocal peak
            while not done.wait(0.002):
                peak = max(peak, resident())

        watcher = threading.Thread(target=watch)
        watcher.start()
        try:
            function()
        finally:
            done.set()
            watcher.join()
        return (peak - before) / MIB


def resident() -> int:
    """Bytes of this process in memory; 0 where the system does not tell."""
    statm = Path("/proc/self/statm")
    return int(statm.read_text().split()[1]) * 4096 if statm.is_file() else 0


class Parts:
    """Adds up the time spent in named parts of a call."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.seconds: dict[str, float] = defaultdict(float)

    def timed(self, part: str, function: Callable) -> Callable:
        """The function, its time counted under `part`."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            started = self.clock.now()
            try:
                return function(*args, **kwargs)
            finally:
                self.seconds[part] += self.clock.now() - started

        return timed

    @contextmanager
    def watching(self, model: torch.nn.Module, places: list[tuple[str, Any, str]]) -> Iterator[Parts]:
        """Time a model's forward as the part "model", and the functions (part, owner, name) in `places`."""
        started: list[float] = []
        before = model.register_forward_pre_hook(lambda *_: started.append(self.clock.now()))

        def after(*_: Any) -> None:
            self.seconds["model"] += self.clock.now() - started.pop()

        done = model.register_forward_hook(after)
        with ExitStack() as stack:
            stack.callback(before.remove)
            stack.callback(done.remove)
            for part, owner, name in places:
                stack.enter_context(mock.patch.object(owner, name, self.timed(part, getattr(owner, name))))
            yield self
