"""Both benches through a real ComfyUI, each in a process of its own, because a process can hold only one ComfyUI."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lab.autoencoder import build_autoencoder, export_autoencoder
from lab.comfyui.find import find_hosts
from lab.dit import build_dit, export_dit
from lab.environment import ROOT

pytestmark = pytest.mark.skipif(not find_hosts(), reason="no ComfyUI was found")

TINY_STEP = """
import torch
from lab import speed
from lab.bench.shapes import Shape, SHAPES
SHAPES["flux"] = Shape(
    "tiny", "Flux", dict(SHAPES["flux"].unet, hidden_size=128, num_heads=1, vec_in_dim=32, context_in_dim=48),
    "{depth} and {depth_single_blocks}", ("depth", "depth_single_blocks"), text=12, text_width=48, pooled_width=32,
)
raise SystemExit(speed.main())
"""


def run(command: list[str]) -> str:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


def test_quality_through_the_nodes(tmp_path: Path) -> None:
    torch.manual_seed(0)
    dit = build_dit(1, 1, 1)
    with torch.no_grad():
        dit.proj_out.weight.normal_(0, 0.05)
    export_dit(dit.state_dict(), tmp_path / "hilo_lab_fill.safetensors")
    export_autoencoder(build_autoencoder().state_dict(), tmp_path / "hilo_lab_vae.safetensors")
    size = ["--size", "128", "--steps", "2", "--pictures", "1"]
    rows = ["--rows", "hilo_fast", "context_cache", "edit_only"]
    where = ["--weights", str(tmp_path), "--out", str(tmp_path), "--device", "cpu"]
    run([sys.executable, "-m", "lab.quality", "--host", *size, *rows, *where])
    content = json.loads((tmp_path / "quality_host.json").read_text())
    (environment,) = content["environments"].values()
    assert environment["host"]
    small = {row["row"]: row for row in content["rows"] if row["group"] == "small"}
    assert set(small) == {"dense", "hilo_fast", "context_cache"}, "edit_only is not a node's choice"
    assert small["dense"]["tokens"] == 1
    assert small["hilo_fast"]["tokens"] == pytest.approx(0.5), "32 of 64 tokens is the smallest canvas"
    assert small["hilo_fast"]["flops"] < small["context_cache"]["flops"] < small["dense"]["flops"]


def test_speed_of_a_real_class(tmp_path: Path) -> None:
    small = ["--sizes", "256", "--ratios", "0.02", "--rounds", "2", "--models", "flux", "--dtype", "float32"]
    small += ["--times", "2"]
    run([sys.executable, "-c", TINY_STEP, *small, "--device", "cpu", "--out", str(tmp_path)])
    (entry,) = json.loads((tmp_path / "speed.json").read_text())["steps"]
    assert entry["blocks"] == "2 and 2" and "blocks at 256 px: 2 and 2" in (tmp_path / "speed.md").read_text()
    assert entry["model"] == "tiny" and entry["kept"] < entry["tokens"] == 256
    assert 1 < entry["ideal_speedup"] < 256 / entry["kept"] + 1
    assert all(entry["parts"][part] > 0 for part in ("pack", "override", "model", "unpack"))


def test_runs_are_summed_from_the_calls_their_context_makes(tmp_path: Path) -> None:
    options = ["--sizes", "256", "--rounds", "2", "--dtype", "float32", "--device", "cpu", "--out", str(tmp_path)]
    run([sys.executable, "-c", TINY_STEP, "cached", "--context", "auto", *options])
    content = json.loads((tmp_path / "cached.json").read_text())
    small, _, large = content["entries"]
    assert small["context"] == "auto" and small["preset"] == "balanced" and small["run"] in content["environments"]
    first, again = small["runs"]
    assert first["calls"] == {"capture": 1, "cached": 1, "forecast": 17, "last": 1} and not first["reused"]
    assert again["calls"] == {"forecast": 18, "reused": 2} and again["reused"]
    calls = small["calls"]
    for one in (first, again):
        for unit, speedup in (("seconds", "measured_speedup"), ("flops", "ideal_speedup")):
            total = sum(count * calls[sort][unit] for sort, count in one["calls"].items())
            assert one[speedup] == pytest.approx(20 * small[f"dense_{unit}"] / total, rel=1e-4)
    assert calls["last"]["flops"] == calls["capture"]["flops"] == small["dense_flops"] > calls["forecast"]["flops"]
    assert again["ideal_speedup"] > first["ideal_speedup"] > large["runs"][0]["ideal_speedup"]
    left_out = small["tokens"] - small["edit_tokens"]  # whatever is renewed in turn is kept as well
    rows = 2 * 2 * 2  # keys and values of two captures in each of two blocks
    assert small["cache_mib"] * 2**20 == pytest.approx(rows * left_out * 128 * 4, rel=0.2)
    assert small["cache_place"] == "device" and small["cache_gb"] * 1e9 == pytest.approx(small["cache_mib"] * 2**20)
    page = (tmp_path / "cached.md").read_text()
    assert "1 capture, 1 cached, 17 forecast, 1 last" in page and "| auto |" in page


TINY_METHODS = f"""
from lab.bench.method_speed import TRIALS, Trial
TRIALS["flux"] = Trial(("todo_2", "diffcr_25", "diffcr_75"), 256, 2)
{TINY_STEP}
"""


def test_a_few_blocks_stand_for_all_of_a_method(tmp_path: Path) -> None:
    options = ["--ratios", "0.02", "--rounds", "2", "--models", "flux", "--dtype", "float32", "--device", "cpu"]
    run([sys.executable, "-c", TINY_METHODS, "methods", *options, "--out", str(tmp_path)])
    pairs = {entry["row"]: entry["pairs"] for entry in json.loads((tmp_path / "methods.json").read_text())["entries"]}
    assert pairs["todo_2"] < 0.65
    assert 0.95 > pairs["diffcr_25"] > pairs["diffcr_75"] > 0.5, "after a first call that computes everything"
