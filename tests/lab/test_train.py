"""Training starts, can be stopped at any moment, and goes on from where it was."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch

from lab import run, train
from lab.autoencoder import build_autoencoder, export_autoencoder, load_autoencoder
from lab.dit import load_dit

TINY = ("--size", "64", "--batch", "2", "--pool", "16", "--no-compile", "--every", "2", "--device", "cpu")


class Stopped(Exception):
    """The machine went away in the middle of a run."""


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for weights and runs instead of the repository's; judging pictures is left out, as it takes minutes."""
    monkeypatch.setattr(run, "RUNS", tmp_path / "runs")
    monkeypatch.setattr(train, "judge", lambda *_, **__: {"stripes": {"dense": 1.0, "telea": 1.0}})
    export_autoencoder(build_autoencoder().state_dict(), tmp_path / "hilo_lab_vae.safetensors")
    return tmp_path


def stop_after(steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    advance = run.Run.advance

    def advance_or_stop(self: run.Run) -> bool:
        if self.step == steps:
            raise Stopped
        return advance(self)

    monkeypatch.setattr(run.Run, "advance", advance_or_stop)


def test_an_interrupted_training_goes_on(lab: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = ["dit", "--minutes", "1000", "--weights", str(lab), *TINY]
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        stop_after(5, patch)
        train.main(command)
    first = torch.load(lab / "runs" / "dit" / "checkpoint.pt", weights_only=True)
    assert first["step"] == 4, "the last checkpoint before the stop"
    assert len(load_dit(lab / "hilo_lab_fill.safetensors").single_transformer_blocks) == 7

    with monkeypatch.context() as patch, pytest.raises(Stopped):
        stop_after(7, patch)
        train.main([*command, "--resume"])
    second = torch.load(lab / "runs" / "dit" / "checkpoint.pt", weights_only=True)
    assert second["step"] == 6 and second["elapsed"] > first["elapsed"]
    assert any(not torch.equal(second["model"][name], value) for name, value in first["model"].items())
    steps = [int(row["step"]) for row in csv.DictReader((lab / "runs" / "dit" / "judge.csv").open())]
    assert steps == [2, 4, 6], "the tables of the first part are kept"


def test_an_autoencoder_is_trained_and_exported(lab: Path) -> None:
    before = load_autoencoder(lab / "hilo_lab_vae.safetensors").state_dict()
    train.main(["autoencoder", "--minutes", "0.001", "--weights", str(lab), *TINY, "--batch", "8"])
    after = load_autoencoder(lab / "hilo_lab_vae.safetensors").state_dict()
    assert any(not torch.equal(after[name], value) for name, value in before.items())
    assert (lab / "runs" / "autoencoder" / "sample.png").is_file()
