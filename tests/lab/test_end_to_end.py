"""The end-to-end bench's own arithmetic, without a model of any size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from lab.bench import end_to_end


class Ticks:
    """A clock that a block's forward moves on."""

    def __init__(self) -> None:
        self.time = 0.0

    def now(self) -> float:
        return self.time


class Block(torch.nn.Module):
    def __init__(self, clock: Ticks, seconds: float) -> None:
        super().__init__()
        self.clock, self.seconds = clock, seconds

    def forward(self) -> None:
        self.clock.time += self.seconds


class Model:
    """One double block of 2 s and two single ones of 3 s, and 1 s of everything else."""

    def __init__(self) -> None:
        self.clock = Ticks()
        self.transformer: Any = torch.nn.Module()
        self.transformer.double_blocks = torch.nn.ModuleList([Block(self.clock, 2.0)])
        self.transformer.single_blocks = torch.nn.ModuleList([Block(self.clock, 3.0), Block(self.clock, 3.0)])

    def run(self, size: int, calls: int, *run: Any) -> list[float]:
        seconds = []
        for _ in range(calls):
            started = self.clock.now()
            for block in [*self.transformer.double_blocks, *self.transformer.single_blocks]:
                block()
            self.clock.time += 1.0
            seconds.append(self.clock.now() - started)
        return seconds


def test_a_step_is_scaled_to_the_real_number_of_blocks() -> None:
    model: Any = Model()
    whole = end_to_end.step_seconds(model, {"double_blocks": 19, "single_blocks": 38}, 512, 2)
    assert whole == pytest.approx(19 * 2 + 38 * 3 + 1)
    assert not model.transformer.double_blocks[0]._forward_hooks, "hooks go when the measurement does"


def test_the_report_holds_every_entry(tmp_path: Path) -> None:
    entry = dict(
        model="M", blocks="1 of 2", autoencoder="A", device="cpu", dtype="float32", context="low", preset="balanced",
        size=512, mask=0.0638, dense_step=10.0, dense_decode=5.0, dense_decode_peak_mib=900.0,
        decode_peak_mib=300.0, parts=dict(encode=2.0, plan=0.03, steps=32.0, decode=2.5, paste=0.01), speedup=2.38,
    )  # fmt: skip
    environment = dict(time="t", commit="c", device="cpu", processor="p", threads=1, clock="busy")
    end_to_end.write(tmp_path / "r.md", {"environments": {"t": environment}, "entries": [entry]})
    text = (tmp_path / "r.md").read_text()
    assert "80 / 32" in text and "**2.38**" in text and "1.77" in text and "900 / 300" in text
