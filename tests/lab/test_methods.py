"""The lab's glue for methods: on diffusers' Flux they compute what they do in ComfyUI, and their price is counted."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from hilo_core import make_context, make_method, make_plan
from hilo_core.methods.diffcr import Changes, Routers
from hilo_core.tuned import Tuned
from lab import sampling
from lab.autoencoder import build_autoencoder, export_autoencoder
from lab.bench import methods as calibration
from lab.bench.cases import held_out_case
from lab.bench.clock import Clock
from lab.bench.rows import ROWS
from lab.bench.runners import LabRunner
from lab.dit import diffcr_file, export_dit
from lab.hilo import Compressed

OTHERS = [name for name, row in ROWS.items() if row.method != "hilo" and not row.tuned]
# The others compute all of a picture of 128 px: a wide dilation, or slices rounded up to whole canvas rows.
SMALL = [name for name in OTHERS if name not in ("lazy_quality", "hilo_todo")]


@pytest.fixture(scope="module")
def runner(tiny_dit: Callable[..., Any]) -> LabRunner:
    torch.manual_seed(0)
    vae = build_autoencoder().eval().requires_grad_(False)
    return LabRunner(tiny_dit(single_blocks=2), vae, Clock(torch.device("cpu")), torch.float32)


def test_every_system_has_three_settings() -> None:
    for method in ("lazy", "todo", "sdtm", "diffcr"):
        assert len([name for name in OTHERS if ROWS[name].method == method]) == 3
    for method in ("hilo", "diffcr"):
        tuned = [row for row in ROWS.values() if row.tuned and row.method == method]
        assert len({(row.tuned, row.settings) for row in tuned}) == 3


@pytest.mark.parametrize("name", OTHERS)
def test_a_row_of_another_system(name: str, runner: LabRunner) -> None:
    case = held_out_case("small", 0, 128 if name in SMALL else 256)
    dense = runner.run(ROWS["dense"], case, 3, {})
    done = runner.run(ROWS[name], case, 3, {"dense": dense})
    assert done.flops < dense.flops, "it costs less"
    assert abs(done.raw - dense.raw)[case.mask].max() > 1e-5, "compressed is not dense"
    if ROWS[name].method == "todo":
        assert done.tokens == 1, "queries stay whole"
    else:
        assert done.tokens < 1
    again = runner.run(ROWS[name], case, 3, {"dense": dense})
    assert (again.raw == done.raw).all() and again.flops == done.flops


@pytest.mark.parametrize("name", ["sdtm", "diffcr"])
def test_higher_ratios_cost_less(name: str, runner: LabRunner) -> None:
    case = held_out_case("small", 0, 128)
    rows = [row for row in ROWS.values() if row.method == name and not row.tuned]
    costs = [runner.run(row, case, 3, {}).flops for row in rows]
    assert costs == sorted(costs, reverse=True) and len(set(costs)) == 3


@pytest.mark.parametrize("name", ["todo", "sdtm", "diffcr"])
def test_nothing_left_out_is_dense(name: str, tiny_dit: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    method = make_method(name, **({"stride": 1} if name == "todo" else {"ratio": 0.0}))
    monkeypatch.setattr(type(method), "idle", lambda self, plan: False)
    dit, rows = tiny_dit(single_blocks=2), 8
    plan = make_plan(torch.rand(1, 128, 128, 3), torch.nn.functional.pad(torch.ones(1, 32, 32), (32, 64, 32, 64)))
    source, noise = torch.randn(2, 1, 16, 16, 16)
    tokens, ids, sigma = torch.randn(1, 64, 384), sampling.grid_ids(rows, rows), torch.tensor([0.7])
    run = Compressed(plan, make_context("none"), method=method)
    predict = run.begin(source, noise)
    with torch.no_grad():
        dense = sampling.denoise(dit, tokens, ids, sigma)
        mine = predict(dit, tokens, ids, sigma)
    edit = run.grid_plan.edit
    torch.testing.assert_close(mine[:, edit], dense[:, edit], atol=1e-4, rtol=1e-4)
    assert all("forward" not in vars(block) for block in dit.single_transformer_blocks), "blocks are as they were"


def test_calibration_measures_what_a_layer_changes(
    tiny_dit: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dit = tiny_dit(single_blocks=2)
    with torch.no_grad():  # a layer that does nothing
        dit.single_transformer_blocks[1].proj_out.weight.zero_()
        dit.single_transformer_blocks[1].proj_out.bias.zero_()
    export_dit(dit.state_dict(), tmp_path / "dit.safetensors", torch.float32)
    torch.manual_seed(0)
    Tuned({}, routers=Routers(torch.zeros(3, 128), torch.zeros(3), torch.full((3, 8), 0.4))).save(
        tmp_path / diffcr_file(0.5)
    )
    export_autoencoder(build_autoencoder().state_dict(), tmp_path / "vae.safetensors")
    load = calibration.load_autoencoder
    monkeypatch.setattr(calibration, "load_autoencoder", lambda: load(tmp_path / "vae.safetensors"))
    options = {"pictures": 1, "size": 128, "steps": 2, "weights": tmp_path / "dit.safetensors",
               "out": tmp_path / "norms.json", "plot": tmp_path / "ratios.png",
               "learned": tmp_path / "learned.png"}  # fmt: skip
    assert calibration.main([part for key, value in options.items() for part in (f"--{key}", str(value))]) == 0
    norms = Changes.load(tmp_path / "norms.json").norms
    assert norms.shape == (3, 2, calibration.QUANTILES)
    assert (norms[:2] > 0.001).all() and not norms[2].any(), "the last layer changes nothing"
    assert (norms.diff(dim=-1) >= 0).all()
    assert (Changes(norms).ratios(0.3)[2] > 0.85).all(), "it is the one to pass by"
    assert (tmp_path / "ratios.png").stat().st_size > 1000 and (tmp_path / "learned.png").stat().st_size > 1000
    assert "held-out" in json.loads((tmp_path / "norms.json").read_text())["measured"]
