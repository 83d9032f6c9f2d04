"""Tiny models of the lab. The lab is imported before diffusers, so that its workaround (lab.compat) is in place."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from lab import autoencoder, dit


def _tiny_dit(single_blocks: int = 1) -> torch.nn.Module:
    torch.manual_seed(0)
    model = dit.build_dit(double_blocks=1, single_blocks=single_blocks, heads=1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2 and not parameter.any():
                parameter.normal_(0, 0.05)
    return model.eval().requires_grad_(False)


@pytest.fixture(scope="session")
def tiny_dit() -> Callable[..., torch.nn.Module]:
    """`tiny_dit(single_blocks=1)`: one double block, one head, weights that make every output depend on every token."""
    return _tiny_dit


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files of a tiny model and a random autoencoder; not to be written to."""
    folder = tmp_path_factory.mktemp("weights")
    dit.export_dit(_tiny_dit().state_dict(), folder / dit.WEIGHTS.name)
    autoencoder.export_autoencoder(autoencoder.build_autoencoder().state_dict(), folder / autoencoder.WEIGHTS.name)
    return folder
