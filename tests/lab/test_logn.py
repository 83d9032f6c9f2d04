"""The bench of log n compares ways that give the same answer."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from lab.bench import logn

SHAPE = (2, 3, 40, 8, 32)
WEIGHT = 2.7725887  # log 16


@pytest.mark.parametrize("way", ["mask", "extra dimension", "merged", "repeated keys"])
def test_every_way_is_the_weighted_softmax(way: str) -> None:
    batch, heads, keys, low, channels = SHAPE
    q, k, v = torch.randn(3, batch, heads, keys + low, channels, generator=torch.Generator().manual_seed(1))
    truth = logn.exact(q, k, v, low, WEIGHT)
    answer = logn.WAYS[way](q, k, v, low, WEIGHT).double()
    torch.testing.assert_close(answer, truth, atol=2e-5, rtol=1e-4)
    assert (logn.without(q, k, v, low, WEIGHT) - truth).abs().max() > 0.1


def test_it_writes_what_it_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refusing(*_: object) -> torch.Tensor:
        raise RuntimeError("no such kernel\nand more")

    monkeypatch.setattr(logn, "SHAPES", {"tiny": SHAPE})
    monkeypatch.setitem(logn.WAYS, "FlexAttention", refusing)
    assert logn.main(["--device", "cpu", "--times", "1", "--out", str(tmp_path)]) == 0
    content = json.loads((tmp_path / "logn.json").read_text())
    assert content["shapes"]["tiny"]["mask"]["error"] < 0.02 < content["shapes"]["tiny"]["without log n"]["error"]
    page = (tmp_path / "logn.md").read_text()
    assert "| FlexAttention | refused | nan |" in page and "Refused: RuntimeError: no such kernel" in page
