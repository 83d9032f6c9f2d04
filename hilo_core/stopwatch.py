"""How long the model's calls take, without making a GPU wait."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import median
from time import perf_counter
from typing import Any

import torch


@dataclass
class Stopwatch:
    """Times of calls, by kind. On CUDA two events a call are recorded in its stream and read when someone asks."""

    seconds: dict[str, list[float]] = field(default_factory=dict)
    events: dict[str, list[tuple[Any, Any]]] = field(default_factory=dict)

    @contextmanager
    def time(self, kind: str, device: torch.device) -> Iterator[None]:
        """Time what happens inside; a call that raises is not counted.

        Args:
            kind: what the time is filed under.
            device: where the work is done.
        """
        if device.type == "cuda":
            stream = torch.cuda.current_stream(device)
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record(stream)
            yield
            end.record(stream)
            self.events.setdefault(kind, []).append((start, end))
        else:
            started = perf_counter()
            yield
            self.seconds.setdefault(kind, []).append(perf_counter() - started)

    def median(self, kind: str) -> float | None:
        """Median seconds of a call, ``None`` where there was none. Waits for calls that are still under way."""
        seconds = list(self.seconds.get(kind, ()))
        for start, end in self.events.get(kind, ()):
            end.synchronize()
            seconds.append(start.elapsed_time(end) / 1000)
        return median(seconds) if seconds else None
