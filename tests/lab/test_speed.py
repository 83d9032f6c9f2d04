"""The speed bench: its clock, its parts and its files; the model is diffusers' Flux class, small."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
import torch

import hilo_core
from lab import speed
from lab.bench.calls import calls, shortest
from lab.bench.clock import Clock, Parts
from lab.bench.record import merge, provenance, read_json
from lab.bench.results import KEY

CPU = torch.device("cpu")


@pytest.mark.parametrize("ratio", [0.02, 0.1592, 0.6])
def test_a_scene_masks_its_share(ratio: float) -> None:
    image, mask = speed.scene(256, ratio)
    assert image.shape == (1, 256, 256, 3) and image.min() >= 0 and image.max() <= 1
    assert mask.mean() == pytest.approx(ratio, abs=1 / 256**2)


def test_the_busy_clock_does_not_count_waiting() -> None:
    wall, busy = Clock(CPU), Clock(CPU, busy=True)
    assert wall.seconds(lambda: time.sleep(0.05)) >= 0.05
    assert busy.seconds(lambda: time.sleep(0.05)) < 0.04


def test_the_peak_is_what_a_call_needs() -> None:
    def hold(mib: int) -> None:
        held = torch.ones(mib, 2**18)
        time.sleep(0.05)
        del held

    assert Clock(CPU).peak_mib(lambda: hold(200)) == pytest.approx(200, abs=60)


def test_parts_are_told_apart() -> None:
    class Owner:
        def work(self) -> None:
            time.sleep(0.02)

    class Model(torch.nn.Module):
        def forward(self) -> None:
            time.sleep(0.05)

    owner, model, parts = Owner(), Model(), Parts(Clock(CPU))
    with parts.watching(model, [("pack", Owner, "work")]):
        model()
        owner.work()
    owner.work(), model()
    assert parts.seconds["model"] == pytest.approx(0.05, abs=0.03)
    assert parts.seconds["pack"] == pytest.approx(0.02, abs=0.015)
    shares = speed.split({"pack": 0.2, "model": 1.0, "override": 0.1}, 1.5, 1)
    assert shares == pytest.approx({"pack": 0.2, "override": 0.1, "model": 0.9, "unpack": 0, "rest": 0.3})


def test_a_whole_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--models", "lab", "--heads", "1", "--device", "cpu", "--dtype", "float32", "--out", str(tmp_path)]
    small = ["--sizes", "256", "--ratios", "0.02", "0.3", "--rounds", "2"]
    assert speed.main([*options, *small]) == 0
    content = json.loads((tmp_path / "speed.json").read_text())
    little, much = content["steps"]
    assert little["kept"] < much["kept"] <= 256 == little["tokens"]
    assert little["ideal_speedup"] > much["ideal_speedup"] >= 1
    for entry in (little, much):
        assert entry["measured_speedup"] == pytest.approx(entry["dense_seconds"] / entry["hilo_seconds"], rel=1e-4)
        assert entry["efficiency"] == pytest.approx(entry["measured_speedup"] / entry["ideal_speedup"], rel=1e-4)
        assert entry["run"] in content["environments"]
        assert entry["parts"]["pack"] > 0 and entry["parts"]["unpack"] > 0 and entry["parts"]["model"] > 0
    assert (tmp_path / "speed.png").is_file() and "Flux.1 Fill" in (tmp_path / "speed.md").read_text()
    assert "efficiency" in capsys.readouterr().out

    assert speed.main(["overhead", *options, "--rounds", "2"]) == 0
    content = json.loads((tmp_path / "speed.json").read_text())
    assert len(content["steps"]) == 2, "measured before, and kept"
    (entry,) = content["overhead"]
    assert entry["planner_seconds"] > 0 and entry["planner_with_preview_seconds"] > 0
    assert entry["patched_over_dense"] > 0


def test_new_measurements_replace_old_ones(tmp_path: Path) -> None:
    def entry(size: int, seconds: float) -> dict:
        key = dict(model="m", device="cpu", dtype="float32", context="low", preset="fast", mask=0.1)
        return {**key, "size": size, "dense_seconds": seconds}

    path = tmp_path / "speed.json"
    first = merge(read_json(path), {"time": "1"}, "steps", KEY, [entry(512, 1.0), entry(1024, 4.0)])
    path.write_text(json.dumps(first))
    second = merge(read_json(path), {"time": "2"}, "steps", KEY, [entry(1024, 3.0)])
    assert {(e["size"], e["dense_seconds"], e["run"]) for e in second["steps"]} == {(512, 1.0, "1"), (1024, 3.0, "2")}
    path.write_text(json.dumps(second))
    third = merge(read_json(path), {"time": "3"}, "steps", KEY, [entry(512, 2.0)])
    assert set(third["environments"]) == {"2", "3"}, "a run nothing is left of is forgotten"


def test_a_page_says_once_where_its_figures_come_from() -> None:
    here = {"device": "cpu", "processor": "P", "threads": 1, "versions": {"torch": "2"}, "clock": "busy"}
    times = ("2026-11-20T20:06:46", "a+"), ("2026-11-26T02:16:21", "b"), ("2026-11-26T03:00:00", "b")
    runs = {time: {**here, "time": time, "commit": commit} for time, commit in times}
    first, second = provenance({"environments": {**runs, "gpu": {**runs[times[1][0]], "device": "H200"}}})
    assert first.startswith("- cpu (P, 1 threads), torch 2, seconds of the process")
    assert first.endswith(": 3 runs, 2026-11-20 to 2026-11-26, commits a+, b")
    assert second.startswith("- H200") and second.endswith(": 1 run, 2026-11-26, commit b")


def sorts(run: list) -> list[str]:
    return [call.sort for call in run]


def test_a_context_tells_its_calls() -> None:
    plan = hilo_core.make_plan(*speed.scene(512, 0.05)).on_grid(hilo_core.Grid.of_picture((512, 512)), False)
    cache = hilo_core.make_context("cache", refresh=3)
    first, again = calls(cache, plan, 5)
    assert sorts(first) == ["capture", "cached", "cached", "capture", "cached"]
    assert sorts(again) == ["reused", "cached", "cached", "reused", "cached"]
    assert [call.tokens for call in first] == [1024, plan.tokens, plan.tokens, 1024, plan.tokens]
    assert shortest([cache], plan, 20) == (cache, 2)

    auto = hilo_core.make_context("auto")
    context, steps = shortest([auto], plan, 20)
    assert sorts(calls(context, plan, steps).first) == ["capture", "cached", "last"]
    assert "forecast" in calls(context, plan, steps).sorts, "in the run that takes over the first one's keys and values"
    assert sorts(calls(auto, plan, 5).first) == ["capture", "cached", "forecast", "forecast", "last"]
    slices = {call.tokens for call in calls(auto, plan, 20).first if call.sort in ("cached", "forecast")}
    assert len(slices) == 1 and min(slices) >= plan.tokens + 0.05 * (1024 - plan.tokens)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--sizes", "100"], "multiple of 16"),
        (["--ratios", "1.5"], "between 0 and 1"),
        (["--rounds", "1"], "2 or more"),
        (["methods", "--models", "z_image"], "methods measures flux, sd35_medium"),
        (["cached", "--context", "low"], "cached measures cache, rolling, auto"),
    ],
)
def test_bad_options_are_one_sentence(options: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        speed.main(options)
    assert message in capsys.readouterr().err
