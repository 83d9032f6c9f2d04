"""Tuning for a method runs, learns what it should, and its file loads."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hilo_core.methods import make_method
from hilo_core.tuned import Tuned
from lab import run as lab_run
from lab import sampling, train, tune
from lab.dit import load_dit, wear
from lab.hilo import Compressed


@pytest.fixture(scope="module")
def sample(weights: Path) -> tune.Sample:
    torch.manual_seed(1)
    vae = tune.load_autoencoder(weights / "hilo_lab_vae.safetensors")
    return tune.Sample(vae, np.random.default_rng(1), 256, 1)


@pytest.mark.parametrize("method", ["hilo", "diffcr"])
def test_a_few_steps_and_the_file_loads(
    method: str, weights: Path, sample: tune.Sample, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lab_run, "RUNS", tmp_path / "runs")
    out = tune.main([method, "--minutes", "0.05", "--size", "256", "--batch", "1", "--rank", "2", "--lr", "0.01",
                     "--weights", str(weights), "--out", str(tmp_path / "tuned.safetensors")])  # fmt: skip
    tuned = Tuned.load(out)
    assert (tuned.low_embedding is not None) == (method == "hilo")
    assert (tuned.routers is not None) == (method == "diffcr")
    assert any("lora_B" in name and value.any() for name, value in tuned.lora.items()), "the LoRA has learned something"
    assert not any(name.startswith("transformer.proj_out") for name in tuned.lora)

    dit: Any = load_dit(weights / "hilo_lab_fill.safetensors")
    before = answer(dit, sample, make_method(method))
    wear(dit, tuned)
    extra = {"low_embedding": tuned.low_embedding} if method == "hilo" else {"routers": tuned.routers}
    lora = answer(dit, sample, make_method(method))
    after = answer(dit, sample, make_method(method, **extra))
    assert (lora - before).abs().max() > 1e-5 and (after - lora).abs().max() > 1e-6, "both parts count"


def answer(dit: Any, sample: tune.Sample, method: Any) -> torch.Tensor:
    """The velocity of the edit region."""
    context = tune.make_context("low" if method.uses_context else "none")
    run = Compressed(sample.plan, context, low=sample.low, method=method)
    predict = run.begin(sample.source, sample.noise)
    noisy = sampling.pack(torch.lerp(sample.source, sample.noise, 0.8))
    tokens = torch.cat([noisy, sample.condition], -1)
    with torch.no_grad():
        velocity = predict(dit, tokens, sample.ids, torch.full((len(noisy),), 0.8))
    return velocity[:, run.grid_plan.edit]


def test_hilo_is_tuned_through_the_path_it_runs_on(weights: Path, sample: tune.Sample) -> None:
    """The embedding begins as the model's own, and every part of it gets a gradient."""
    dit: Any = load_dit(weights / "hilo_lab_fill.safetensors")
    head = tune.TuneHiLo(dit)
    loss, _ = head.loss(dit, sample, torch.tensor([0.8]))
    plain = answer(dit, sample, make_method("hilo"))
    mine = answer(dit, sample, tune.HiLo(tune.LowEmbedding(head.weight.detach(), head.bias.detach())))
    torch.testing.assert_close(mine, plain, atol=1e-5, rtol=1e-5)
    loss.backward()
    assert head.weight.grad is not None and head.weight.grad.abs().sum() > 0
    assert "x_embedder" in dit._modules and type(dit.x_embedder).__name__ == "Linear", "the model is as it was"


def test_ratios_learn_through_their_two_nearest_bins(weights: Path, sample: tune.Sample) -> None:
    dit: Any = load_dit(weights / "hilo_lab_fill.safetensors")
    head = tune.TuneDiffCR(dit, target=0.5)
    sigma = torch.tensor([0.8])
    loss, logged = head.loss(dit, sample, sigma)
    loss.backward()
    assert logged["ratio"] == 0, "ratios begin at zero"
    assert head.ratio.grad is not None and head.weight.grad is not None
    assert head.weight.grad.abs().sum() > 0, "gates let the routers learn"
    used = head.ratio.grad.abs().sum(0) > 0
    assert used.all(), "the budget draws on every ratio"
    with torch.no_grad():  # on a bin, the result is that of the bin alone
        head.ratio.fill_(float(tune.BINS[3]))
        on_bin = head.loss(dit, sample, sigma)[1]["loss"]
        head.ratio.fill_(float(tune.BINS[3]) + 1e-4)
        near = head.loss(dit, sample, sigma)[1]["loss"]
        head.ratio.fill_(0.0)
        none = head.loss(dit, sample, sigma)[1]["loss"]
    assert on_bin == pytest.approx(near, rel=1e-4) and on_bin != none


def test_samples_are_used_again_with_other_noise(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tune, "REUSE", 2)
    monkeypatch.setattr(tune, "POOL", 2)
    vae = tune.load_autoencoder(weights / "hilo_lab_vae.safetensors")
    drawn = islice(tune.samples(vae, np.random.default_rng(0), 128, 1), 6)
    found = [(sample, sample.noise) for sample in drawn]
    assert 1 < len({id(sample) for sample, _ in found}) <= 3, "two steps a sample, the oldest goes"
    assert not torch.equal(found[0][1], found[1][1])


def test_the_trainings_command_line_leads_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []
    monkeypatch.setattr(tune, "main", asked.append)
    train.main(["dit", "--method", "diffcr", "--minutes", "3", "--weights", str(tmp_path)])
    assert asked == [["diffcr", "--minutes", "3.0", "--size", "256", "--seed", "0", "--weights", str(tmp_path)]]


def test_a_foreign_file_is_named(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"transformer.x.lora_A.weight": torch.zeros(2, 2)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match=r"other\.safetensors is not a file that was tuned for HiLo Token"):
        Tuned.load(tmp_path / "other.safetensors")
